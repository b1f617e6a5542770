// Cubic polynomials of a node's features, channel by channel, with derivatives, on the CPU.
//
// ops/polynomials.py has the formula. Per element and channel the weights make coefficients C; with
// phi = <g, out>, out_o = sum over entries of C_e x_i x_j x_k, and entries sorted by i and j,
//   out_o = sum_ij x_i x_j t_o,   t_o = sum_k C x_k,
//   dphi/dx_k += x_i x_j g_o C,   dphi/dC += x_i x_j g_o x_k,   dphi/d(x_i x_j) = sum_o g_o t_o.
// Second derivatives are these ones' along a direction, which the numbers carry along (duals.h).
// A vector holds neighbouring channels, and several nodes of an element share what is read of the
// entries. Jobs, a vector of channels of some nodes each, share no result but the gradient of the
// weights, whose parts are added in a fixed order: nothing depends on the number of threads.

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "duals.h"
#include "operators.h"
#include "vectors.h"

namespace {

constexpr int64_t CHUNK = 128;  // nodes of a job
constexpr int NODES = 4;        // at a time

// What is accumulated of a product: its derivative, if there is one.
template <class V> void add_result(V &to, const V &a, const V &b) { to += a * b; }
template <class V> void add_result(V &to, const Dual<V, 1> &a, const V &b) { to += a.d[0] * b; }
template <class V> void add_result(V &to, const Dual<V, 1> &a, const Dual<V, 1> &b) {
  to += a.v * b.d[0];
  to += a.d[0] * b.v;
}
template <class V> V times(const V &a, const V &b) { return a * b; }
template <class V> Dual<V, 1> times(const Dual<V, 1> &a, const V &b) {
  return {a.v * b, {a.d[0] * b}};
}

struct Group {
  int32_t output, count;  // entries that differ in k only
};
struct Pair {
  int32_t i, j, groups;
};
template <class T> struct Layout {
  int64_t variables, outputs, terms;
  std::vector<Pair> pairs;
  std::vector<Group> groups;
  std::vector<int32_t> k;  // of each entry
  // C_e = sum of values times weights of terms, from begin[e] to begin[e + 1]
  std::vector<int32_t> begin, term;
  std::vector<T> value;

  explicit Layout(Constants constants) {
    constexpr int64_t many = 1 << 24;
    variables = constants.next(1, many), outputs = constants.next(1, many);
    terms = constants.next(1, many);
    std::array<int64_t, 4> last{-1, -1, -1, -1};
    for (int64_t rest = constants.next(0, many); rest > 0; rest--) {
      std::array<int64_t, 4> now;  // i, j, output, k; x of index `variables` is 1
      now[2] = constants.next(0, outputs - 1);
      for (int axis : {0, 1, 3}) now[axis] = constants.next(0, variables);
      const int64_t same = std::mismatch(now.begin(), now.end(), last.begin()).first - now.begin();
      if (same < 2) pairs.push_back({(int32_t)now[0], (int32_t)now[1], 0});
      if (same < 3) pairs.back().groups++, groups.push_back({(int32_t)now[2], 0});
      if (same < 4) groups.back().count++, k.push_back(now[3]), begin.push_back(term.size());
      term.push_back(constants.next(0, terms - 1)), value.push_back(constants.next_value());
      last = now;
    }
    constants.end();
    begin.push_back(term.size());
  }
  int64_t entries() const { return k.size(); }
};

// Nodes that have an element, of those that a job works on.
struct Member {
  int64_t node;
  double share;
  bool first;  // or another element was theirs before
};
struct Segment {
  int64_t element;
  std::vector<Member> members;
};
struct Plan {
  std::vector<Segment> segments;
  std::vector<int64_t> begin{0};  // of each chunk's segments

