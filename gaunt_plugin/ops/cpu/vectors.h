// Vectors of 32 bytes; compilers split them where the machine has shorter ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

template <class T> struct VectorOf {
  typedef T type __attribute__((vector_size(32)));
  typedef T unaligned __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};
template <class T> using Vec = typename VectorOf<T>::type;
template <class T> constexpr int LANES = 32 / sizeof(T);

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

// Memory for vectors, a part per thread. Made before threads start: what runs out of memory inside
// of a parallel region ends the process.
template <class T> class Scratch {
 public:
  Scratch(int64_t threads, size_t vectors) :
      stride(vectors * 32 + 64), memory(new char[threads * stride + 32]) {}

  class Part {
   public:
    explicit Part(char *begin) : next(begin) {}
    Vec<T> *take(size_t vectors) {
      auto *p = reinterpret_cast<Vec<T> *>(next);
      next += vectors * 32;
      return p;
    }

   private:
    char *next;
  };
  Part of_thread(int thread) const {
    char *begin = memory.get() + thread * stride;
    return Part(begin + (32 - reinterpret_cast<uintptr_t>(begin) % 32) % 32);
  }

 private:
  size_t stride;
  std::unique_ptr<char[]> memory;
};
