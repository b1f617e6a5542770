// Powers of functions on the sphere, summed and projected, with derivatives, on the CPU.
//
// Per atom and channel (ops/powers.py has the formula), with X_l the part of degree l of the
// input at a node of the quadrature:
//   f_v = sum_l u_vl X_l,   P_L = sum_vn w_vnL t_nL f_v^n,   out_j = sum over nodes of W_j P_L(j).
// Nodes come in antipodal pairs, where even degrees agree and odd ones differ by a sign. So with
// f = e + o at one node, f = e - o at the other, and f^n = s_n + d_n likewise,
//   s_(n+1) = e s_n + o d_n,   d_(n+1) = e d_n + o s_n,
// and outputs of even degree need s, those of odd degree d, of one node per pair.
// phi = <g, out> is linear in g and w. All derivatives come from its gradient: the second ones are
// the gradient's derivative along a direction, which the numbers carry along (duals.h).
// A vector holds neighbouring channels. Jobs, some channels of an atom each, share no result: it
// doesn't depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "duals.h"
#include "operators.h"
#include "vectors.h"

namespace {

constexpr int BLOCK = 4;  // pairs of nodes at a time
constexpr int WIDTH = 8;  // vectors of channels in a job, at most
constexpr int PASS = 2;   // outputs of even degree, and of odd degree, at a time

// Between components and functions on the grid, one function per group of components.
template <class T> struct Side {
  int64_t even, odd, components, blocks;
  std::vector<int64_t> label, size, component;  // of each group, even ones first
  std::vector<T> table;                         // [blocks, components, BLOCK]

  // Degrees, even ones first; one function of each parity where they aren't weighted apart.
  void group(const std::vector<int64_t> &degrees, bool apart) {
    std::vector<int64_t> begin(1);
    for (int64_t l : degrees) begin.push_back(begin.back() + 2 * l + 1);
    components = begin.back(), even = odd = 0;
    for (int64_t parity = 0; parity < 2; parity++)
      for (size_t k = 0; k < degrees.size(); k++) {
        if (degrees[k] % 2 != parity) continue;
        int64_t &count = parity ? odd : even;
        if (apart || count == 0) count++, label.push_back(k), size.push_back(0);
        for (int64_t i = begin[k]; i < begin[k + 1]; i++) component.push_back(i);
        size.back() += 2 * degrees[k] + 1;
      }
  }
  void read(Constants &constants, int64_t pairs, const std::vector<double> &scale) {
    blocks = (pairs + BLOCK - 1) / BLOCK;
    table.resize(blocks * components * BLOCK);
    std::vector<int64_t> place(components);
    for (int64_t i = 0; i < components; i++) place[component[i]] = i;
    for (int64_t g = 0; g < pairs; g++)
      for (int64_t i = 0; i < components; i++)
        table[(g / BLOCK * components + place[i]) * BLOCK + g % BLOCK] =
            constants.next_value() * scale[i];
  }
  int64_t groups() const { return even + odd; }
  int64_t numbers() const { return blocks * BLOCK * groups(); }

  // f[node, group] = sum_i Y_i x_i
  template <class S> void values(const S *x, S *f) const {
    const T *y = table.data();
    for (int64_t b = 0; b < blocks; b++, f += BLOCK * groups()) {
      const S *xi = x;
      for (int64_t k = 0; k < groups(); k++) {
        S sum[BLOCK] = {};
        for (int64_t i = 0; i < size[k]; i++, xi++, y += BLOCK)
          for (int q = 0; q < BLOCK; q++) add(sum[q], y[q], *xi);
        for (int q = 0; q < BLOCK; q++) f[q * groups() + k] = sum[q];
      }
    }
  }
  // x_i = sum over nodes of Y_i f, the transpose
  template <class S> void adjoint(const S *f, S *x) const {
    const T *y = table.data();
    std::fill(x, x + components, S{});
    for (int64_t b = 0; b < blocks; b++, f += BLOCK * groups()) {
      S *xi = x;
      for (int64_t k = 0; k < groups(); k++) {
        S value[BLOCK];
        for (int q = 0; q < BLOCK; q++) value[q] = f[q * groups() + k];
        for (int64_t i = 0; i < size[k]; i++, xi++, y += BLOCK) {
          S sum = *xi;
          for (int q = 0; q < BLOCK; q++) add(sum, y[q], value[q]);
          *xi = sum;
        }
      }
    }
  }
};

// Outputs from these on, and where their weights begin.
struct Pass {
  int64_t even, odd, count_even, count_odd, place;
};
// A row of channels of w or u, and its place among a job's.
struct Row {
  int64_t row, place, order;
  double factor;
};

template <class T> struct Layout {
  int64_t correlation, pairs, rank, terms = 0;
  bool weighted;  // the degrees of the input, per view
  Side<T> in, out;
  std::vector<Pass> passes;
  std::vector<Row> w, u;
  int64_t places = 0;  // of w: per pass, view and order those of its outputs, also if not reached

  Layout(Constants constants, int64_t rank) : rank(rank) {
    const auto degrees_in = degrees(constants), degrees_out = degrees(constants);
    correlation = constants.next(2, 64), weighted = constants.next(0, 1);
    pairs = constants.next(1, 1 << 24);
    std::vector<double> scale;
    for (int64_t l : degrees_in) scale.insert(scale.end(), 2 * l + 1, constants.next_value());
    in.group(degrees_in, weighted), out.group(degrees_out, true);
    // Weights are numbered in the order of the factors that aren't 0.
    const int64_t groups = out.groups();
    std::vector<double> factors((correlation - 1) * groups);
    std::vector<int64_t> term(factors.size(), -1);
    for (size_t k = 0; k < factors.size(); k++) {
      factors[k] = constants.next_value();
      if (factors[k] > 0) term[k] = terms++;
    }
    in.read(constants, pairs, scale);
    out.read(constants, pairs, std::vector<double>(out.components, 1.0));
    constants.end();
    for (int64_t k = 0; k < std::max(out.even, out.odd); k += PASS) {
      const int64_t e = std::clamp<int64_t>(out.even - k, 0, PASS);
      const int64_t o = std::clamp<int64_t>(out.odd - k, 0, PASS);
      passes.push_back({k, out.even + k, e, o, places});
      for (int64_t v = 0; v < rank; v++)
        for (int64_t n = 0; n < correlation - 1; n++)
          for (int64_t j = 0; j < e + o; j++, places++) {
            const int64_t at = n * groups + out.label[j < e ? k + j : out.even + k + j - e];
            if (term[at] >= 0) w.push_back({v * terms + term[at], places, n + 2, factors[at]});
          }
    }
    for (int64_t v = 0; weighted && v < rank; v++)
      for (int64_t l = 0; l < in.groups(); l++)
        u.push_back({v * in.groups() + in.label[l], v * in.groups() + l, 1, 1.0});
  }

 private:
  static std::vector<int64_t> degrees(Constants &constants) {
    std::vector<int64_t> all(constants.next(1, 256));
    for (auto &l : all) l = constants.next(0, 64);
    return all;
  }
};

// What a job works on, for one vector of channels.
template <class S, class V> struct Job {
  const S *u, *w;
  S *X, *P;         // input and P on the grid
  S *gu, *gw, *gX;  // gradients
  V *G;             // gradient of the output on the grid
};

template <class S> S combine(const S *u, const S *x, int64_t count) {
  S sum{};
  for (int64_t k = 0; k < count; k++) add_product(sum, u[k], x[k]);
  return sum;
}

// Outputs of one pass at all nodes; with GRADIENT, where w is n t w, the gradients of phi, too.
template <class T, class S, bool OUT, bool GRADIENT, int E, int O>
void on_grid(const Layout<T> &layout, const Pass &pass, const Job<S, Vec<T>> &j) {
  using V = Vec<T>;
  const int64_t even = layout.in.even, odd = layout.in.odd;
  for (int64_t node = 0; node < layout.pairs; node++) {
    const S *x = j.X + node * (even + odd), *u = j.u, *w = j.w + pass.place;
    S *gx = j.gX + node * (even + odd), *gu = j.gu, *gw = j.gw + pass.place;
    V G[E + O];
    S P[E + O] = {};
    const int64_t outputs = node * layout.out.groups();
    if constexpr (GRADIENT) {
      for (int k = 0; k < E; k++) G[k] = j.G[outputs + pass.even + k];
      for (int k = 0; k < O; k++) G[E + k] = j.G[outputs + pass.odd + k];
    }
    for (int64_t v = 0; v < layout.rank; v++) {
      S e{}, o{};
      if (layout.weighted) {
        e = combine(u, x, even), o = combine(u + even, x + even, odd);
      } else {
        if (even) e = x[0];
        if (odd) o = x[even];
      }
      S s = e, d = o, ge{}, go{};
      for (int64_t n = 2; n <= layout.correlation; n++, w += E + O) {
        if constexpr (GRADIENT) {
          S a{}, b{};
          for (int k = 0; k < E; k++) add_product(a, w[k], G[k]);
          for (int k = 0; k < O; k++) add_product(b, w[E + k], G[E + k]);
          add_product(ge, a, s), add_product(ge, b, d);
          add_product(go, a, d), add_product(go, b, s);
        }
        S next = e * s;
        add_product(next, o, d);
        d = e * d, add_product(d, o, s), s = next;
        if constexpr (GRADIENT) {
          for (int k = 0; k < E; k++) add_product(gw[k], s, G[k]);
          for (int k = 0; k < O; k++) add_product(gw[E + k], d, G[E + k]);
          gw += E + O;
        }
        if constexpr (OUT) {
          S se = s, so = d;
          if constexpr (GRADIENT) se = so = S{}, add(se, (T)1 / n, s), add(so, (T)1 / n, d);
          for (int k = 0; k < E; k++) add_product(P[k], w[k], se);
          for (int k = 0; k < O; k++) add_product(P[E + k], w[E + k], so);
        }
      }
      if constexpr (GRADIENT) {
        if (layout.weighted) {
          for (int64_t k = 0; k < even + odd; k++) {
            const S &gf = k < even ? ge : go;
            add_product(gx[k], u[k], gf), add_product(gu[k], x[k], gf);
          }
        } else {
          if (even) gx[0] = gx[0] + ge;
          if (odd) gx[even] = gx[even] + go;
        }
        gu += even + odd;
      }
      u += even + odd;
    }
    if constexpr (OUT) {
      for (int k = 0; k < E; k++) j.P[outputs + pass.even + k] = P[k];
      for (int k = 0; k < O; k++) j.P[outputs + pass.odd + k] = P[E + k];
    }
  }
}

template <class T, class S, bool OUT, bool GRADIENT>
void on_grid(const Layout<T> &layout, const Job<S, Vec<T>> &job) {
  for (const auto &pass : layout.passes) {
    auto run = [&](auto e, auto o) {
      on_grid<T, S, OUT, GRADIENT, e.value, o.value>(layout, pass, job);
    };
    using Zero = std::integral_constant<int, 0>;
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    static_assert(PASS == 2, "all counts are below");
    switch (pass.count_even * 3 + pass.count_odd) {
      case 1: run(Zero{}, One{}); break;
      case 2: run(Zero{}, Two{}); break;
      case 3: run(One{}, Zero{}); break;
      case 4: run(One{}, One{}); break;
      case 5: run(One{}, Two{}); break;
      case 6: run(Two{}, Zero{}); break;
      case 7: run(Two{}, One{}); break;
      default: run(Two{}, Two{});
    }
  }
}

// Channels of an atom that a job has.
template <class T> struct Channels {
  using V = Vec<T>;
  int64_t valid;

  V load(const T *from) const { return ::load(from, valid); }
  V load(const T *from, int64_t stride) const {
    V value{};
    if (valid == LANES<T>) {
      for (int lane = 0; lane < LANES<T>; lane++) value[lane] = from[lane * stride];
    } else {
      for (int64_t lane = 0; lane < valid; lane++) value[lane] = from[lane * stride];
    }
    return value;
  }
  void store(T *to, const V &value) const { ::store(to, value, valid); }
  void store(T *to, const V &value, int64_t stride) const {
    for (int64_t lane = 0; lane < valid; lane++) to[lane * stride] = value[lane];
  }
};

template <class T> struct Operands {
  T *x, *w, *u;
};

// Null: left out.
template <class T> struct Call {
  int64_t atoms, channels, threads;
  Operands<T> in;
  const T *g;
  Operands<T> v;  // direction, for S that are dual
  T *out;         // the result, or the gradient of g
  Operands<T> gradients;
};

template <class T, class S, bool OUT, bool GRADIENT>
void run(const Layout<T> &layout, const Call<T> &call) {
  using V = Vec<T>;
  constexpr bool dual = !std::is_same_v<S, V>;
  constexpr int lanes = LANES<T>;
  const int64_t atoms = call.atoms, channels = call.channels;
  const int64_t blocks = (channels + WIDTH * lanes - 1) / (WIDTH * lanes);
  const int64_t dim_in = layout.in.components, dim_out = layout.out.components;
  const int64_t of_w = layout.places, of_u = layout.u.size();
  const int64_t per_number = sizeof(S) / sizeof(V);
  const Scratch<T> memory(call.threads,
                          2 * per_number *
                              (dim_in + dim_out + WIDTH * (of_w + of_u) + layout.in.numbers() +
                               layout.out.numbers()));
#pragma omp parallel num_threads(call.threads)
  {
    auto scratch = memory.of_thread(omp_get_thread_num());
    auto take = [&](int64_t n) {
      S *p = reinterpret_cast<S *>(scratch.take(per_number * n));
      std::fill(p, p + n, S{});
      return p;
    };
    S *x = take(dim_in), *gx = take(dim_in), *y = take(dim_out);
    S *w = take(WIDTH * of_w), *gw = take(WIDTH * of_w);
    S *u = take(WIDTH * of_u), *gu = take(WIDTH * of_u);
    V *gy = scratch.take(dim_out);
    Job<S, V> job;
    job.X = take(layout.in.numbers()), job.gX = take(layout.in.numbers());
    job.P = take(layout.out.numbers()), job.G = scratch.take(layout.out.numbers());
#pragma omp for schedule(static)
    for (int64_t k = 0; k < atoms * blocks; k++) {
      const int64_t atom = k / blocks, first = k % blocks * WIDTH * lanes;
      // Calls f(vector, channels that it has, first of them).
      auto each_vector = [&](auto f) {
        const int64_t end = std::min(channels, first + WIDTH * lanes);
        for (int64_t q = 0, c = first; c < end; q++, c += lanes)
          f(q, Channels<T>{std::min<int64_t>(lanes, channels - c)}, c);
      };
      // Rows lie far apart: all vectors of one are read and written together.
      auto load = [&](const std::vector<Row> &rows, const T *from, const T *direction, S *to,
                      int64_t places) {
        for (const auto &r : rows) {
          const int64_t at = (atom * rows.size() + r.row) * channels;
          const T t = GRADIENT ? r.factor * r.order : r.factor;
          each_vector([&](int64_t q, auto block, int64_t c) {
            set(to[q * places + r.place], t * block.load(from + at + c),
                dual && direction ? t * block.load(direction + at + c) : V{});
          });
        }
      };
      auto store = [&](const std::vector<Row> &rows, const S *from, T *to, int64_t places) {
        for (const auto &r : rows) {
          const int64_t at = (atom * rows.size() + r.row) * channels;
          each_vector([&](int64_t q, auto block, int64_t c) {
            block.store(to + at + c, (T)r.factor * result(from[q * places + r.place]));
          });
        }
      };
      load(layout.w, call.in.w, call.v.w, w, of_w), load(layout.u, call.in.u, call.v.u, u, of_u);
      if constexpr (GRADIENT)
        std::fill(gw, gw + WIDTH * of_w, S{}), std::fill(gu, gu + WIDTH * of_u, S{});
      each_vector([&](int64_t q, auto block, int64_t c) {
        job.w = w + q * of_w, job.gw = gw + q * of_w, job.u = u + q * of_u, job.gu = gu + q * of_u;
        const int64_t of_x = (atom * channels + c) * dim_in, of_y = (atom * channels + c) * dim_out;
        for (int64_t i = 0; i < dim_in; i++) {
          const int64_t at = of_x + layout.in.component[i];
          set(x[i], block.load(call.in.x + at, dim_in), dual ? block.load(call.v.x + at, dim_in) : V{});
        }
        layout.in.values(x, job.X);
        if constexpr (GRADIENT) {
          for (int64_t i = 0; i < dim_out; i++)
            gy[i] = block.load(call.g + of_y + layout.out.component[i], dim_out);
          layout.out.values(gy, job.G);
          std::fill(job.gX, job.gX + layout.in.numbers(), S{});
        }
        on_grid<T, S, OUT, GRADIENT>(layout, job);
        if constexpr (OUT) {
          layout.out.adjoint(job.P, y);
          for (int64_t i = 0; i < dim_out; i++)
            block.store(call.out + of_y + layout.out.component[i], result(y[i]), dim_out);
        }
        if constexpr (GRADIENT) {
          layout.in.adjoint(job.gX, gx);
          for (int64_t i = 0; i < dim_in; i++)
            block.store(call.gradients.x + of_x + layout.in.component[i], result(gx[i]), dim_in);
        }
      });
      if constexpr (GRADIENT) {
        store(layout.w, gw, call.gradients.w, of_w);
        if (call.gradients.u) store(layout.u, gu, call.gradients.u, of_u);
      }
    }
  }
}

template <class T>
void call(int64_t pass, Arguments &arguments, const Constants &constants, int64_t threads) {
  const int64_t type = sizeof(T) == 4 ? FLOAT32 : FLOAT64;
  const auto &first = arguments.peek();
  const int64_t atoms = first.dim == 3 ? first.sizes[0] : -1;
  const int64_t channels = first.dim == 3 ? first.sizes[1] : -1;
  const T *x = static_cast<T *>(arguments.take("node_feats", type, {atoms, channels, -1}));
  const auto &second = arguments.peek();
  const int64_t rank = second.dim == 4 ? second.sizes[1] : -1;
  const Layout<T> layout(constants, rank);
  const auto operand = [&](const std::string &what, int k, bool needed = true) -> T * {
    const auto take = [&](const char *name, std::initializer_list<int64_t> sizes) {
      return static_cast<T *>(arguments.take((what + name).c_str(), type, sizes));
    };
    if (k == 0) return take("node_feats", {atoms, channels, layout.in.components});
    if (k == 1) return take("weights_out", {atoms, rank, layout.terms, channels});
    if (layout.weighted && (needed || !arguments.left_out()))
      return take("weights_in", {atoms, rank, layout.in.groups(), channels});
    if (!arguments.left_out()) throw WrongArgument("this layer has no weights_in");
    arguments.take();
    return nullptr;
  };
  const auto operands = [&](const std::string &what) {
    Operands<T> all{};
    all.x = operand(what, 0), all.w = operand(what, 1), all.u = operand(what, 2, false);
    return all;
  };
  if (first.sizes[2] != layout.in.components)
    throw WrongArgument("node_feats must be [any, any, " + std::to_string(layout.in.components) +
                        "], got " + std::to_string(first.sizes[2]) + " components");
  Call<T> c{atoms, channels, threads};
  c.in.x = const_cast<T *>(x), c.in.w = operand("", 1), c.in.u = operand("", 2);
  const auto result = [&](const char *name) {
    return static_cast<T *>(
        arguments.take(name, type, {atoms, channels, layout.out.components}));
  };
  if (pass != FORWARD) c.g = result("grad");
  if (pass == DOUBLE_BACKWARD) c.v = operands("direction of ");
  if (pass != BACKWARD) c.out = result(pass == FORWARD ? "result" : "gradient of grad");
  if (pass != FORWARD) c.gradients = operands("gradient of ");
  arguments.finish();
  if (pass == FORWARD) run<T, Vec<T>, true, false>(layout, c);
  if (pass == BACKWARD) run<T, Vec<T>, false, true>(layout, c);
  if (pass == DOUBLE_BACKWARD) run<T, Dual<Vec<T>, 1>, true, true>(layout, c);
}

}  // namespace

GAUNT_OPERATOR(gaunt_powers) {
  return guarded(message, [&] {
    Arguments arguments(pass, arrays, count, threads);
    const Constants constants(arguments.take());
    if (arguments.peek().type == FLOAT32)
      call<float>(pass, arguments, constants, threads);
    else
      call<double>(pass, arguments, constants, threads);
  });
}