  template <class T> Plan(const T *attrs, int64_t nodes, int64_t elements) {
    // A node without an element has none of the first one.
    std::vector<int64_t> first(nodes), last(nodes), order(nodes);
    for (int64_t n = 0; n < nodes; n++)
      for (int64_t z = elements - 1; z >= 0; z--)
        if (attrs[n * elements + z] != 0) first[n] = z, last[n] = std::max(last[n], z);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return first[a] < first[b]; });
    for (int64_t chunk = 0; chunk < nodes; chunk += CHUNK) {
      const auto from = order.begin() + chunk;
      const auto to = order.begin() + std::min(nodes, chunk + CHUNK);
      int64_t end = 0;
      for (auto n = from; n != to; n++) end = std::max(end, last[*n]);
      for (int64_t z = first[*from]; z <= end; z++) {
        Segment segment{z, {}};
        for (auto n = from; n != to; n++) {
          const double share = attrs[*n * elements + z];
          if (share != 0 || first[*n] == z) segment.members.push_back({*n, share, first[*n] == z});
        }
        if (!segment.members.empty()) segments.push_back(std::move(segment));
      }
      begin.push_back(segments.size());
    }
  }
};

// What a job works on: features, coefficients, gradients of the result, and results.
template <class V, class S, class C> struct Work {
  S *x;
  C *c;
  V *g, *out, *gx, *gc;
};

// S: numbers that depend on the features; C: coefficients, with a derivative or without.
template <class V, class S, class C, bool OUT, bool GRADIENT, bool WEIGHTS, class T>
void evaluate(const Layout<T> &layout, const Work<V, S, C> &w) {
  const Group *group = layout.groups.data();
  const int32_t *k = layout.k.data();
  const C *c = w.c;
  V *gc = w.gc;
  for (const Pair &pair : layout.pairs) {
    const S *xi = w.x + pair.i * NODES, *xj = w.x + pair.j * NODES;
    S product[NODES], total[NODES] = {};
    for (int n = 0; n < NODES; n++) product[n] = xi[n] * xj[n];
    for (const Group *end = group + pair.groups; group < end; group++) {
      const V *g = w.g + group->output * NODES;
      S t[NODES] = {}, q[NODES];
      if constexpr (GRADIENT)
        for (int n = 0; n < NODES; n++) q[n] = times(product[n], g[n]);
      for (const int32_t *last = k + group->count; k < last; k++, c++) {
        const S *xk = w.x + *k * NODES;
        for (int n = 0; n < NODES; n++) add_product(t[n], xk[n], *c);
        if constexpr (GRADIENT) {
          V *gk = w.gx + *k * NODES;
          for (int n = 0; n < NODES; n++) add_result(gk[n], q[n], *c);
        }
        if constexpr (WEIGHTS) {
          V sum = *gc;
          for (int n = 0; n < NODES; n++) add_result(sum, q[n], xk[n]);
          *gc++ = sum;
        }
      }
      if constexpr (OUT) {
        V *out = w.out + group->output * NODES;
        for (int n = 0; n < NODES; n++) add_result(out[n], product[n], t[n]);
      }
      if constexpr (GRADIENT)
        for (int n = 0; n < NODES; n++) add_product(total[n], t[n], g[n]);
    }
    if constexpr (GRADIENT) {
      V *gi = w.gx + pair.i * NODES, *gj = w.gx + pair.j * NODES;
      for (int n = 0; n < NODES; n++) add_result(gi[n], total[n], xj[n]);
      for (int n = 0; n < NODES; n++) add_result(gj[n], total[n], xi[n]);
    }
  }
}

template <class T> Vec<T> load(const T *from, int64_t valid, int64_t stride) {
  Vec<T> value{};
  if (valid == LANES<T>) {
    for (int lane = 0; lane < LANES<T>; lane++) value[lane] = from[lane * stride];
  } else {
    for (int64_t lane = 0; lane < valid; lane++) value[lane] = from[lane * stride];
  }
  return value;
}
template <class T>
void store(T *to, const Vec<T> &value, int64_t valid, int64_t stride, bool first) {
  for (int64_t lane = 0; lane < valid; lane++)
    to[lane * stride] = value[lane] + (first ? 0 : to[lane * stride]);
}

template <class T> struct Operands {
  T *x, *w;
};

// Null: left out.
template <class T> struct Call {
  int64_t nodes, channels, elements, threads;
  Operands<T> in;
  const T *attrs, *g;
  Operands<T> v;  // direction
  T *out;         // the result, or the gradient of g
  Operands<T> gradients;
};

