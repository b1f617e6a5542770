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
