// What convolutions over the edges of a graph share: sums over edges by their nodes, weights that
// are made where they are used, and the arguments of a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "operators.h"
#include "vectors.h"

// Edges grouped by a node of each: edges of node i are order[start[i] ... start[i + 1]].
struct Groups {
  std::vector<int64_t> start, order;

  Groups(const int64_t *index, int64_t edges, int64_t nodes) : start(nodes + 1), order(edges) {
    for (int64_t e = 0; e < edges; e++) start[index[e] + 1]++;
    for (int64_t i = 0; i < nodes; i++) start[i + 1] += start[i];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t e = 0; e < edges; e++) order[next[index[e]]++] = e;
  }
};

// Operations on N vectors of channels per row.
template <class T, int N> struct Channels {
  using V = Vec<T>;
  static constexpr int width = N;
  int64_t stride, valid;  // numbers between rows in memory; channels that exist there

  int64_t lanes() const { return N > 1 ? LANES<T> : valid; }  // of each vector
  void load(V *to, const T *from) const {
    for (int q = 0; q < N; q++) to[q] = ::load(from + q * LANES<T>, lanes());
  }
  void store(T *to, const V *from) const {
    for (int q = 0; q < N; q++) ::store(to + q * LANES<T>, from[q], lanes());
  }
  // The order of edges is not that of memory: fetch what the next edge needs.
  void prefetch_rows(const T *from, int64_t rows) const {
    for (int64_t i = 0; i < rows; i++)
      for (size_t byte = 0; byte < sizeof(V) * N; byte += 64)
        __builtin_prefetch(reinterpret_cast<const char *>(from + i * stride) + byte);
  }
  void load_rows(V *to, const T *from, int64_t rows) const {
    for (int64_t i = 0; i < rows; i++) load(to + i * N, from + i * stride);
  }
  void store_rows(T *to, const V *from, int64_t rows) const {
    for (int64_t i = 0; i < rows; i++) store(to + i * stride, from + i * N);
  }
};

template <class T> constexpr int64_t vectors_of(int64_t numbers) {
  return (numbers + LANES<T> - 1) / LANES<T>;
}

// Calls f(C<T, N>, first channel) for all blocks of channels of rows that are `stride` apart.
template <template <class, int> class C, class T, int WIDE = 4, class F>
void blocks_of_channels(int64_t channels, int64_t stride, const F &f) {
  constexpr int lanes = LANES<T>;
  for (int64_t c = 0; c < channels;) {
    const int64_t left = channels - c;
    if (WIDE > 2 && left >= WIDE * lanes) {
      f(C<T, WIDE>{{stride, WIDE * lanes}}, c), c += WIDE * lanes;
    } else if (left >= 2 * lanes) {
      f(C<T, 2>{{stride, 2 * lanes}}, c), c += 2 * lanes;
    } else {
      const int64_t valid = left < lanes ? left : lanes;
      f(C<T, 1>{{stride, valid}}, c), c += valid;
    }
  }
}

// Adjacent rows of a matrix, of `numel` numbers each: what makes weights of few factors per edge.
template <class T> struct Rows {
  const T *first;
  int64_t count, numel;

  // to (+)= sum_q factors_q row_q
  void combine(const T *factors, T *to, bool add) const {
    int64_t q = 0;
    for (; q + 4 <= count; q += 4) combine_some<4>(factors + q, first + q * numel, to, add || q);
    for (; q < count; q++) combine_some<1>(factors + q, first + q * numel, to, add || q);
  }
  // factors_q (+)= <row_q, from>
  void project(const T *from, T *factors, bool add) const {
    int64_t q = 0;
    for (; q + 4 <= count; q += 4) project_some<4>(from, first + q * numel, factors + q, add);
    for (; q < count; q++) project_some<1>(from, first + q * numel, factors + q, add);
  }

 private:
  template <int Q> void combine_some(const T *factors, const T *row, T *to, bool add) const {
    const auto part = [&](int64_t i, int64_t valid) {
      Vec<T> sum = add ? load(to + i, valid) : Vec<T>{};
      for (int q = 0; q < Q; q++) sum += factors[q] * load(row + q * numel + i, valid);
      store(to + i, sum, valid);
    };
    int64_t i = 0;
    for (; i + LANES<T> <= numel; i += LANES<T>) part(i, LANES<T>);
    if (i < numel) part(i, numel - i);
  }
  template <int Q> void project_some(const T *from, const T *row, T *factors, bool add) const {
    Vec<T> sum[Q] = {};
    const auto part = [&](int64_t i, int64_t valid) {
      const Vec<T> value = load(from + i, valid);
      for (int q = 0; q < Q; q++) sum[q] += value * load(row + q * numel + i, valid);
    };
    int64_t i = 0;
    for (; i + LANES<T> <= numel; i += LANES<T>) part(i, LANES<T>);
    if (i < numel) part(i, numel - i);
    T totals[Q];
    sum_lanes(sum, Q, totals);
    for (int q = 0; q < Q; q++) factors[q] = add ? factors[q] + totals[q] : totals[q];
  }
};

