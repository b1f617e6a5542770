// Convolution in the frame of each edge, with its first and second derivatives, on the CPU.
//
// Per edge e from j to i, channel by channel (layers/aligned.py has the formula):
//   B = D(e)^T x_j,   local_r = n_r sum_p w_(e,p) B_source(p),   out_i += D(e) local.
// The sum over edges is linear in x, D, w each, and phi = <g, out> in g, too. So all derivatives
// come from the gradient of phi: the second ones are its derivative along a direction (vx, vD, vw).
// No message of an edge is ever stored. Edges are sorted by the node that a pass sums over: no
// two threads write to the same place, and results don't depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace {

// An irrep of the features or of the output, and its rows in the frame.
struct Rotation {
  int64_t dim, row, entry, columns, frame;  // entry < 0: the identity
};
struct Path {
  int64_t weight, source, turned;
};
// Paths, maybe none, to one row of the frame (m = 0) or to the two rows +m, -m.
struct Target {
  int64_t row, pair, first, count;
  double norm;
};

struct Program {
  int64_t dim_in, dim_out, frame_in, frame_out, entries, paths;
  std::vector<Rotation> in, out;
  std::vector<Target> targets;
  std::vector<Path> path;
  std::vector<double> norm;  // per irrep of the output

  explicit Program(const Constants &constants) {
    const int64_t *p = constants.numbers;
    dim_in = *p++, dim_out = *p++, frame_in = *p++, frame_out = *p++, entries = *p++, paths = *p++;
    for (auto *list : {&in, &out}) {
      list->resize(*p++);
      for (auto &r : *list) r = {p[0], p[1], p[2], p[3], p[4]}, p += 5;
    }
    norm.assign(constants.values, constants.values + out.size());
    std::vector<double> of_row(frame_out);
    for (size_t k = 0; k < out.size(); k++)
      for (int64_t c = 0; c < out[k].columns; c++) of_row[out[k].frame + c] = norm[k];
    targets.resize(*p++);
    for (auto &t : targets) {
      t = {p[0], p[1], (int64_t)path.size(), p[2], of_row[p[0]]}, p += 3;
      for (int64_t k = 0; k < t.count; k++, p += 3) path.push_back({p[0], p[1], p[2]});
    }
  }
};

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

  // f_c = sum_i D_ic x_i; with ADD f_c += the same for a derivative of D: the identity has none.
  template <bool ADD>
  static void to_frame(const std::vector<Rotation> &irreps, const T *D, const V *x, V *f,
                       const double *norm = nullptr) {
    for (size_t k = 0; k < irreps.size(); k++) {
      const auto &r = irreps[k];
      const T n = norm ? (T)norm[k] : (T)1;
      const V *xr = x + r.row * N;
      V *fr = f + r.frame * N;
      if (r.entry < 0) {
        for (int q = 0; q < N && !ADD; q++) fr[q] = n * xr[q];
        continue;
      }
      const T *d = D + r.entry;
      int64_t c = 0;
      for (; c + 1 < r.columns; c += 2) {
        V a[N] = {}, b[N] = {};
        for (int64_t i = 0; i < r.dim; i++) {
          const T p = d[i * r.columns + c], s = d[i * r.columns + c + 1];
          for (int q = 0; q < N; q++) a[q] += p * xr[i * N + q], b[q] += s * xr[i * N + q];
        }
        for (int q = 0; q < N; q++) {
          V *u = fr + c * N + q, *v = u + N;
          *u = ADD ? *u + n * a[q] : n * a[q], *v = ADD ? *v + n * b[q] : n * b[q];
        }
      }
      for (; c < r.columns; c++) {
        V a[N] = {};
        for (int64_t i = 0; i < r.dim; i++)
          for (int q = 0; q < N; q++) a[q] += d[i * r.columns + c] * xr[i * N + q];
        for (int q = 0; q < N; q++) {
          V *u = fr + c * N + q;
          *u = ADD ? *u + n * a[q] : n * a[q];
        }
      }
    }
  }

  // x_i += sum_c D_ic f_c, for D or a derivative of it
  template <bool DERIVATIVE = false>
  static void from_frame(const std::vector<Rotation> &irreps, const T *D, const V *f, V *x) {
    for (const auto &r : irreps) {
      V *xr = x + r.row * N;
      const V *fr = f + r.frame * N;
      if (r.entry < 0) {
        for (int q = 0; q < N && !DERIVATIVE; q++) xr[q] += fr[q];
        continue;
      }
      const T *d = D + r.entry;
      int64_t i = 0;
      for (; i + 1 < r.dim; i += 2) {
        V a[N], b[N];
        for (int q = 0; q < N; q++) a[q] = xr[i * N + q], b[q] = xr[(i + 1) * N + q];
        for (int64_t c = 0; c < r.columns; c++) {
          const T p = d[i * r.columns + c], s = d[(i + 1) * r.columns + c];
          for (int q = 0; q < N; q++) a[q] += p * fr[c * N + q], b[q] += s * fr[c * N + q];
        }
        for (int q = 0; q < N; q++) xr[i * N + q] = a[q], xr[(i + 1) * N + q] = b[q];
      }
      for (; i < r.dim; i++)
        for (int64_t c = 0; c < r.columns; c++)
          for (int q = 0; q < N; q++) xr[i * N + q] += d[i * r.columns + c] * fr[c * N + q];
    }
  }

  // gradient_ic += sum over channels of x_i f_c, lanes kept apart
  static void outer(const std::vector<Rotation> &irreps, const V *x, const V *f, V *gradient) {
    for (const auto &r : irreps) {
      if (r.entry < 0) continue;
      for (int64_t i = 0; i < r.dim; i++) {
        V xi[N];
        for (int q = 0; q < N; q++) xi[q] = x[(r.row + i) * N + q];
        V *g = gradient + r.entry + i * r.columns;
        for (int64_t c = 0; c < r.columns; c++) {
          const V *fc = f + (r.frame + c) * N;
          V sum = xi[0] * fc[0];
          for (int q = 1; q < N; q++) sum += xi[q] * fc[q];
          g[c] += sum;
        }
      }
    }
  }

  // local_r (+)= n_r sum_p w_p B_source(p)
  template <bool ADD> void mix(const Program &program, const T *w, const V *b, V *local) const {
    for (const auto &t : program.targets) {
      V plus[N] = {}, minus[N] = {};
      for (int64_t k = t.first; k < t.first + t.count; k++) {
        const auto &p = program.path[k];
        V wp[N];
        load(wp, w + p.weight * stride);
        const V *s = b + p.source * N;
        if (!t.pair) {
          for (int q = 0; q < N; q++) plus[q] += wp[q] * s[q];
        } else if (!p.turned) {
          for (int q = 0; q < N; q++) plus[q] += wp[q] * s[q], minus[q] += wp[q] * s[N + q];
        } else {
          for (int q = 0; q < N; q++) plus[q] += wp[q] * s[N + q], minus[q] -= wp[q] * s[q];
        }
      }
      V *l = local + t.row * N;
      const T n = t.norm;
      for (int q = 0; q < N; q++) l[q] = ADD ? l[q] + n * plus[q] : n * plus[q];
      if (t.pair)
        for (int q = 0; q < N; q++) l[N + q] = ADD ? l[N + q] + n * minus[q] : n * minus[q];
    }
  }

  // Transposed: b_source(p) += w_p g_r
  void unmix(const Program &program, const T *w, const V *g, V *b) const {
    for (const auto &t : program.targets) {
      const V *plus = g + t.row * N, *minus = plus + N;
      for (int64_t k = t.first; k < t.first + t.count; k++) {
        const auto &p = program.path[k];
        V wp[N];
        load(wp, w + p.weight * stride);
        V *s = b + p.source * N;
        if (!t.pair) {
          for (int q = 0; q < N; q++) s[q] += wp[q] * plus[q];
        } else if (!p.turned) {
          for (int q = 0; q < N; q++) s[q] += wp[q] * plus[q], s[N + q] += wp[q] * minus[q];
        } else {
          for (int q = 0; q < N; q++) s[N + q] += wp[q] * plus[q], s[q] -= wp[q] * minus[q];
        }
      }
    }
  }

  // Gradient of the weights: sum over the rows of g_r B_source(p), for one or two pairs (g, B).
  void weights(const Program &program, const V *g, const V *b, const V *g2, const V *b2,
               T *out) const {
    for (const auto &t : program.targets) {
      for (int64_t k = t.first; k < t.first + t.count; k++) {
        const auto &p = program.path[k];
        V sum[N] = {};
        for (int pass = 0; pass < (g2 ? 2 : 1); pass++) {
          const V *plus = (pass ? g2 : g) + t.row * N, *minus = plus + N;
          const V *s = (pass ? b2 : b) + p.source * N;
          if (!t.pair) {
            for (int q = 0; q < N; q++) sum[q] += plus[q] * s[q];
          } else if (!p.turned) {
            for (int q = 0; q < N; q++) sum[q] += plus[q] * s[q] + minus[q] * s[N + q];
          } else {
            for (int q = 0; q < N; q++) sum[q] += plus[q] * s[N + q] - minus[q] * s[q];
          }
        }
        store(out + p.weight * stride, sum);
      }
    }
  }
};

