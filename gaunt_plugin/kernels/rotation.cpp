// Entries of the rotations D^l of edges, with first and second derivatives, on the CPU.
//
// The recursion of layers/rotation.py, for a vector of edges at a time. Derivatives with respect
// to the direction come from numbers that carry them along.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "duals.h"
#include "kernels.h"
#include "vectors.h"

namespace {

// Coupling of degrees l and 1 to l + 1.
struct Coefficient {
  int64_t row, component, axis;
  double value;
};

struct Tables {
  int64_t lmax, mmax, entries;
  std::vector<std::vector<Coefficient>> coupling;  // of l = 1, 2, ...
  std::vector<const double *> axial;               // per l and column
  std::vector<double> top;

  explicit Tables(const Constants &constants) {
    const int64_t *p = constants.numbers;
    const double *values = constants.values;
    lmax = *p++, mmax = *p++, entries = 0;
    for (int64_t l = 0; l <= lmax; l++) entries += (2 * l + 1) * columns(l);
    for (int64_t l = 1; l < lmax; l++) {
      coupling.emplace_back(*p++);
      for (auto &c : coupling.back()) c = {p[0], p[1], p[2], *values++}, p += 3;
      axial.push_back(values), values += columns(l);
      top.push_back(*values++);
    }
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

template <class T>
int rotate(const int64_t *program, const int64_t *sizes, const T *const *in, T *const *out) {
  using V = Vec<T>;
  const Tables tables{Constants(program)};
  const int64_t n = tables.entries, edges = sizes[0], threads = sizes[1];
  constexpr int lanes = LANES<T>;
#pragma omp parallel num_threads(threads)
  {
    Scratch<T> scratch(8 * n);  // the largest numbers are eight vectors
    V *const memory = scratch.take(8 * n);
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
      const V c[3] = {gather(in[0], 3, 0), gather(in[0], 3, 1), gather(in[0], 3, 2)};
      V sign{};
      for (int lane = 0; lane < lanes; lane++) sign[lane] = c[1][lane] < 0 ? -1 : 1;
      // <g, D> differentiated with respect to the direction; numbers I may carry v along.
      auto differentiate = [&](auto inner, T *of_g, T *of_direction) {
        using I = decltype(inner);
        using S = Dual<I, 3>;
        S *D = reinterpret_cast<S *>(memory), x[3] = {};
        for (int a = 0; a < 3; a++) {
          set(x[a].v, c[a], of_g ? gather(in[2], 3, a) : V{});
          set(x[a].d[a], V{} + 1);
        }
        rotations<T>(tables, x[0], x[1], x[2], sign, D);
        V sum[3] = {};
        for (int64_t k = 0; k < n; k++) {
          const V g = gather(in[1], n, k);
          if (of_g) scatter(of_g, n, k, result(D[k].v));
          for (int a = 0; a < 3; a++) sum[a] += g * result(D[k].d[a]);
        }
        for (int a = 0; a < 3; a++) scatter(of_direction, 3, a, sum[a]);
      };
      if (in[2]) {
        differentiate(Dual<V, 1>{}, out[0], out[1]);
      } else if (in[1]) {
        differentiate(V{}, nullptr, out[0]);
      } else {
        rotations<T>(tables, c[0], c[1], c[2], sign, memory);
        for (int64_t k = 0; k < n; k++) scatter(out[0], n, k, memory[k]);
      }
    }
  }
  return 0;
}

}  // namespace

GAUNT_KERNEL(gaunt_rotation_f32, float) { return rotate(program, sizes, in, out); }
GAUNT_KERNEL(gaunt_rotation_f64, double) { return rotate(program, sizes, in, out); }
