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

template <class T> struct Problem {
  using V = Vec<T>;
  const Layout &layout;
  int64_t nodes, edges, channels, threads;
  const int64_t *senders, *receivers;
  const T *x, *entries, *weights, *g;  // g: gradient of the result
  const T *vx, *ve, *vw;               // direction of the second derivative
  // Not null: `weights` has `width` factors per edge, of as many rows of `mixing` from rows[e] on.
  const int64_t *rows;
  int64_t width;
  const T *mixing, *v_mixing;

  int64_t numel() const { return layout.paths * channels; }
  Rows<T> rows_of(const T *matrix, int64_t e) const {
    return {matrix + rows[e] * numel(), width, numel()};
  }
  // Weights of an edge, if need be made in `memory`, and their derivatives.
  const T *weights_of(int64_t e, V *memory) const {
    if (!rows) return weights + e * numel();
    T *made = reinterpret_cast<T *>(memory);
    rows_of(mixing, e).combine(weights + e * width, made, false);
    return made;
  }
  const T *dual_weights_of(int64_t e, V *memory) const {
    if (!rows) return vw + e * numel();
    T *made = reinterpret_cast<T *>(memory);
    rows_of(mixing, e).combine(vw + e * width, made, false);
    if (v_mixing) rows_of(v_mixing, e).combine(weights + e * width, made, true);
    return made;
  }
  // Vectors for the weights of an edge.
  int64_t made() const { return rows ? (numel() + LANES<T> - 1) / LANES<T> : 0; }

  int64_t vectors() const { return (channels + LANES<T> - 1) / LANES<T>; }

  // Fetch what the next edge needs of a node: nodes come in no order.
  void prefetch_node(const T *of_nodes, int64_t node, int64_t numbers) const {
    const auto *bytes = reinterpret_cast<const char *>(of_nodes + node * numbers);
    for (size_t byte = 0; byte < sizeof(T) * numbers; byte += 64) __builtin_prefetch(bytes + byte);
  }

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
    const T *D = entries + e * layout.entries;
    const int64_t at = senders[e] * layout.dim_in * channels + c;
    if (!rows) block.prefetch_rows(weights + next * numel() + c, layout.paths);
    block.load_rows(X, x + at, layout.dim_in);
    block.template to_frame<false>(layout.in, D, X, B);
    if constexpr (DUAL) {
      block.load_rows(X1, vx + at, layout.dim_in);
      block.template to_frame<false>(layout.in, D, X1, B1);
      block.template to_frame<true>(layout.in, ve + e * layout.entries, X, B1);
    }
  }

  // out_i += its sum over edges, or the derivative along (vx, ve, vw).
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

  // Gradients of <g, out> with respect to x (added to gx), entries and weights, or their
  // derivatives. first_gw: with DUAL the gradient of the weights itself, too, or null. With `rows`
  // these two may be null, and factors are what is wanted.
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
          T *of_weight = gw ? gw + e * numel() : reinterpret_cast<T *>(made_gw);
          T *first = first_gw ? first_gw + e * numel() : v_mixing ? reinterpret_cast<T *>(made_first) : nullptr;
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

// of_mixing += factors x gradients of the weights, for all edges; each thread has its columns.
template <class T>
void spread(const Problem<T> &p, const T *factors, const T *of_weights, T *of_mixing) {
  const int64_t numel = p.numel(), columns = (numel + p.threads - 1) / p.threads;
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

template <class T> void run(Problem<T> p, const Call<T> &call) {
  const int64_t numel = p.layout.paths * p.channels;
  const int64_t edges = p.edges, width = p.width, entries = p.layout.entries;
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
  const int64_t of_nodes = p.nodes * p.channels;
  zero(call.value, of_nodes * p.layout.dim_out), zero(call.of_g, of_nodes * p.layout.dim_out);
  zero(call.of_x, of_nodes * p.layout.dim_in), zero(call.of_mixing, call.mixing_rows * numel);
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
    Problem<T> part = p;
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

template <class T>
void call(int64_t pass, Arguments &arguments, const Layout &layout, int64_t threads,
          GauntMatmul matmul) {
  const int64_t type = sizeof(T) == 4 ? FLOAT32 : FLOAT64;
  const auto &first = arguments.peek();
  const int64_t nodes = first.dim == 3 ? first.sizes[0] : -1;
  const int64_t channels = first.dim == 3 ? first.sizes[2] : -1;
  const auto take = [&](const char *name, std::initializer_list<int64_t> sizes) {
    return static_cast<T *>(arguments.take(name, type, sizes));
  };
  const auto take_optional = [&](const char *name, std::initializer_list<int64_t> sizes) {
    if (!arguments.left_out()) return take(name, sizes);
    arguments.take();
    return (T *)nullptr;
  };
  const T *x = take("node_feats", {nodes, layout.dim_in, channels});
  const auto &second = arguments.peek();
  const int64_t edges = second.dim == 2 ? second.sizes[0] : -1;
  const T *D = take("frames", {edges, layout.entries});
  const auto &third = arguments.peek();
  const int64_t numel = layout.paths * channels;
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
  Problem<T> p{layout, nodes, edges, channels, threads, index, index + edges, x, D, weights,
               nullptr, nullptr, nullptr, nullptr, rows, width, mixing, nullptr};
  Call<T> c{pass, mixing_rows, matmul};
  const std::initializer_list<int64_t> of_result = {nodes, layout.dim_out, channels};
  if (pass != FORWARD) p.g = take("grad", of_result);
  if (pass == DOUBLE_BACKWARD) {
    p.vx = take("direction of node_feats", {nodes, layout.dim_in, channels});
    p.ve = take("direction of frames", {edges, layout.entries});
    p.vw = take("direction of weights", {edges, width});
    p.v_mixing = take_optional("direction of mixing", {mixing_rows, numel});
    if (p.v_mixing && !mixing) throw WrongArgument("direction of mixing without mixing");
  }
  if (pass == FORWARD) c.value = take("result", of_result);
  if (pass == DOUBLE_BACKWARD) c.of_g = take("gradient of grad", of_result);
  if (pass != FORWARD) {
    c.of_x = take("gradient of node_feats", {nodes, layout.dim_in, channels});
    c.of_entries = take("gradient of frames", {edges, layout.entries});
    c.of_weights = take("gradient of weights", {edges, width});
    c.of_mixing = take_optional("gradient of mixing", {mixing_rows, numel});
    if (c.of_mixing && !mixing) throw WrongArgument("gradient of mixing without mixing");
  }
  arguments.finish();
  run(p, c);
}

}  // namespace

GAUNT_OPERATOR(gaunt_convolution) {
  return guarded(message, [&] {
    Arguments arguments(pass, arrays, count, threads);
    const Layout layout{Constants(arguments.take())};
    if (arguments.peek().type == FLOAT32)
      call<float>(pass, arguments, layout, threads, matmul);
    else
      call<double>(pass, arguments, layout, threads, matmul);
  });
}
