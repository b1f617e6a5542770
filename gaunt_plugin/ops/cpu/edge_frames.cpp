// Entries of the rotations D^l of edges, with first and second derivatives, on the CPU.
//
// The recursion of ops/edge_frames.py, for a vector of edges at a time. Derivatives with respect
// to the direction come from numbers that carry them along.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "duals.h"
#include "operators.h"
#include "vectors.h"

namespace {

// Coupling of degrees l and 1 to l + 1.
struct Coefficient {
  int64_t row, component, axis;
  double value;
};

struct Tables {
  int64_t lmax, mmax, entries = 0;
  std::vector<std::vector<Coefficient>> coupling;  // of l = 1, 2, ...
  std::vector<std::vector<double>> axial;          // per l and column
  std::vector<double> top;

  explicit Tables(Constants constants) {
    lmax = constants.next(0, 64), mmax = constants.next(0, lmax);
    for (int64_t l = 0; l <= lmax; l++) entries += (2 * l + 1) * columns(l);
    for (int64_t l = 1; l < lmax; l++) {
      coupling.emplace_back(constants.next(0, 9 * (2 * l + 1) * (2 * l + 3)));
      for (auto &c : coupling.back()) {
        c.row = constants.next(0, 2 * l + 2), c.component = constants.next(0, 2 * l);
        c.axis = constants.next(0, 2), c.value = constants.next_value();
      }
      axial.emplace_back(columns(l));
      for (auto &factor : axial.back()) factor = constants.next_value();
      top.push_back(constants.next_value());
    }
    constants.end();
  }
  int64_t columns(int64_t l) const { return 2 * std::min(l, mmax) + 1; }
};

template <class T, class S>
void rotations(const Tables &tables, const S &x, const S &y, const S &z, const Vec<T> &sign,
               S *out) {
  const Vec<T> ones = Vec<T>{} + 1;
  S one, s;
  set(one, ones), set(s, sign);
  *out++ = one;
  if (tables.lmax == 0) return;
  const S w = inverse(one + s * y), axis[3] = {x, y, z}, zero{};
  const S cos[3] = {zero - s * x * z * w, zero - z, s * (one - z * z * w)};
  const S sin[3] = {one - x * x * w, zero - s * x, zero - x * z * w};
  S *d = out;
  for (int i = 0; i < 3; i++) {
    *out++ = axis[i];
    if (tables.mmax > 0) *out++ = cos[i], *out++ = sin[i];
  }
  for (int64_t l = 1; l < tables.lmax; l++) {
    const int64_t old = tables.columns(l), now = tables.columns(l + 1);
    std::fill(out, out + (2 * l + 3) * now, S{});
    for (const auto &q : tables.coupling[l - 1]) {
      const S *from = d + q.component * old;
      S *to = out + q.row * now;
      for (int64_t k = 0; k < old; k++)
        add(to[k], (T)(q.value * tables.axial[l - 1][k]), from[k] * axis[q.axis]);
      if (now > old) {
        const S &c = from[old - 2], &t = from[old - 1];
        const T top = q.value * tables.top[l - 1];
        add(to[old], top, c * cos[q.axis] - t * sin[q.axis]);
        add(to[old + 1], top, c * sin[q.axis] + t * cos[q.axis]);
      }
    }
    d = out, out += (2 * l + 3) * now;
  }
}

// Null: left out.
template <class T> struct Call {
  int64_t edges, threads;
  const T *directions, *g, *v;
  T *value, *of_g, *of_directions;
};

template <class T> void run(const Tables &tables, const Call<T> &call) {
  using V = Vec<T>;
  const int64_t n = tables.entries, edges = call.edges;
  constexpr int lanes = LANES<T>;
  const Scratch<T> numbers(call.threads, 8 * n);  // the largest numbers are eight vectors
#pragma omp parallel num_threads(call.threads)
  {
    V *const memory = numbers.of_thread(omp_get_thread_num()).take(8 * n);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < edges; first += lanes) {
      const int64_t valid = std::min<int64_t>(lanes, edges - first);
      auto gather = [&](const T *from, int64_t stride, int64_t k) {
        V value{};
        for (int64_t lane = 0; lane < valid; lane++) value[lane] = from[(first + lane) * stride + k];
        return value;
      };
      auto scatter = [&](T *to, int64_t stride, int64_t k, const V &value) {
        for (int64_t lane = 0; lane < valid; lane++) to[(first + lane) * stride + k] = value[lane];
      };
      const V c[3] = {gather(call.directions, 3, 0), gather(call.directions, 3, 1),
                      gather(call.directions, 3, 2)};
      V sign{};
      for (int lane = 0; lane < lanes; lane++) sign[lane] = c[1][lane] < 0 ? -1 : 1;
      // <g, D> differentiated with respect to the direction; numbers I may carry v along.
      auto differentiate = [&](auto inner, T *of_g, T *of_direction) {
        using I = decltype(inner);
        using S = Dual<I, 3>;
        S *D = reinterpret_cast<S *>(memory), x[3] = {};
        for (int a = 0; a < 3; a++) {
          set(x[a].v, c[a], of_g ? gather(call.v, 3, a) : V{});
          set(x[a].d[a], V{} + 1);
        }
        rotations<T>(tables, x[0], x[1], x[2], sign, D);
        V sum[3] = {};
        for (int64_t k = 0; k < n; k++) {
          const V g = gather(call.g, n, k);
          if (of_g) scatter(of_g, n, k, result(D[k].v));
          for (int a = 0; a < 3; a++) sum[a] += g * result(D[k].d[a]);
        }
        for (int a = 0; a < 3; a++) scatter(of_direction, 3, a, sum[a]);
      };
      if (call.v) {
        differentiate(Dual<V, 1>{}, call.of_g, call.of_directions);
      } else if (call.g) {
        differentiate(V{}, nullptr, call.of_directions);
      } else {
        rotations<T>(tables, c[0], c[1], c[2], sign, memory);
        for (int64_t k = 0; k < n; k++) scatter(call.value, n, k, memory[k]);
      }
    }
  }
}

template <class T>
void call(int64_t pass, Arguments &arguments, const Tables &tables, int64_t threads) {
  const int64_t type = sizeof(T) == 4 ? FLOAT32 : FLOAT64, n = tables.entries;
  const auto &first = arguments.peek();
  const int64_t edges = first.dim == 2 ? first.sizes[0] : -1;
  const auto take = [&](const char *name, int64_t width) {
    return static_cast<T *>(arguments.take(name, type, {edges, width}));
  };
  Call<T> c{edges, threads, take("directions", 3)};
  if (pass != FORWARD) c.g = take("grad", n);
  if (pass == DOUBLE_BACKWARD) c.v = take("direction of directions", 3);
  if (pass == FORWARD) c.value = take("result", n);
  if (pass == DOUBLE_BACKWARD) c.of_g = take("gradient of grad", n);
  if (pass != FORWARD) c.of_directions = take("gradient of directions", 3);
  arguments.finish();
  run(tables, c);
}

}  // namespace

GAUNT_OPERATOR(gaunt_edge_frames) {
  return guarded(message, [&] {
    Arguments arguments(pass, arrays, count, threads);
    const Tables tables{Constants(arguments.take())};
    if (arguments.peek().type == FLOAT32)
      call<float>(pass, arguments, tables, threads);
    else
      call<double>(pass, arguments, tables, threads);
  });
}