template <class T, class S, class C, bool OUT, bool GRADIENT, bool WEIGHTS>
void run(const Layout<T> &layout, const Call<T> &call) {
  using V = Vec<T>;
  constexpr bool dual = !std::is_same_v<S, V>, dual_weights = !std::is_same_v<C, V>;
  constexpr int lanes = LANES<T>;
  const int64_t channels = call.channels, blocks = (channels + lanes - 1) / lanes;
  const int64_t dim = layout.variables, outputs = layout.outputs, terms = layout.terms;
  const Plan plan(call.attrs, call.nodes, call.elements);
  // Gradients of the weights, of each segment.
  const int64_t per_segment = channels * terms;
  std::vector<T> parts(WEIGHTS ? plan.segments.size() * per_segment : 0);
  const Scratch<T> memory(call.threads, NODES * ((sizeof(S) / sizeof(V) + 1) * (dim + 1) + 2 * outputs) +
                                            (sizeof(C) / sizeof(V) + 1) * (layout.entries() + terms));
#pragma omp parallel num_threads(call.threads)
  {
    auto scratch = memory.of_thread(omp_get_thread_num());
    Work<V, S, C> work;
    work.x = reinterpret_cast<S *>(scratch.take(sizeof(S) / sizeof(V) * NODES * (dim + 1)));
    work.c = reinterpret_cast<C *>(scratch.take(sizeof(C) / sizeof(V) * layout.entries()));
    C *weights = reinterpret_cast<C *>(scratch.take(sizeof(C) / sizeof(V) * terms));
    work.g = scratch.take(NODES * outputs), work.out = scratch.take(NODES * outputs);
    work.gx = scratch.take(NODES * (dim + 1)), work.gc = scratch.take(layout.entries());
    V *of_weights = scratch.take(terms);
    std::fill(work.x, work.x + NODES * (dim + 1), S{});
    for (int n = 0; n < NODES; n++) set(work.x[dim * NODES + n], V{} + 1);
#pragma omp for schedule(dynamic)
    for (int64_t job = 0; job < (int64_t)(plan.begin.size() - 1) * blocks; job++) {
      const int64_t chunk = job / blocks, channel = job % blocks * lanes;
      const int64_t valid = std::min<int64_t>(lanes, channels - channel);
      for (int64_t s = plan.begin[chunk]; s < plan.begin[chunk + 1]; s++) {
        const Segment &segment = plan.segments[s];
        const int64_t at = (segment.element * channels + channel) * terms;
        for (int64_t t = 0; t < terms; t++) {
          const V value = load(call.in.w + at + t, valid, terms);
          if constexpr (dual_weights)
            weights[t] = {value, {load(call.v.w + at + t, valid, terms)}};
          else
            weights[t] = value;
        }
        for (int64_t e = 0; e < layout.entries(); e++) {
          C sum{};
          for (int64_t q = layout.begin[e]; q < layout.begin[e + 1]; q++)
            add(sum, layout.value[q], weights[layout.term[q]]);
          work.c[e] = sum;
        }
        if constexpr (WEIGHTS) std::fill(work.gc, work.gc + layout.entries(), V{});
        const int64_t count = segment.members.size();
        for (int64_t first = 0; first < count; first += NODES) {
          const auto each_node = [&](auto f) {
            const int64_t here = std::min<int64_t>(NODES, count - first);
            for (int64_t n = 0; n < here; n++) f(n, segment.members[first + n]);
          };
          if (count - first < NODES) {
            std::fill(work.x, work.x + NODES * dim, S{});
            std::fill(work.g, work.g + NODES * outputs, V{});
          }
          each_node([&](int64_t n, const Member &m) {
            const int64_t row = m.node * channels + channel;
            for (int64_t i = 0; i < dim; i++)
              set(work.x[i * NODES + n], load(call.in.x + row * dim + i, valid, dim),
                  dual ? load(call.v.x + row * dim + i, valid, dim) : V{});
            if constexpr (GRADIENT)
              for (int64_t o = 0; o < outputs; o++)
                work.g[o * NODES + n] =
                    (T)m.share * load(call.g + row * outputs + o, valid, outputs);
          });
          std::fill(work.out, work.out + NODES * outputs, V{});
          std::fill(work.gx, work.gx + NODES * (dim + 1), V{});
          evaluate<V, S, C, OUT, GRADIENT, WEIGHTS>(layout, work);
          each_node([&](int64_t n, const Member &m) {
            const int64_t row = m.node * channels + channel;
            if constexpr (OUT)
              for (int64_t o = 0; o < outputs; o++)
                store(call.out + row * outputs + o, (T)m.share * work.out[o * NODES + n], valid,
                      outputs, m.first);
            if constexpr (GRADIENT)
              for (int64_t i = 0; i < dim; i++)
                store(call.gradients.x + row * dim + i, work.gx[i * NODES + n], valid, dim, m.first);
          });
        }
        if constexpr (WEIGHTS) {
          std::fill(of_weights, of_weights + terms, V{});
          for (int64_t e = 0; e < layout.entries(); e++)
            for (int64_t q = layout.begin[e]; q < layout.begin[e + 1]; q++)
              add(of_weights[layout.term[q]], layout.value[q], work.gc[e]);
          T *to = parts.data() + s * per_segment + channel * terms;
          for (int64_t t = 0; t < terms; t++) store(to + t, of_weights[t], valid, terms, true);
        }
      }
    }
  }
  if constexpr (WEIGHTS) {
    std::fill(call.gradients.w, call.gradients.w + call.elements * per_segment, T(0));
    for (size_t s = 0; s < plan.segments.size(); s++) {
      T *to = call.gradients.w + plan.segments[s].element * per_segment;
      const T *from = parts.data() + s * per_segment;
      for (int64_t q = 0; q < per_segment; q++) to[q] += from[q];
    }
  }
}

