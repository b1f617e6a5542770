// Powers of functions on the sphere, summed and projected, with derivatives, on the CPU.
//
// Per atom and channel (layers/many_body.py has the formula), with X_l the part of degree l of the
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
#include "kernels.h"
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

  void read(const int64_t *&p, const double *&values, int64_t pairs) {
    even = *p++, odd = *p++, components = 0, blocks = (pairs + BLOCK - 1) / BLOCK;
    for (int64_t k = 0; k < even + odd; k++) {
      label.push_back(*p++), size.push_back(*p++), components += size.back();
      component.insert(component.end(), p, p + size.back()), p += size.back();
    }
    table.resize(blocks * components * BLOCK);
    for (int64_t g = 0; g < pairs; g++)
      for (int64_t i = 0; i < components; i++)
        table[(g / BLOCK * components + i) * BLOCK + g % BLOCK] = *values++;
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

template <class T> struct Program {
  int64_t correlation, pairs, copies, weights;
  Side<T> in, out;
  std::vector<Pass> passes;
  std::vector<Row> w, u;
  int64_t places = 0;  // of w: per pass, view and order those of its outputs, also if not reached

  Program(const Constants &constants, int64_t views) {
    const int64_t *p = constants.numbers;
    const double *values = constants.values;
    correlation = *p++, pairs = *p++, copies = *p++, weights = *p++;
    in.read(p, values, pairs), out.read(p, values, pairs);
    for (int64_t k = 0; k < std::max(out.even, out.odd); k += PASS) {
      const int64_t e = std::clamp<int64_t>(out.even - k, 0, PASS);
      const int64_t o = std::clamp<int64_t>(out.odd - k, 0, PASS);
      passes.push_back({k, out.even + k, e, o, places});
      for (int64_t v = 0; v < views; v++)
        for (int64_t n = 0; n < correlation - 1; n++)
          for (int64_t j = 0; j < e + o; j++, places++) {
            const int64_t at = n * out.groups() + (j < e ? k + j : out.even + k + j - e);
            if (p[at] >= 0) w.push_back({v * weights + p[at], places, n + 2, values[at]});
          }
    }
    for (int64_t v = 0; v < copies * views; v++)
      for (int64_t l = 0; l < in.groups(); l++)
        u.push_back({v * in.groups() + in.label[l], v * in.groups() + l, 1, 1.0});
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
void on_grid(const Program<T> &program, const Pass &pass, int64_t views, const Job<S, Vec<T>> &j) {
  using V = Vec<T>;
  const int64_t even = program.in.even, odd = program.in.odd;
  for (int64_t node = 0; node < program.pairs; node++) {
    const S *x = j.X + node * (even + odd), *u = j.u, *w = j.w + pass.place;
    S *gx = j.gX + node * (even + odd), *gu = j.gu, *gw = j.gw + pass.place;
    V G[E + O];
    S P[E + O] = {};
    const int64_t outputs = node * program.out.groups();
    if constexpr (GRADIENT) {
      for (int k = 0; k < E; k++) G[k] = j.G[outputs + pass.even + k];
      for (int k = 0; k < O; k++) G[E + k] = j.G[outputs + pass.odd + k];
    }
    for (int64_t v = 0; v < views; v++) {
      S e{}, o{};
      if (program.copies) {
        e = combine(u, x, even), o = combine(u + even, x + even, odd);
      } else {
        if (even) e = x[0];
        if (odd) o = x[even];
      }
      S s = e, d = o, ge{}, go{};
      for (int64_t n = 2; n <= program.correlation; n++, w += E + O) {
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
        if (program.copies) {
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
void on_grid(const Program<T> &program, int64_t views, const Job<S, Vec<T>> &job) {
  for (const auto &pass : program.passes) {
    auto run = [&](auto e, auto o) {
      on_grid<T, S, OUT, GRADIENT, e.value, o.value>(program, pass, views, job);
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

template <class T> struct Inputs {
  const T *x, *w, *u;
};

// v: direction, for S that are dual. Null: what is not wanted.
template <class T, class S, bool OUT, bool GRADIENT>
void products(const Program<T> &program, const int64_t *sizes, const Inputs<T> &in, const T *g,
              const Inputs<T> &v, T *out, T *const *gradients) {
  using V = Vec<T>;
  constexpr bool dual = !std::is_same_v<S, V>;
  constexpr int lanes = LANES<T>;
  const int64_t atoms = sizes[0], channels = sizes[1], views = sizes[2], threads = sizes[3];
  const int64_t blocks = (channels + WIDTH * lanes - 1) / (WIDTH * lanes);
  const int64_t dim_in = program.in.components, dim_out = program.out.components;
  const int64_t of_w = program.places, of_u = program.u.size();
#pragma omp parallel num_threads(threads)
  {
    const int64_t per_number = sizeof(S) / sizeof(V);
    Scratch<T> scratch(2 * per_number *
                       (dim_in + dim_out + WIDTH * (of_w + of_u) + program.in.numbers() +
                        program.out.numbers()));
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
    job.X = take(program.in.numbers()), job.gX = take(program.in.numbers());
    job.P = take(program.out.numbers()), job.G = scratch.take(program.out.numbers());
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
                dual ? t * block.load(direction + at + c) : V{});
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
      load(program.w, in.w, v.w, w, of_w), load(program.u, in.u, v.u, u, of_u);
      if constexpr (GRADIENT)
        std::fill(gw, gw + WIDTH * of_w, S{}), std::fill(gu, gu + WIDTH * of_u, S{});
      each_vector([&](int64_t q, auto block, int64_t c) {
        job.w = w + q * of_w, job.gw = gw + q * of_w, job.u = u + q * of_u, job.gu = gu + q * of_u;
        const int64_t of_x = (atom * channels + c) * dim_in, of_y = (atom * channels + c) * dim_out;
        for (int64_t i = 0; i < dim_in; i++) {
          const int64_t at = of_x + program.in.component[i];
          set(x[i], block.load(in.x + at, dim_in), dual ? block.load(v.x + at, dim_in) : V{});
        }
        program.in.values(x, job.X);
        if constexpr (GRADIENT) {
          for (int64_t i = 0; i < dim_out; i++)
            gy[i] = block.load(g + of_y + program.out.component[i], dim_out);
          program.out.values(gy, job.G);
          std::fill(job.gX, job.gX + program.in.numbers(), S{});
        }
        on_grid<T, S, OUT, GRADIENT>(program, views, job);
        if constexpr (OUT) {
          program.out.adjoint(job.P, y);
          for (int64_t i = 0; i < dim_out; i++)
            block.store(out + of_y + program.out.component[i], result(y[i]), dim_out);
        }
        if constexpr (GRADIENT) {
          program.in.adjoint(job.gX, gx);
          for (int64_t i = 0; i < dim_in; i++)
            block.store(gradients[0] + of_x + program.in.component[i], result(gx[i]), dim_in);
        }
      });
      if constexpr (GRADIENT) {
        store(program.w, gw, gradients[1], of_w);
        store(program.u, gu, gradients[2], of_u);
      }
    }
  }
}

template <class T>
int run(const int64_t *constants, const int64_t *sizes, const T *const *in, T *const *out) {
  const Program<T> program(Constants(constants), sizes[2]);
  auto take = [&] {
    Inputs<T> some{in[0], in[1], nullptr};
    in += 2;
    if (program.copies) some.u = *in++;
    return some;
  };
  const Inputs<T> inputs = take();
  if (const T *g = *in++) {
    const Inputs<T> v = take();
    T *y = v.x ? *out++ : nullptr;
    if (v.x)
      products<T, Dual<Vec<T>, 1>, true, true>(program, sizes, inputs, g, v, y, out);
    else
      products<T, Vec<T>, false, true>(program, sizes, inputs, g, v, y, out);
  } else {
    products<T, Vec<T>, true, false>(program, sizes, inputs, g, {}, *out, nullptr);
  }
  return 0;
}

}  // namespace

GAUNT_KERNEL(gaunt_powers_f32, float) { return run(program, sizes, in, out); }
GAUNT_KERNEL(gaunt_powers_f64, double) { return run(program, sizes, in, out); }
