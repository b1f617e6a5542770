// Vectors of the longest kind that the machine has; compilers split them where it has shorter ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#ifdef __AVX512F__
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif

template <class T> struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
  typedef T unaligned __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
};
template <class T> using Vec = typename VectorOf<T>::type;
template <class T> constexpr int LANES = BYTES / sizeof(T);

// The first `valid` lanes in memory; the others are 0.
template <class T> Vec<T> load(const T *from, int64_t valid) {
  if (valid == LANES<T>) return *reinterpret_cast<const typename VectorOf<T>::unaligned *>(from);
  Vec<T> value{};
  for (int64_t lane = 0; lane < valid; lane++) value[lane] = from[lane];
  return value;
}
template <class T> void store(T *to, const Vec<T> &value, int64_t valid) {
  if (valid == LANES<T>) {
    *reinterpret_cast<typename VectorOf<T>::unaligned *>(to) = value;
  } else {
    for (int64_t lane = 0; lane < valid; lane++) to[lane] = value[lane];
  }
}

// Lane i of the result is a[i] + a[i + D], or b[i - D] + b[i] where i has the bit D.
template <class T, int D, size_t... I>
Vec<T> merge(const Vec<T> &a, const Vec<T> &b, std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (int)((I & ~D) + (I & D ? sizeof...(I) : 0))...) +
         __builtin_shufflevector(a, b, (int)((I | D) + (I & D ? sizeof...(I) : 0))...);
#else
  typedef decltype(a < b) Mask;
  return __builtin_shuffle(a, b, Mask{(int)((I & ~D) + (I & D ? sizeof...(I) : 0))...}) +
         __builtin_shuffle(a, b, Mask{(int)((I | D) + (I & D ? sizeof...(I) : 0))...});
#endif
}
template <class T, int D> void merge_pairs(Vec<T> *rows) {
  if constexpr (D < LANES<T>) {
    for (int i = 0; i < LANES<T> / (2 * D); i++)
      rows[i] = merge<T, D>(rows[2 * i], rows[2 * i + 1], std::make_index_sequence<LANES<T>>());
    merge_pairs<T, 2 * D>(rows);
  }
}
// The sum of the lanes of each of `count` vectors: as many at once as there are lanes.
template <class T> void sum_lanes(const Vec<T> *from, int64_t count, T *to) {
  for (int64_t k = 0; k < count; k += LANES<T>) {
    const int64_t valid = count - k < LANES<T> ? count - k : LANES<T>;
    Vec<T> rows[LANES<T>] = {};
    for (int64_t i = 0; i < valid; i++) rows[i] = from[k + i];
    merge_pairs<T, 1>(rows);
    store(to + k, rows[0], valid);
  }
}

// Memory for vectors, a part per thread. Made before threads start: what runs out of memory inside
// of a parallel region ends the process.
template <class T> class Scratch {
 public:
  Scratch(int64_t threads, size_t vectors) :
      stride(vectors * BYTES + 64), memory(new char[threads * stride + BYTES]) {}

  class Part {
   public:
    explicit Part(char *begin) : next(begin) {}
    Vec<T> *take(size_t vectors) {
      auto *p = reinterpret_cast<Vec<T> *>(next);
      next += vectors * BYTES;
      return p;
    }

   private:
    char *next;
  };
  Part of_thread(int thread) const {
    char *begin = memory.get() + thread * stride;
    return Part(begin + (BYTES - reinterpret_cast<uintptr_t>(begin) % BYTES) % BYTES);
  }

 private:
  size_t stride;
  std::unique_ptr<char[]> memory;
};