template <class T>
void call(int64_t pass, Arguments &arguments, const Constants &constants, int64_t threads) {
  using V = Vec<T>;
  using D = Dual<V, 1>;
  const int64_t type = sizeof(T) == 4 ? FLOAT32 : FLOAT64;
  const Layout<T> layout(constants);
  const auto &first = arguments.peek();
  Call<T> c{};
  c.threads = threads;
  c.nodes = first.dim == 3 ? first.sizes[0] : -1, c.channels = first.dim == 3 ? first.sizes[1] : -1;
  c.elements = -1;
  const auto features = [&](const std::string &what) {
    return static_cast<T *>(arguments.take((what + "node_feats").c_str(), type,
                                           {c.nodes, c.channels, layout.variables}));
  };
  const auto weights = [&](const std::string &what) -> T * {
    if (!what.empty() && arguments.left_out()) return arguments.take(), nullptr;
    return static_cast<T *>(arguments.take((what + "weights").c_str(), type,
                                           {c.elements, c.channels, layout.terms}));
  };
  const auto result = [&](const char *name) {
    return static_cast<T *>(
        arguments.take(name, type, {c.nodes, c.channels, layout.outputs}));
  };
  c.in.x = features("");
  if (arguments.peek().dim == 3) c.elements = arguments.peek().sizes[0];
  c.in.w = weights("");
  c.attrs = static_cast<T *>(arguments.take("node_attrs", type, {c.nodes, c.elements}));
  if (c.nodes > 0 && c.elements == 0) throw WrongArgument("node_attrs has no elements");
  if (pass != FORWARD) c.g = result("grad");
  if (pass == DOUBLE_BACKWARD) c.v.x = features("direction of "), c.v.w = weights("direction of ");
  if (pass != BACKWARD) c.out = result(pass == FORWARD ? "result" : "gradient of grad");
  if (pass != FORWARD)
    c.gradients.x = features("gradient of "), c.gradients.w = weights("gradient of ");
  arguments.finish();
  if (pass == FORWARD) return run<T, V, V, true, false, false>(layout, c);
  if (pass == BACKWARD)
    return c.gradients.w ? run<T, V, V, false, true, true>(layout, c)
                         : run<T, V, V, false, true, false>(layout, c);
  if (c.v.w)
    return c.gradients.w ? run<T, D, D, true, true, true>(layout, c)
                         : run<T, D, D, true, true, false>(layout, c);
  return c.gradients.w ? run<T, D, V, true, true, true>(layout, c)
                       : run<T, D, V, true, true, false>(layout, c);
}

}  // namespace

GAUNT_OPERATOR(gaunt_polynomials) {
  return guarded(message, [&] {
    Arguments arguments(pass, arrays, count, threads);
    const Constants constants(arguments.take());
    if (arguments.peek().type == FLOAT32)
      call<float>(pass, arguments, constants, threads);
    else
      call<double>(pass, arguments, constants, threads);
  });
}