// What a pass works on. Kernels add their layout, and
//   forward<DUAL>(out): out_i += its sum over edges, or the derivative along (vx, ve, vw);
//   gradient<DUAL>(gx, ge, gw, first_gw, of_factors): gradients of <g, out> with respect to x
//     (added to gx), entries and weights, or their derivatives. first_gw: with DUAL the gradient of
//     the weights itself, too, or null. With `rows` these two may be null, and factors are what is
//     wanted.
template <class T> struct EdgeProblem {
  using V = Vec<T>;
  int64_t nodes, edges, threads;
  // Numbers of a node, in and out, and of an edge: entries and weights.
  int64_t numbers_in, numbers_out, entry_count, numel;
  const int64_t *senders, *receivers;
  const T *x, *entries, *weights, *g;  // g: gradient of the result
  const T *vx, *ve, *vw;               // direction of the second derivative
  // Not null: `weights` has `width` factors per edge, of as many rows of `mixing` from rows[e] on.
  const int64_t *rows;
  int64_t width;
  const T *mixing, *v_mixing;

  Rows<T> rows_of(const T *matrix, int64_t e) const {
    return {matrix + rows[e] * numel, width, numel};
  }
  // Weights of an edge, if need be made in `memory`, and their derivatives.
  const T *weights_of(int64_t e, V *memory) const {
    if (!rows) return weights + e * numel;
    T *made = reinterpret_cast<T *>(memory);
    rows_of(mixing, e).combine(weights + e * width, made, false);
    return made;
  }
  const T *dual_weights_of(int64_t e, V *memory) const {
    if (!rows) return vw + e * numel;
    T *made = reinterpret_cast<T *>(memory);
    rows_of(mixing, e).combine(vw + e * width, made, false);
    if (v_mixing) rows_of(v_mixing, e).combine(weights + e * width, made, true);
    return made;
  }
  // Vectors for the weights of an edge.
  int64_t made() const { return rows ? vectors_of<T>(numel) : 0; }

  // Fetch what the next edge needs of a node: nodes come in no order.
  void prefetch_node(const T *of_nodes, int64_t node, int64_t numbers) const {
    const auto *bytes = reinterpret_cast<const char *>(of_nodes + node * numbers);
    for (size_t byte = 0; byte < sizeof(T) * numbers; byte += 64) __builtin_prefetch(bytes + byte);
  }
};

// of_mixing += factors x gradients of the weights, for all edges; each thread has its columns.
template <class T>
void spread(const EdgeProblem<T> &p, const T *factors, const T *of_weights, T *of_mixing) {
  const int64_t numel = p.numel, columns = (numel + p.threads - 1) / p.threads;
#pragma omp parallel for num_threads(p.threads)
  for (int64_t begin = 0; begin < numel; begin += columns)
    for (int64_t e = 0; e < p.edges; e++)
      for (int64_t q = 0; q < p.width; q++) {
        const T factor = factors[e * p.width + q];
        T *to = of_mixing + (p.rows[e] + q) * numel;
        for (int64_t i = begin; i < std::min(numel, begin + columns); i++)
          to[i] += factor * of_weights[e * numel + i];
      }
}

// What a call works on; null: left out.
template <class T> struct Call {
  int64_t pass, mixing_rows;
  GauntMatmul matmul;
  T *value, *of_g, *of_x, *of_entries, *of_weights, *of_mixing;
};

// Weights that are made at a time where they are a product, per thread: they stay in the cache.
constexpr int64_t BLOCK = 1 << 19;

