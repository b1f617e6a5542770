// Numbers that carry derivatives along, for derivatives of a kernel by its own code.
#pragma once

// v + d[0] e_0 + d[1] e_1 + ..., with e_i e_j = 0
template <class S, int K> struct Dual {
  S v, d[K];
};

// What kernels do with numbers: vectors V and, in them, duals of them.
template <class V> void set(V &to, const V &constant) { to = constant; }
template <class V> V inverse(const V &a) { return (V{} + 1) / a; }
template <class V, class T> void add(V &to, T factor, const V &a) { to += factor * a; }

template <class S, int K> Dual<S, K> operator+(const Dual<S, K> &a, const Dual<S, K> &b) {
  Dual<S, K> c{a.v + b.v, {}};
  for (int k = 0; k < K; k++) c.d[k] = a.d[k] + b.d[k];
  return c;
}
template <class S, int K> Dual<S, K> operator-(const Dual<S, K> &a, const Dual<S, K> &b) {
  Dual<S, K> c{a.v - b.v, {}};
  for (int k = 0; k < K; k++) c.d[k] = a.d[k] - b.d[k];
  return c;
}
template <class S, int K> Dual<S, K> operator*(const Dual<S, K> &a, const Dual<S, K> &b) {
  Dual<S, K> c{a.v * b.v, {}};
  for (int k = 0; k < K; k++) c.d[k] = a.v * b.d[k] + a.d[k] * b.v;
  return c;
}
template <class S, int K, class V> void set(Dual<S, K> &to, const V &constant) {
  to = Dual<S, K>{};
  set(to.v, constant);
}
template <class S, int K> Dual<S, K> inverse(const Dual<S, K> &a) {
  Dual<S, K> c{inverse(a.v), {}};
  for (int k = 0; k < K; k++) c.d[k] = S{} - c.v * c.v * a.d[k];
  return c;
}
template <class S, int K, class T> void add(Dual<S, K> &to, T factor, const Dual<S, K> &a) {
  add(to.v, factor, a.v);
  for (int k = 0; k < K; k++) add(to.d[k], factor, a.d[k]);
}

// to += a b; b of a dual may be without derivative.
template <class V> void add_product(V &to, const V &a, const V &b) { to += a * b; }
template <class S, int K>
void add_product(Dual<S, K> &to, const Dual<S, K> &a, const Dual<S, K> &b) {
  add_product(to.v, a.v, b.v);
  for (int k = 0; k < K; k++) add_product(to.d[k], a.v, b.d[k]), add_product(to.d[k], a.d[k], b.v);
}
template <class S, int K> void add_product(Dual<S, K> &to, const Dual<S, K> &a, const S &b) {
  add_product(to.v, a.v, b);
  for (int k = 0; k < K; k++) add_product(to.d[k], a.d[k], b);
}

// The vector that is computed: derivatives, if the numbers have some.
template <class V> const V &result(const V &a) { return a; }
template <class V> const V &result(const Dual<V, 1> &a) { return a.d[0]; }
template <class V> void set(V &to, const V &value, const V &) { to = value; }
template <class V> void set(Dual<V, 1> &to, const V &value, const V &derivative) {
  to = {value, {derivative}};
}
