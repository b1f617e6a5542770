// Vectors of 32 bytes; compilers split them where the machine has shorter ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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

// Memory of a thread, aligned.
template <class T> struct Scratch {
  std::vector<char> memory;
  size_t used = 0;
  explicit Scratch(size_t vectors) : memory(vectors * 32 + 32) {
    used = (32 - reinterpret_cast<uintptr_t>(memory.data()) % 32) % 32;
  }
  Vec<T> *take(size_t vectors) {
    auto *p = reinterpret_cast<Vec<T> *>(memory.data() + used);
    used += vectors * 32;
    return p;
  }
};