// P: a kernel's problem
template <class T, class P> void run(const P &p, const Call<T> &call) {
  const int64_t numel = p.numel, edges = p.edges, width = p.width, entries = p.entry_count;
  const T *const hidden = p.weights, *const v_hidden = p.vw;
  int64_t rows = edges;
  std::vector<T> memory;
  T *w = nullptr, *of_w = nullptr, *vw = nullptr, *of_vw = nullptr;
  if (p.rows) {
    // Gradients of the mixing need those of all weights.
    if (call.of_mixing) {
      memory.resize(edges * numel * (call.pass == DOUBLE_BACKWARD ? 2 : 1));
      of_w = memory.data(), of_vw = call.pass == DOUBLE_BACKWARD ? of_w + edges * numel : nullptr;
    }
  } else if (p.mixing) {
    rows = std::max<int64_t>(1, std::min(edges, p.threads * BLOCK / std::max<int64_t>(1, numel)));
    memory.resize(rows * numel * (call.pass == FORWARD ? 1 : call.pass == BACKWARD ? 2 : 4));
    w = memory.data(), of_w = w + rows * numel, vw = of_w + rows * numel, of_vw = vw + rows * numel;
  }
  const auto matmul = [&](bool ta, bool tb, int64_t m, int64_t n, int64_t k, const T *a, const T *b,
                          T *c, bool accumulate) {
    if (call.matmul(sizeof(T) == 4 ? FLOAT32 : FLOAT64, ta, tb, m, n, k, a, b, c, accumulate))
      throw std::runtime_error("a product of matrices failed");
  };
  const auto zero = [](T *to, int64_t numbers) {
    if (to) std::memset(to, 0, sizeof(T) * numbers);
  };
  zero(call.value, p.nodes * p.numbers_out), zero(call.of_g, p.nodes * p.numbers_out);
  zero(call.of_x, p.nodes * p.numbers_in), zero(call.of_mixing, call.mixing_rows * numel);
  if (p.rows) {
    if (call.pass == FORWARD) p.template forward<false>(call.value);
    if (call.pass == BACKWARD)
      p.template gradient<false>(call.of_x, call.of_entries, of_w, nullptr, call.of_weights);
    if (call.pass == DOUBLE_BACKWARD) {
      p.template forward<true>(call.of_g);
      p.template gradient<true>(call.of_x, call.of_entries, of_w, of_vw, call.of_weights);
      if (call.of_mixing) spread(p, p.vw, of_vw, call.of_mixing);
    }
    if (call.of_mixing) spread(p, p.weights, of_w, call.of_mixing);
    return;
  }
  for (int64_t begin = 0; begin < edges; begin += rows) {
    const int64_t count = std::min(rows, edges - begin);
    P part = p;
    part.edges = count, part.senders += begin, part.receivers += begin;
    part.entries += begin * entries;
    if (part.ve) part.ve += begin * entries;
    if (!p.mixing) {
      if (call.pass == FORWARD) part.template forward<false>(call.value);
      if (call.pass == BACKWARD)
        part.template gradient<false>(call.of_x, call.of_entries, call.of_weights);
      if (call.pass == DOUBLE_BACKWARD) {
        part.template forward<true>(call.of_g);
        part.template gradient<true>(call.of_x, call.of_entries, call.of_weights);
      }
      continue;
    }
    const T *h = hidden + begin * width;
    matmul(false, false, count, numel, width, h, p.mixing, w, false);
    part.weights = w;
    if (call.pass == FORWARD) {
      part.template forward<false>(call.value);
      continue;
    }
    T *of_h = call.of_weights + begin * width, *of_D = call.of_entries + begin * entries;
    if (call.pass == BACKWARD) {
      part.template gradient<false>(call.of_x, of_D, of_w);
      matmul(false, true, count, width, numel, of_w, p.mixing, of_h, false);
      if (call.of_mixing) matmul(true, false, width, numel, count, h, of_w, call.of_mixing, true);
      continue;
    }
    const T *vh = v_hidden + begin * width;
    matmul(false, false, count, numel, width, vh, p.mixing, vw, false);
    if (p.v_mixing) matmul(false, false, count, numel, width, h, p.v_mixing, vw, true);
    part.vw = vw;
    part.template forward<true>(call.of_g);
    part.template gradient<true>(call.of_x, of_D, of_w, of_vw);
    matmul(false, true, count, width, numel, of_w, p.mixing, of_h, false);
    if (p.v_mixing) matmul(false, true, count, width, numel, of_vw, p.v_mixing, of_h, true);
    if (call.of_mixing) {
      matmul(true, false, width, numel, count, h, of_w, call.of_mixing, true);
      matmul(true, false, width, numel, count, vh, of_vw, call.of_mixing, true);
    }
  }
}

// What the constants of a layer say of the arrays.
struct EdgeSizes {
  int64_t in, out, entries, paths;  // per node and edge
  bool channels;                    // nodes have [components, channels], and paths as many weights
  const char *entries_name;
};

