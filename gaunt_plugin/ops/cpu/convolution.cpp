// Convolution in the frame of each edge, with its first and second derivatives, on the CPU.
//
// Per edge e from j to i, channel by channel (ops/convolution.py has the formula):
//   B = D(e)^T x_j,   local_r = n_r sum_p w_(e,p) B_source(p),   out_i += D(e) local.
// The sum over edges is linear in x, D, w each, and phi = <g, out> in g, too. So all derivatives
// come from the gradient of phi: the second ones are its derivative along a direction (vx, vD, vw).
// No message of an edge is ever stored. Edges are sorted by the node that a pass sums over: no
// two threads write to the same place, and results don't depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "edges.h"
#include "operators.h"
#include "vectors.h"

namespace {

// An irrep of the features or of the result, and its rows in the frame.
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
struct Irrep {
  int64_t l, pseudo;
};

// What follows from the irreps; ops/convolution.py defines the order of the weights.
struct Layout {
  int64_t dim_in = 0, dim_out = 0, frame_in = 0, frame_out = 0, entries = 0, paths = 0;
  std::vector<Rotation> in, out;
  std::vector<Target> targets;
  std::vector<Path> path;
  std::vector<double> norm;  // per irrep of the result

  explicit Layout(Constants constants) {
    std::vector<Irrep> irreps_in = read(constants), irreps_out = read(constants);
    std::vector<int64_t> degrees(constants.next(0, MOST_IRREPS));
    for (auto &l : degrees) l = constants.next(0, MOST_DEGREE);
    constants.end();
    int64_t lmax_in = 0, lmax_out = 0;
    for (const auto &irrep : irreps_in) lmax_in = std::max(lmax_in, irrep.l);
    for (const auto &irrep : irreps_out) lmax_out = std::max(lmax_out, irrep.l);
    const int64_t mmax = std::min(lmax_in, lmax_out);
    const bool scalar = lmax_in == 0;
    const auto columns = [&](int64_t l) { return scalar ? 1 : 2 * std::min(l, mmax) + 1; };

    // Where the entries of each degree begin among those of an edge.
    std::vector<int64_t> begin(MOST_DEGREE + 1, -1);
    const auto add = [&](int64_t l) { begin[l] = entries, entries += (2 * l + 1) * columns(l); };
    if (scalar)
      for (int64_t l : degrees) add(l);
    else
      for (int64_t l = 0; l <= std::max(lmax_in, lmax_out); l++) add(l);
    for (const auto &irrep : irreps_in) {
      const int64_t dim = 2 * irrep.l + 1;
      in.push_back({dim, dim_in, scalar ? -1 : begin[irrep.l], columns(irrep.l), frame_in});
      dim_in += dim, frame_in += columns(irrep.l);
    }
    for (const auto &irrep : irreps_out) {
      const int64_t dim = 2 * irrep.l + 1;
      if (begin[irrep.l] < 0) Constants::fail();
      out.push_back({dim, dim_out, begin[irrep.l], columns(irrep.l), frame_out});
      dim_out += dim, frame_out += columns(irrep.l);
      int64_t couplings = 0;
      for (int64_t m = -irrep.l; m <= irrep.l; m++)
        couplings += sources(irreps_in, irrep.pseudo, std::abs(m)).size();
      norm.push_back(std::sqrt((scalar ? 1.0 : dim) / std::max<int64_t>(couplings, 1)));
    }
    for (int64_t m = 0; m <= mmax; m++)
      for (int64_t kind = 0; kind < 2; kind++) {
        std::vector<size_t> receivers;
        for (size_t k = 0; k < out.size(); k++)
          if (irreps_out[k].l >= m && irreps_out[k].pseudo == kind) receivers.push_back(k);
        const auto senders = sources(irreps_in, kind, m);
        const int64_t column = std::max<int64_t>(2 * m - 1, 0);
        for (size_t i = 0; i < receivers.size(); i++) {
          const int64_t row = out[receivers[i]].frame + column, first = path.size();
          for (size_t s = 0; s < senders.size(); s++)
            path.push_back({paths + (int64_t)(s * receivers.size() + i),
                            in[senders[s]].frame + column, irreps_in[senders[s]].pseudo != kind});
          targets.push_back({row, m > 0, first, (int64_t)senders.size(), norm[receivers[i]]});
        }
        paths += senders.size() * receivers.size();
      }
  }