template <class T> struct Problem {
  using V = Vec<T>;
  Program program;
  int64_t nodes, edges, channels, threads;
  const int64_t *index;
  const T *x, *entries, *weights, *g;  // g: gradient of the output
  const T *vx, *ve, *vw;               // direction of the second derivative

  int64_t vectors() const { return (channels + LANES<T> - 1) / LANES<T>; }

  // Calls f<N>(Channels, first channel) for all blocks of channels.
  template <class F> void blocks(const F &f) const {
    constexpr int wide = 4, lanes = LANES<T>;
    for (int64_t c = 0; c < channels;) {
      const int64_t left = channels - c;
      if (left >= wide * lanes) {
        f(Channels<T, wide>{channels, wide * lanes}, c), c += wide * lanes;
      } else if (left >= 2 * lanes) {
        f(Channels<T, 2>{channels, 2 * lanes}, c), c += 2 * lanes;
      } else {
        const int64_t valid = left < lanes ? left : lanes;
        f(Channels<T, 1>{channels, valid}, c), c += valid;
      }
    }
  }

  // The rows of a node, from and to memory.
  void load_sum(const T *from, int64_t rows, V *sum) const {
    blocks([&](auto block, int64_t c) {
      block.load_rows(sum + c / LANES<T> * rows, from + c, rows);
    });
  }
  void store_sum(const V *sum, int64_t rows, T *to) const {
    blocks([&](auto block, int64_t c) {
      block.store_rows(to + c, sum + c / LANES<T> * rows, rows);
    });
  }

  // Features of the sender, in the frame of edge e too, and with DUAL their derivatives.
  template <bool DUAL, class C>
  void features(const C &block, int64_t c, int64_t e, int64_t next, V *X, V *X1, V *B,
                V *B1) const {
    const T *D = entries + e * program.entries;
    const int64_t at = index[e] * program.dim_in * channels + c;
    block.prefetch_rows(weights + next * program.paths * channels + c, program.paths);
    block.load_rows(X, x + at, program.dim_in);
    block.template to_frame<false>(program.in, D, X, B);
    if constexpr (DUAL) {
      block.load_rows(X1, vx + at, program.dim_in);
      block.template to_frame<false>(program.in, D, X1, B1);
      block.template to_frame<true>(program.in, ve + e * program.entries, X, B1);
    }
  }

  // out_i += its sum over edges, or the derivative along (vx, ve, vw).
  template <bool DUAL> void forward(const Groups &receivers, T *out) const {
    const int64_t rows = program.dim_in + program.frame_in + program.frame_out;
#pragma omp parallel num_threads(threads)
    {
      Scratch<T> scratch(program.dim_out * vectors() + 8 * rows);
      V *sum = scratch.take(program.dim_out * vectors());
      V *X = scratch.take(4 * program.dim_in), *X1 = scratch.take(4 * program.dim_in);
      V *B = scratch.take(4 * program.frame_in), *B1 = scratch.take(4 * program.frame_in);
      V *L = scratch.take(4 * program.frame_out), *L1 = scratch.take(4 * program.frame_out);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < nodes; i++) {
        if (receivers.start[i] == receivers.start[i + 1]) continue;
        load_sum(out + i * program.dim_out * channels, program.dim_out, sum);
        for (int64_t k = receivers.start[i]; k < receivers.start[i + 1]; k++) {
          const int64_t e = receivers.order[k];
          const int64_t next = receivers.order[std::min(k + 1, edges - 1)];
          const T *D = entries + e * program.entries;
          blocks([&](auto block, int64_t c) {
            const int64_t of_edge = e * program.paths * channels + c;
            V *acc = sum + c / LANES<T> * program.dim_out;
            features<DUAL>(block, c, e, next, X, X1, B, B1);
            block.template mix<false>(program, weights + of_edge, B, L);
            if constexpr (DUAL) {
              block.template mix<false>(program, vw + of_edge, B, L1);
              block.template mix<true>(program, weights + of_edge, B1, L1);
              block.from_frame(program.out, ve + e * program.entries, L, acc);
              block.from_frame(program.out, D, L1, acc);
            } else {
              block.from_frame(program.out, D, L, acc);
            }
          });
        }
        store_sum(sum, program.dim_out, out + i * program.dim_out * channels);
      }
    }
  }

  // Gradients of <g, out> with respect to x (added to gx), entries and weights, or their
  // derivatives. first_gw: with DUAL the gradient of the weights itself, too, or null.
  template <bool DUAL>
  void gradient(const Groups &senders, T *gx, T *ge, T *gw, T *first_gw = nullptr) const {
    const int64_t rows = program.dim_in + program.dim_out + 2 * program.frame_in +
                         2 * program.frame_out;
#pragma omp parallel num_threads(threads)
    {
      Scratch<T> scratch(program.dim_in * vectors() + program.entries + 8 * rows);
      V *sum = scratch.take(program.dim_in * vectors()), *of_D = scratch.take(program.entries);
      V *X = scratch.take(4 * program.dim_in), *X1 = scratch.take(4 * program.dim_in);
      V *G = scratch.take(4 * program.dim_out);
      V *B = scratch.take(4 * program.frame_in), *B1 = scratch.take(4 * program.frame_in);
      V *L = scratch.take(4 * program.frame_out), *L1 = scratch.take(4 * program.frame_out);
      V *GL = scratch.take(4 * program.frame_out), *GL1 = scratch.take(4 * program.frame_out);
      V *GB = scratch.take(4 * program.frame_in), *GB1 = scratch.take(4 * program.frame_in);
#pragma omp for schedule(dynamic, 1)
      for (int64_t j = 0; j < nodes; j++) {
        if (senders.start[j] == senders.start[j + 1]) continue;
        load_sum(gx + j * program.dim_in * channels, program.dim_in, sum);
        for (int64_t k = senders.start[j]; k < senders.start[j + 1]; k++) {
          const int64_t e = senders.order[k], i = index[edges + e];
          const int64_t next = senders.order[std::min(k + 1, edges - 1)];
          const T *D = entries + e * program.entries;
          std::memset(of_D, 0, sizeof(V) * program.entries);
          blocks([&](auto block, int64_t c) {
            constexpr int N = decltype(block)::width;
            const int64_t of_edge = e * program.paths * channels + c;
            V *acc = sum + c / LANES<T> * program.dim_in;
            const T *w = weights + of_edge;
            features<DUAL>(block, c, e, next, X, X1, B, B1);
            block.load_rows(G, g + i * program.dim_out * channels + c, program.dim_out);
            block.template to_frame<false>(program.out, D, G, GL, program.norm.data());
            std::memset(GB, 0, sizeof(V) * N * program.frame_in);
            block.unmix(program, w, GL, GB);
            if constexpr (DUAL) {
              const T *D1 = ve + e * program.entries, *w1 = vw + of_edge;
              block.template to_frame<false>(program.out, D1, G, GL1, program.norm.data());
              block.template mix<false>(program, w1, B, L1);
              block.template mix<true>(program, w, B1, L1);
              std::memset(GB1, 0, sizeof(V) * N * program.frame_in);
              block.unmix(program, w1, GL, GB1);
              block.unmix(program, w, GL1, GB1);
              block.weights(program, GL1, B, GL, B1, gw + of_edge);
              if (first_gw) block.weights(program, GL, B, nullptr, nullptr, first_gw + of_edge);
              block.template from_frame<true>(program.in, D1, GB, acc);
              block.from_frame(program.in, D, GB1, acc);
              block.outer(program.out, G, L1, of_D);
              block.outer(program.in, X, GB1, of_D);
              block.outer(program.in, X1, GB, of_D);
            } else {
              block.template mix<false>(program, w, B, L);
              block.weights(program, GL, B, nullptr, nullptr, gw + of_edge);
              block.from_frame(program.in, D, GB, acc);
              block.outer(program.out, G, L, of_D);
              block.outer(program.in, X, GB, of_D);
            }
          });
          T *to = ge + e * program.entries;
          for (int64_t k2 = 0; k2 < program.entries; k2++) {
            T total = 0;
            for (int lane = 0; lane < LANES<T>; lane++) total += of_D[k2][lane];
            to[k2] = total;
          }
        }
        store_sum(sum, program.dim_in, gx + j * program.dim_in * channels);
      }
    }
  }
};

// 0, or 1 if an index of an edge is out of range
template <class T>
int run(const int64_t *program, const int64_t *sizes, const int64_t *index, const T *const *in,
        T *const *out) {
  Problem<T> p{Program(Constants(program)), sizes[0], sizes[1], sizes[2], sizes[3], index,
               in[0],                    in[1],    in[2],    in[3],    in[4],    in[5], in[6]};
  for (int64_t k = 0; k < 2 * p.edges; k++)
    if (index[k] < 0 || index[k] >= p.nodes) return 1;
  if (!p.g || p.vx) {
    const Groups receivers(index + p.edges, p.edges, p.nodes);
    p.vx ? p.template forward<true>(receivers, *out++) : p.template forward<false>(receivers, *out);
  }
  if (p.g) {
    const Groups senders(index, p.edges, p.nodes);
    p.vx ? p.template gradient<true>(senders, out[0], out[1], out[2], out[3])
         : p.template gradient<false>(senders, out[0], out[1], out[2]);
  }
  return 0;
}

}  // namespace

GAUNT_KERNEL(gaunt_convolution_f32, float) { return run(program, sizes, index, in, out); }
GAUNT_KERNEL(gaunt_convolution_f64, double) { return run(program, sizes, index, in, out); }