// make(problem, channels): the kernel's problem
template <class T, class Make>
void call_over_edges(int64_t pass, Arguments &arguments, const EdgeSizes &sizes, int64_t threads,
                     GauntMatmul matmul, const Make &make) {
  const int64_t type = sizeof(T) == 4 ? FLOAT32 : FLOAT64;
  const auto &first = arguments.peek();
  const bool fits = first.dim == (sizes.channels ? 3 : 2);
  const int64_t nodes = fits ? first.sizes[0] : -1;
  const int64_t channels = !sizes.channels ? 1 : fits ? first.sizes[2] : -1;
  const auto take = [&](const char *name, std::initializer_list<int64_t> sizes) {
    return static_cast<T *>(arguments.take(name, type, sizes));
  };
  const auto take_optional = [&](const char *name, std::initializer_list<int64_t> sizes) {
    if (!arguments.left_out()) return take(name, sizes);
    arguments.take();
    return (T *)nullptr;
  };
  const auto take_nodes = [&](const char *name, int64_t components) {
    return sizes.channels ? take(name, {nodes, components, channels})
                          : take(name, {nodes, components});
  };
  const T *x = take_nodes("node_feats", sizes.in);
  const auto &second = arguments.peek();
  const int64_t edges = second.dim == 2 ? second.sizes[0] : -1;
  const T *entries = take(sizes.entries_name, {edges, sizes.entries});
  const auto &third = arguments.peek();
  const int64_t numel = sizes.paths * channels;
  int64_t width = third.dim == 2 ? third.sizes[1] : -1;
  const T *weights = take("weights", {edges, width});
  const auto &fourth = arguments.peek();
  const int64_t mixing_rows = fourth.dim == 2 ? fourth.sizes[0] : -1;
  const T *mixing = take_optional("mixing", {mixing_rows, numel});
  if (!mixing && width != numel)
    throw WrongArgument("weights must be [" + std::to_string(edges) + ", " + std::to_string(numel) +
                        "], got [" + std::to_string(edges) + ", " + std::to_string(width) + "]");
  const auto *index = static_cast<int64_t *>(arguments.take("edge_index", INT64, {2, edges}));
  for (int64_t k = 0; k < 2 * edges; k++)
    if (index[k] < 0 || index[k] >= nodes)
      throw WrongIndex("edge_index has the index " + std::to_string(index[k]) + " for " +
                       std::to_string(nodes) + " nodes");
  const int64_t *rows = nullptr;
  if (arguments.left_out()) {
    arguments.take();
  } else {
    rows = static_cast<int64_t *>(arguments.take("rows", INT64, {edges}));
    static const int64_t none = 0;
    if (!rows) rows = &none;  // of no edges
  }
  if (rows && !mixing) throw WrongArgument("rows without mixing");
  if (mixing && !rows && !matmul) throw WrongArgument("mixing needs products of matrices");
  if (mixing && !rows && mixing_rows != width)
    throw WrongArgument("mixing must be [" + std::to_string(width) + ", " + std::to_string(numel) +
                        "], got [" + std::to_string(mixing_rows) + ", " + std::to_string(numel) +
                        "]");
  for (int64_t e = 0; rows && e < edges; e++)
    if (rows[e] < 0 || rows[e] > mixing_rows - width)
      throw WrongIndex("rows has the index " + std::to_string(rows[e]) + " for " +
                       std::to_string(width) + " of " + std::to_string(mixing_rows) + " rows");
  EdgeProblem<T> p{nodes, edges, threads, sizes.in * channels, sizes.out * channels, sizes.entries,
                   numel, index, index + edges, x, entries, weights, nullptr, nullptr, nullptr,
                   nullptr, rows, width, mixing, nullptr};
  const std::string direction_of_entries = std::string("direction of ") + sizes.entries_name;
  const std::string gradient_of_entries = std::string("gradient of ") + sizes.entries_name;
  Call<T> c{pass, mixing_rows, matmul};
  if (pass != FORWARD) p.g = take_nodes("grad", sizes.out);
  if (pass == DOUBLE_BACKWARD) {
    p.vx = take_nodes("direction of node_feats", sizes.in);
    p.ve = take(direction_of_entries.c_str(), {edges, sizes.entries});
    p.vw = take("direction of weights", {edges, width});
    p.v_mixing = take_optional("direction of mixing", {mixing_rows, numel});
    if (p.v_mixing && !mixing) throw WrongArgument("direction of mixing without mixing");
  }
  if (pass == FORWARD) c.value = take_nodes("result", sizes.out);
  if (pass == DOUBLE_BACKWARD) c.of_g = take_nodes("gradient of grad", sizes.out);
  if (pass != FORWARD) {
    c.of_x = take_nodes("gradient of node_feats", sizes.in);
    c.of_entries = take(gradient_of_entries.c_str(), {edges, sizes.entries});
    c.of_weights = take("gradient of weights", {edges, width});
    c.of_mixing = take_optional("gradient of mixing", {mixing_rows, numel});
    if (c.of_mixing && !mixing) throw WrongArgument("gradient of mixing without mixing");
  }
  arguments.finish();
  run(make(p, channels), c);
}