 private:
  static constexpr int64_t MOST_IRREPS = 256, MOST_DEGREE = 64;

  static std::vector<Irrep> read(Constants &constants) {
    std::vector<Irrep> irreps(constants.next(1, MOST_IRREPS));
    for (auto &irrep : irreps) irrep = {constants.next(0, MOST_DEGREE), constants.next(0, 1)};
    return irreps;
  }
  // Features that reach order m of a result of this kind, those of the same kind first.
  static std::vector<size_t> sources(const std::vector<Irrep> &irreps, int64_t kind, int64_t m) {
    std::vector<size_t> found;
    for (int64_t other = 0; other < (m > 0 ? 2 : 1); other++)
      for (size_t k = 0; k < irreps.size(); k++)
        if (irreps[k].l >= m && (irreps[k].pseudo != kind) == (bool)other) found.push_back(k);
    return found;
  }
};

// What the frames do to N vectors of channels per row.
template <class T, int N> struct FrameChannels : Channels<T, N> {
  using V = Vec<T>;
  using Channels<T, N>::stride, Channels<T, N>::load, Channels<T, N>::store;

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
  template <bool ADD> void mix(const Layout &layout, const T *w, const V *b, V *local) const {
    for (const auto &t : layout.targets) {
      V plus[N] = {}, minus[N] = {};
      for (int64_t k = t.first; k < t.first + t.count; k++) {
        const auto &p = layout.path[k];
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
  void unmix(const Layout &layout, const T *w, const V *g, V *b) const {
    for (const auto &t : layout.targets) {
      const V *plus = g + t.row * N, *minus = plus + N;
      for (int64_t k = t.first; k < t.first + t.count; k++) {
        const auto &p = layout.path[k];
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
  void weights(const Layout &layout, const V *g, const V *b, const V *g2, const V *b2,
               T *out) const {
    for (const auto &t : layout.targets) {
      for (int64_t k = t.first; k < t.first + t.count; k++) {
        const auto &p = layout.path[k];
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

template <class T> struct Problem : EdgeProblem<T> {
  using V = Vec<T>;
  using EdgeProblem<T>::nodes, EdgeProblem<T>::edges, EdgeProblem<T>::threads;
  using EdgeProblem<T>::senders, EdgeProblem<T>::receivers, EdgeProblem<T>::numel;
  using EdgeProblem<T>::x, EdgeProblem<T>::entries, EdgeProblem<T>::weights, EdgeProblem<T>::g;
  using EdgeProblem<T>::vx, EdgeProblem<T>::ve, EdgeProblem<T>::v_mixing, EdgeProblem<T>::mixing;
  using EdgeProblem<T>::rows, EdgeProblem<T>::width, EdgeProblem<T>::made;
  using EdgeProblem<T>::rows_of, EdgeProblem<T>::weights_of, EdgeProblem<T>::dual_weights_of;
  using EdgeProblem<T>::prefetch_node;
  const Layout &layout;
  int64_t channels;

  Problem(const EdgeProblem<T> &problem, const Layout &layout, int64_t channels) :
      EdgeProblem<T>(problem), layout(layout), channels(channels) {}

  int64_t vectors() const { return vectors_of<T>(channels); }

  // Calls f(channels, first channel) for all blocks of channels.
  template <class F> void blocks(const F &f) const {
    blocks_of_channels<FrameChannels, T>(channels, channels, f);
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
    const T *D = entries + e * layout.entries;
    const int64_t at = senders[e] * layout.dim_in * channels + c;
    if (!rows) block.prefetch_rows(weights + next * numel + c, layout.paths);
    block.load_rows(X, x + at, layout.dim_in);
    block.template to_frame<false>(layout.in, D, X, B);
    if constexpr (DUAL) {
      block.load_rows(X1, vx + at, layout.dim_in);
      block.template to_frame<false>(layout.in, D, X1, B1);
      block.template to_frame<true>(layout.in, ve + e * layout.entries, X, B1);
    }
  }

  template <bool DUAL> void forward(T *out) const {
    const Groups groups(receivers, edges, nodes);
    const int64_t frame_rows = layout.dim_in + layout.frame_in + layout.frame_out;
    const Scratch<T> memory(threads, layout.dim_out * vectors() + 2 * made() + 8 * frame_rows);
#pragma omp parallel num_threads(threads)
    {
      auto scratch = memory.of_thread(omp_get_thread_num());
      V *sum = scratch.take(layout.dim_out * vectors());
      V *made_w = scratch.take(made()), *made_w1 = scratch.take(made());
      V *X = scratch.take(4 * layout.dim_in), *X1 = scratch.take(4 * layout.dim_in);
      V *B = scratch.take(4 * layout.frame_in), *B1 = scratch.take(4 * layout.frame_in);
      V *L = scratch.take(4 * layout.frame_out), *L1 = scratch.take(4 * layout.frame_out);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < nodes; i++) {
        if (groups.start[i] == groups.start[i + 1]) continue;
        load_sum(out + i * layout.dim_out * channels, layout.dim_out, sum);
        for (int64_t k = groups.start[i]; k < groups.start[i + 1]; k++) {
          const int64_t e = groups.order[k];
          const int64_t next = groups.order[std::min(k + 1, edges - 1)];
          const T *D = entries + e * layout.entries, *w = weights_of(e, made_w);
          const T *w1 = DUAL ? dual_weights_of(e, made_w1) : nullptr;
          prefetch_node(x, senders[next], layout.dim_in * channels);
          blocks([&](auto block, int64_t c) {
            V *acc = sum + c / LANES<T> * layout.dim_out;
            features<DUAL>(block, c, e, next, X, X1, B, B1);
            block.template mix<false>(layout, w + c, B, L);
            if constexpr (DUAL) {
              block.template mix<false>(layout, w1 + c, B, L1);
              block.template mix<true>(layout, w + c, B1, L1);
              block.from_frame(layout.out, ve + e * layout.entries, L, acc);
              block.from_frame(layout.out, D, L1, acc);
            } else {
              block.from_frame(layout.out, D, L, acc);
            }
          });
        }
        store_sum(sum, layout.dim_out, out + i * layout.dim_out * channels);
      }
    }
  }

  template <bool DUAL>
  void gradient(T *gx, T *ge, T *gw, T *first_gw = nullptr, T *of_factors = nullptr) const {
    const int64_t frame_rows = layout.dim_in + layout.dim_out + 2 * layout.frame_in +
                               2 * layout.frame_out;
    const Groups groups(senders, edges, nodes);
    const Scratch<T> memory(threads, layout.dim_in * vectors() + layout.entries + 4 * made() +
                                         8 * frame_rows);
#pragma omp parallel num_threads(threads)
    {
      auto scratch = memory.of_thread(omp_get_thread_num());
      V *sum = scratch.take(layout.dim_in * vectors()), *of_D = scratch.take(layout.entries);
      V *made_w = scratch.take(made()), *made_w1 = scratch.take(made());
      V *made_gw = scratch.take(made()), *made_first = scratch.take(made());
      V *X = scratch.take(4 * layout.dim_in), *X1 = scratch.take(4 * layout.dim_in);
      V *G = scratch.take(4 * layout.dim_out);
      V *B = scratch.take(4 * layout.frame_in), *B1 = scratch.take(4 * layout.frame_in);
      V *L = scratch.take(4 * layout.frame_out), *L1 = scratch.take(4 * layout.frame_out);
      V *GL = scratch.take(4 * layout.frame_out), *GL1 = scratch.take(4 * layout.frame_out);
      V *GB = scratch.take(4 * layout.frame_in), *GB1 = scratch.take(4 * layout.frame_in);
#pragma omp for schedule(dynamic, 1)
      for (int64_t j = 0; j < nodes; j++) {
        if (groups.start[j] == groups.start[j + 1]) continue;
        load_sum(gx + j * layout.dim_in * channels, layout.dim_in, sum);
        for (int64_t k = groups.start[j]; k < groups.start[j + 1]; k++) {
          const int64_t e = groups.order[k], i = receivers[e];
          const int64_t next = groups.order[std::min(k + 1, edges - 1)];
          const T *D = entries + e * layout.entries, *weight = weights_of(e, made_w);
          const T *weight1 = DUAL ? dual_weights_of(e, made_w1) : nullptr;
          prefetch_node(g, receivers[next], layout.dim_out * channels);
          T *of_weight = gw ? gw + e * numel : reinterpret_cast<T *>(made_gw);
          T *first = first_gw ? first_gw + e * numel : v_mixing ? reinterpret_cast<T *>(made_first) : nullptr;
          std::memset(of_D, 0, sizeof(V) * layout.entries);
          blocks([&](auto block, int64_t c) {
            constexpr int N = decltype(block)::width;
            V *acc = sum + c / LANES<T> * layout.dim_in;
            const T *w = weight + c;
            features<DUAL>(block, c, e, next, X, X1, B, B1);
            block.load_rows(G, g + i * layout.dim_out * channels + c, layout.dim_out);
            block.template to_frame<false>(layout.out, D, G, GL, layout.norm.data());
            std::memset(GB, 0, sizeof(V) * N * layout.frame_in);
            block.unmix(layout, w, GL, GB);
            if constexpr (DUAL) {
              const T *D1 = ve + e * layout.entries, *w1 = weight1 + c;
              block.template to_frame<false>(layout.out, D1, G, GL1, layout.norm.data());
              block.template mix<false>(layout, w1, B, L1);
              block.template mix<true>(layout, w, B1, L1);
              std::memset(GB1, 0, sizeof(V) * N * layout.frame_in);
              block.unmix(layout, w1, GL, GB1);
              block.unmix(layout, w, GL1, GB1);
              block.weights(layout, GL1, B, GL, B1, of_weight + c);
              if (first) block.weights(layout, GL, B, nullptr, nullptr, first + c);
              block.template from_frame<true>(layout.in, D1, GB, acc);
              block.from_frame(layout.in, D, GB1, acc);
              block.outer(layout.out, G, L1, of_D);
              block.outer(layout.in, X, GB1, of_D);
              block.outer(layout.in, X1, GB, of_D);
            } else {
              block.template mix<false>(layout, w, B, L);
              block.weights(layout, GL, B, nullptr, nullptr, of_weight + c);
              block.from_frame(layout.in, D, GB, acc);
              block.outer(layout.out, G, L, of_D);
              block.outer(layout.in, X, GB, of_D);
            }
          });
          sum_lanes(of_D, layout.entries, ge + e * layout.entries);
          if (of_factors) {
            rows_of(mixing, e).project(of_weight, of_factors + e * width, false);
            if (DUAL && v_mixing)
              rows_of(v_mixing, e).project(first, of_factors + e * width, true);
          }
        }
        store_sum(sum, layout.dim_in, gx + j * layout.dim_in * channels);
      }
    }
  }
};

}  // namespace

GAUNT_OPERATOR(gaunt_convolution) {
  return guarded(message, [&] {
    Arguments arguments(pass, arrays, count, threads);
    const Layout layout{Constants(arguments.take())};
    const EdgeSizes sizes{layout.dim_in, layout.dim_out, layout.entries,
                          layout.paths,  true,           "frames"};
    const auto make = [&](const auto &problem, int64_t channels) {
      return Problem(problem, layout, channels);
    };
    if (arguments.peek().type == FLOAT32)
      call_over_edges<float>(pass, arguments, sizes, threads, matmul, make);
    else
      call_over_edges<double>(pass, arguments, sizes, threads, matmul, make);
  });
}
