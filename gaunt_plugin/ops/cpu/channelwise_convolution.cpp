// Convolution whose paths stay apart, with its first and second derivatives, on the CPU.
//
// ops/channelwise_convolution.py has the formula. Per edge and path the harmonics Y first become a
// small matrix A_(m3 m1) = sum_m2 C_(m1 m2 m3) Y_m2, for as many edges at a time as a vector has
// lanes. With it, per channel,
//   z = w x_j,   out_i += A z,   and of phi = <g, out>
//   h = A^T g_i,   gx_j += w h,   gw = <x_j, h>,   gA = g_i z^T,   gY_m2 = <C_m2, gA>.
// The second derivatives are those of phi's derivative along (vx, vY, vw), with A1 = A(vY) and
// z1 = w vx + vw x:
//   out += A z1 + A1 z,   gx += vw h + w h1,   gw = <x, h1> + <vx, h>,   gA = g z1^T.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "edges.h"
#include "operators.h"
#include "vectors.h"

namespace {

constexpr int64_t MOST_COMPONENTS = 25, MOST_BLOCKS = 4096, MOST_NUMBERS = int64_t(1) << 40;

// Of all edges in a vector: value times a number.
template <class T> struct Term {
  int64_t from;
  T value;
};

// A block of the features.
struct Block {
  int64_t dim, channels, begin;
  int64_t sum;  // where its vectors begin in a sum over edges
  int64_t first_path, end_path;
};
struct Path {
  int64_t block, begin, stride, dim;  // block of the features, and of the result
  int64_t weight, matrix, sum;        // where its weights, its matrix and its vectors begin
  bool diagonal;                      // then the matrix is a number per component
};

template <class T> struct Layout {
  int64_t dim_in = 0, dim_edge, dim_out, numel = 0, elements = 0, sum_in = 0, sum_out = 0;
  std::vector<Block> blocks;
  std::vector<Path> paths;  // ordered by block
  // Elements of the matrices from components of the harmonics; and back.
  std::vector<Term<T>> to_matrix, to_harmonics;
  std::vector<int64_t> of_element, of_harmonic;  // where the terms of each begin

  explicit Layout(Constants constants) {
    blocks.resize(constants.next(1, MOST_BLOCKS));
    for (auto &block : blocks) {
      block.dim = constants.next(1, MOST_COMPONENTS), block.channels = constants.next(1, 1 << 30);
      block.begin = dim_in, block.sum = sum_in;
      dim_in += block.dim * block.channels;
      sum_in += block.dim * vectors_of<T>(block.channels);
    }
    dim_edge = constants.next(1, MOST_BLOCKS), dim_out = constants.next(1, MOST_NUMBERS);
    struct Entry {
      int64_t path, m1, m2, m3;
      double value;
    };
    std::vector<Entry> entries;
    paths.resize(constants.next(1, MOST_BLOCKS));
    for (size_t p = 0; p < paths.size(); p++) {
      auto &path = paths[p];
      path.block = constants.next(0, blocks.size() - 1);
      path.begin = constants.next(0, dim_out), path.stride = constants.next(0, dim_out);
      path.dim = constants.next(1, MOST_COMPONENTS);
      const auto &block = blocks[path.block];
      if (path.begin + (path.dim - 1) * path.stride + block.channels > dim_out) Constants::fail();
      path.weight = numel, path.sum = sum_out, path.diagonal = path.dim == block.dim;
      numel += block.channels;
      sum_out += path.dim * vectors_of<T>(block.channels);
      const int64_t count = constants.next(0, block.dim * dim_edge * path.dim);
      for (int64_t k = 0; k < count; k++) {
        const int64_t m1 = constants.next(0, block.dim - 1), m2 = constants.next(0, dim_edge - 1);
        const int64_t m3 = constants.next(0, path.dim - 1);
        entries.push_back({(int64_t)p, m1, m2, m3, constants.next_value()});
        path.diagonal = path.diagonal && m1 == m3;
      }
      path.matrix = elements, elements += path.diagonal ? path.dim : path.dim * block.dim;
    }
    constants.end();
    const auto element = [&](const Entry &entry) {
      const auto &path = paths[entry.path];
      return path.matrix +
             (path.diagonal ? entry.m3 : entry.m3 * blocks[path.block].dim + entry.m1);
    };
    const auto harmonic = [](const Entry &entry) { return entry.m2; };
    // Terms in the order of what they are added to.
    const auto sorted = [&](int64_t count, auto to, auto from, auto &terms, auto &starts) {
      starts.assign(count + 1, 0), terms.resize(entries.size());
      for (const auto &entry : entries) starts[to(entry) + 1]++;
      for (int64_t k = 0; k < count; k++) starts[k + 1] += starts[k];
      std::vector<int64_t> next(starts.begin(), starts.end() - 1);
      for (const auto &entry : entries) terms[next[to(entry)]++] = {from(entry), (T)entry.value};
    };
    sorted(elements, element, harmonic, to_matrix, of_element);
    sorted(dim_edge, harmonic, element, to_harmonics, of_harmonic);
    std::stable_sort(paths.begin(), paths.end(),
                     [](const Path &a, const Path &b) { return a.block < b.block; });
    for (auto &block : blocks) {
      const int64_t at = &block - blocks.data();
      const auto before = [&](const Path &path) { return path.block < at; };
      const auto until = [&](const Path &path) { return path.block <= at; };
      block.first_path = std::count_if(paths.begin(), paths.end(), before);
      block.end_path = std::count_if(paths.begin(), paths.end(), until);
    }
  }
};

// Calls f with the number of components as a type where it is small, else with 0.
template <class F> void with_components(int64_t dim, const F &f) {
  switch (dim) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 7: return f(std::integral_constant<int, 7>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// N vectors of channels of D components (0: any number).
template <class T, int N, int D> struct Components {
  using V = Vec<T>;
  V of[(D ? D : MOST_COMPONENTS) * N];
};

template <class T> struct Problem : EdgeProblem<T> {
  using V = Vec<T>;
  static constexpr int lanes = LANES<T>;
  using Base = EdgeProblem<T>;
  using Base::dual_weights_of, Base::edges, Base::entries, Base::entry_count, Base::g, Base::made;
  using Base::mixing, Base::nodes, Base::numbers_in, Base::numbers_out, Base::numel;
  using Base::prefetch_node, Base::receivers, Base::rows_of, Base::senders, Base::threads;
  using Base::v_mixing, Base::ve, Base::vx, Base::weights_of, Base::width, Base::x;
  const Layout<T> &layout;

  Problem(const Base &problem, const Layout<T> &layout) : Base(problem), layout(layout) {}

  // Calls f(channels, first channel) for all blocks of channels that fit the registers.
  template <int D, class F>
  static void blocks(int64_t channels, int64_t stride, const F &f) {
    blocks_of_channels<Plain, T, (D > 0 && D < 5) ? 4 : 2>(channels, stride, f);
  }
  template <class S, int N> struct Plain : Channels<S, N> {};

  // Sums over edges, with whole vectors, from and to memory.
  template <class F> void each_in(const F &f) const {
    for (const auto &block : layout.blocks)
      with_components(block.dim, [&](auto D) {
        blocks<D>(block.channels, block.channels, [&](auto part, int64_t c) {
          f(part, block.begin + c, block.sum + c / lanes * block.dim, block.dim);
        });
      });
  }
  template <class F> void each_out(const F &f) const {
    for (const auto &path : layout.paths) {
      const auto &block = layout.blocks[path.block];
      with_components(block.dim, [&](auto D) {
        blocks<D>(block.channels, path.stride, [&](auto part, int64_t c) {
          f(part, path.begin + c, path.sum + c / lanes * path.dim, path.dim);
        });
      });
    }
  }

  // The matrices of some edges, one per lane.
  void matrices(const T *harmonics, const int64_t *which, int64_t count, V *Y, V *A) const {
    for (int64_t m = 0; m < entry_count; m++) {
      V value{};
      for (int64_t lane = 0; lane < count; lane++)
        value[lane] = harmonics[which[lane] * entry_count + m];
      Y[m] = value;
    }
    const auto *term = layout.to_matrix.data();
    for (int64_t k = 0; k < layout.elements; k++) {
      V sum{};
      for (const auto *end = layout.to_matrix.data() + layout.of_element[k + 1]; term < end; term++)
        sum += term->value * Y[term->from];
      A[k] = sum;
    }
  }

  // out_m3 += sum_m1 A_(m3 m1) z_m1; A of a lane
  template <int D, int N>
  static void apply(const Path &path, int64_t dim, const T *A, const V *z, V *out) {
    const int64_t components = D ? D : dim;
    if (path.diagonal) {
      for (int64_t m = 0; m < components; m++)
        for (int q = 0; q < N; q++) out[m * N + q] += A[m * lanes] * z[m * N + q];
      return;
    }
    for (int64_t m3 = 0; m3 < path.dim; m3++, A += components * lanes) {
      V sum[N];
      for (int q = 0; q < N; q++) sum[q] = out[m3 * N + q];
      for (int64_t m1 = 0; m1 < components; m1++)
        for (int q = 0; q < N; q++) sum[q] += A[m1 * lanes] * z[m1 * N + q];
      for (int q = 0; q < N; q++) out[m3 * N + q] = sum[q];
    }
  }

  // h_m1 = sum_m3 A_(m3 m1) g_m3, and gA_(m3 m1) += <g_m3, z_m1> if there is one
  template <int D, int N>
  static void transposed(const Path &path, int64_t dim, const T *A, const V *g, V *h, const V *z,
                         V *gA) {
    const int64_t components = D ? D : dim;
    if (path.diagonal) {
      for (int64_t m = 0; m < components; m++) {
        for (int q = 0; q < N; q++) h[m * N + q] = A[m * lanes] * g[m * N + q];
        if (z) gA[m] += dot<N>(g + m * N, z + m * N);
      }
      return;
    }
    for (int64_t k = 0; k < components * N; k++) h[k] = V{};
    for (int64_t m3 = 0; m3 < path.dim; m3++, A += components * lanes, gA += z ? components : 0)
      for (int64_t m1 = 0; m1 < components; m1++) {
        for (int q = 0; q < N; q++) h[m1 * N + q] += A[m1 * lanes] * g[m3 * N + q];
        if (z) gA[m1] += dot<N>(g + m3 * N, z + m1 * N);
      }
  }
  template <int N> static V dot(const V *a, const V *b) {
    V sum = a[0] * b[0];
    for (int q = 1; q < N; q++) sum += a[q] * b[q];
    return sum;
  }

  // What an edge is made of: matrices as numbers that are `lanes` apart, and weights.
  struct Edge {
    int64_t number, next;
    const T *A, *A1, *w, *w1;
  };
  // Calls f(edge) for the edges of a group.
  template <bool DUAL> class Edges {
   public:
    static int64_t size(const Problem &p) {
      return p.entry_count + 2 * p.layout.elements + 2 * p.made();
    }
    Edges(const Problem &p, typename Scratch<T>::Part &scratch) :
        p(p), Y(scratch.take(p.entry_count)), A(scratch.take(p.layout.elements)),
        A1(scratch.take(p.layout.elements)), w(scratch.take(p.made())),
        w1(scratch.take(p.made())) {}

    template <class F> void operator()(const Groups &groups, int64_t group, const F &f) const {
      const int64_t begin = groups.start[group], end = groups.start[group + 1];
      for (int64_t k = begin; k < end; k++) {
        const int64_t e = groups.order[k], lane = (k - begin) % lanes;
        if (lane == 0) {
          const int64_t count = std::min<int64_t>(lanes, end - k);
          p.matrices(p.entries, &groups.order[k], count, Y, A);
          if (DUAL) p.matrices(p.ve, &groups.order[k], count, Y, A1);
        }
        f(Edge{e, groups.order[std::min(k + 1, p.edges - 1)],
               reinterpret_cast<const T *>(A) + lane, reinterpret_cast<const T *>(A1) + lane,
               p.weights_of(e, w), DUAL ? p.dual_weights_of(e, w1) : nullptr});
      }
    }

   private:
    const Problem &p;
    V *Y, *A, *A1, *w, *w1;
  };

  // Calls f(D, channels, block, first channel) for all channels of the features.
  template <class F> void each_block(const F &f) const {
    for (const auto &block : layout.blocks)
      with_components(block.dim, [&](auto D) {
        blocks<D>(block.channels, block.channels,
                  [&](auto part, int64_t c) { f(D, part, block, c); });
      });
  }

  template <bool DUAL> void forward(T *out) const {
    const Groups groups(receivers, edges, nodes);
    const Scratch<T> memory(threads, layout.sum_out + Edges<DUAL>::size(*this));
#pragma omp parallel num_threads(threads)
    {
      auto scratch = memory.of_thread(omp_get_thread_num());
      V *sum = scratch.take(layout.sum_out);
      const Edges<DUAL> each_edge(*this, scratch);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < nodes; i++) {
        if (groups.start[i] == groups.start[i + 1]) continue;
        T *of_node = out + i * numbers_out;
        each_out([&](auto part, int64_t at, int64_t in_sum, int64_t rows) {
          part.load_rows(sum + in_sum, of_node + at, rows);
        });
        each_edge(groups, i, [&](const Edge &edge) {
          prefetch_node(x, senders[edge.next], numbers_in);
          each_block([&](auto D, auto part, const Block &block, int64_t c) {
            add_edge<DUAL, D>(edge, block, part, c, sum);
          });
        });
        each_out([&](auto part, int64_t at, int64_t in_sum, int64_t rows) {
          part.store_rows(of_node + at, sum + in_sum, rows);
        });
      }
    }
  }

  template <bool DUAL, int D, class C>
  void add_edge(const Edge &edge, const Block &block, const C &part, int64_t c, V *sum) const {
    constexpr int N = C::width;
    const int64_t dim = D ? D : block.dim, at = senders[edge.number] * numbers_in;
    Components<T, N, D> X, X1, Z, Z1;
    part.load_rows(X.of, x + at + block.begin + c, dim);
    if (DUAL) part.load_rows(X1.of, vx + at + block.begin + c, dim);
    for (int64_t p = block.first_path; p < block.end_path; p++) {
      const auto &path = layout.paths[p];
      V *to = sum + path.sum + c / lanes * path.dim;
      V weight[N], weight1[N];
      part.load(weight, edge.w + path.weight + c);
      scale<N>(dim, weight, X.of, Z.of);
      if constexpr (DUAL) {
        part.load(weight1, edge.w1 + path.weight + c);
        scale<N>(dim, weight, X1.of, Z1.of, weight1, X.of);
        apply<D, N>(path, dim, edge.A + path.matrix * lanes, Z1.of, to);
        apply<D, N>(path, dim, edge.A1 + path.matrix * lanes, Z.of, to);
      } else {
        apply<D, N>(path, dim, edge.A + path.matrix * lanes, Z.of, to);
      }
    }
  }
  // z = w x (+ w1 x1)
  template <int N>
  static void scale(int64_t dim, const V *w, const V *x, V *z, const V *w1 = nullptr,
                    const V *x1 = nullptr) {
    for (int64_t m = 0; m < dim; m++)
      for (int q = 0; q < N; q++) {
        z[m * N + q] = w[q] * x[m * N + q];
        if (w1) z[m * N + q] += w1[q] * x1[m * N + q];
      }
  }

  template <bool DUAL>
  void gradient(T *gx, T *ge, T *gw, T *first_gw = nullptr, T *of_factors = nullptr) const {
    const Groups groups(senders, edges, nodes);
    const Scratch<T> memory(threads, layout.sum_in + layout.elements + entry_count + 2 * made() +
                                         Edges<DUAL>::size(*this));
#pragma omp parallel num_threads(threads)
    {
      auto scratch = memory.of_thread(omp_get_thread_num());
      V *sum = scratch.take(layout.sum_in), *gA = scratch.take(layout.elements);
      V *gY = scratch.take(entry_count);
      T *made_gw = reinterpret_cast<T *>(scratch.take(made()));
      T *made_first = reinterpret_cast<T *>(scratch.take(made()));
      const Edges<DUAL> each_edge(*this, scratch);
#pragma omp for schedule(dynamic, 1)
      for (int64_t j = 0; j < nodes; j++) {
        if (groups.start[j] == groups.start[j + 1]) continue;
        T *of_node = gx + j * numbers_in;
        each_in([&](auto part, int64_t at, int64_t in_sum, int64_t rows) {
          part.load_rows(sum + in_sum, of_node + at, rows);
        });
        each_edge(groups, j, [&](const Edge &edge) {
          const int64_t e = edge.number;
          prefetch_node(g, receivers[edge.next], numbers_out);
          T *of_w = gw ? gw + e * numel : made_gw;
          T *first = first_gw ? first_gw + e * numel : DUAL && v_mixing ? made_first : nullptr;
          std::memset(gA, 0, sizeof(V) * layout.elements);
          each_block([&](auto D, auto part, const Block &block, int64_t c) {
            gradient_of_edge<DUAL, D>(edge, block, part, c, sum, of_w, first, gA);
          });
          of_harmonics(gA, gY, ge + e * entry_count);
          if (of_factors) {
            rows_of(mixing, e).project(of_w, of_factors + e * width, false);
            if (DUAL && v_mixing) rows_of(v_mixing, e).project(first, of_factors + e * width, true);
          }
        });
        each_in([&](auto part, int64_t at, int64_t in_sum, int64_t rows) {
          part.store_rows(of_node + at, sum + in_sum, rows);
        });
      }
    }
  }

  template <bool DUAL, int D, class C>
  void gradient_of_edge(const Edge &edge, const Block &block, const C &part, int64_t c, V *sum,
                        T *of_w, T *first, V *gA) const {
    const int64_t sender = senders[edge.number] * numbers_in;
    const int64_t receiver = receivers[edge.number] * numbers_out;
    constexpr int N = C::width;
    const int64_t dim = D ? D : block.dim;
    Components<T, N, D> X, X1, Z, H, H1, S;
    Components<T, N, 0> G;
    V *to = sum + block.sum + c / lanes * dim;
    part.load_rows(X.of, x + sender + block.begin + c, dim);
    if (DUAL) part.load_rows(X1.of, vx + sender + block.begin + c, dim);
    for (int64_t m = 0; m < dim * N; m++) S.of[m] = to[m];
    for (int64_t p = block.first_path; p < block.end_path; p++) {
      const auto &path = layout.paths[p];
      V weight[N], weight1[N], sum_w[N] = {};
      C{{path.stride, part.valid}}.load_rows(G.of, g + receiver + path.begin + c, path.dim);
      part.load(weight, edge.w + path.weight + c);
      if constexpr (DUAL) {
        part.load(weight1, edge.w1 + path.weight + c);
        scale<N>(dim, weight, X1.of, Z.of, weight1, X.of);
      } else {
        scale<N>(dim, weight, X.of, Z.of);
      }
      transposed<D, N>(path, dim, edge.A + path.matrix * lanes, G.of, H.of, Z.of, gA + path.matrix);
      if constexpr (DUAL) {
        transposed<D, N>(path, dim, edge.A1 + path.matrix * lanes, G.of, H1.of, nullptr, nullptr);
        V sum_first[N] = {};
        for (int64_t m = 0; m < dim; m++)
          for (int q = 0; q < N; q++) {
            const int64_t k = m * N + q;
            S.of[k] += weight1[q] * H.of[k] + weight[q] * H1.of[k];
            sum_w[q] += X.of[k] * H1.of[k] + X1.of[k] * H.of[k];
            sum_first[q] += X.of[k] * H.of[k];
          }
        if (first) part.store(first + path.weight + c, sum_first);
      } else {
        for (int64_t m = 0; m < dim; m++)
          for (int q = 0; q < N; q++) {
            S.of[m * N + q] += weight[q] * H.of[m * N + q];
            sum_w[q] += X.of[m * N + q] * H.of[m * N + q];
          }
      }
      part.store(of_w + path.weight + c, sum_w);
    }
    for (int64_t m = 0; m < dim * N; m++) to[m] = S.of[m];
  }

  // gY_m2 = <C_m2, gA>, lanes summed; gY: vectors of them
  void of_harmonics(const V *gA, V *gY, T *to) const {
    for (int64_t m = 0; m < entry_count; m++) {
      const auto *term = layout.to_harmonics.data() + layout.of_harmonic[m];
      const auto *end = layout.to_harmonics.data() + layout.of_harmonic[m + 1];
      V sum[4] = {};
      for (; term + 4 <= end; term += 4)
        for (int q = 0; q < 4; q++) sum[q] += term[q].value * gA[term[q].from];
      for (; term < end; term++) sum[0] += term->value * gA[term->from];
      gY[m] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    sum_lanes(gY, entry_count, to);
  }
};

template <class T>
void call(int64_t pass, Arguments &arguments, const GauntArray &constants, int64_t threads,
          GauntMatmul matmul) {
  const Layout<T> layout{Constants(constants)};
  const EdgeSizes sizes{layout.dim_in, layout.dim_out, layout.dim_edge,
                        layout.numel,  false,          "harmonics"};
  const auto make = [&](const EdgeProblem<T> &problem, int64_t) {
    return Problem<T>(problem, layout);
  };
  call_over_edges<T>(pass, arguments, sizes, threads, matmul, make);
}

}  // namespace

GAUNT_OPERATOR(gaunt_channelwise_convolution) {
  return guarded(message, [&] {
    Arguments arguments(pass, arrays, count, threads);
    const auto &constants = arguments.take();
    if (arguments.peek().type == FLOAT32)
      call<float>(pass, arguments, constants, threads, matmul);
    else
      call<double>(pass, arguments, constants, threads, matmul);
  });
}
