// The kernels' interface: plain C, no headers of torch, so that one library serves all its releases.
#pragma once

#include <cstdint>

// What is known when a layer is made: how many integers, these, and float64 numbers (their bits).
struct Constants {
  const int64_t *numbers;
  const double *values;
  explicit Constants(const int64_t *program) :
      numbers(program + 1), values(reinterpret_cast<const double *>(program + 1 + *program)) {}
};

// Arrays are contiguous; those that a pass doesn't have are null and come last. What a function
// returns is 0, or 1 if an index is out of range.
#define GAUNT_KERNEL(name, T)                                                                      \
  extern "C" int name(const int64_t *program, const int64_t *sizes, const int64_t *index,          \
                      const T *const *in, T *const *out)

// sizes: nodes, edges, channels, threads. index: [2, edges]. in: x [nodes, dim_in, channels],
// D [edges, entries], weights [edges, paths, channels], g [nodes, dim_out, channels], directions
// vx, vD, vw. out: [out]; with g [of x, of D, of w]; with directions [of g, of x, of D, of w] and,
// if not null, of vw: the gradient of w. Arrays of nodes are added to, so that edges may come in
// several calls.
GAUNT_KERNEL(gaunt_convolution_f32, float);
GAUNT_KERNEL(gaunt_convolution_f64, double);

// sizes: edges, threads. in: directions [edges, 3], g [edges, entries], v [edges, 3].
// out: [entries]; with g [of directions]; with v [of g, of directions].
GAUNT_KERNEL(gaunt_rotation_f32, float);
GAUNT_KERNEL(gaunt_rotation_f64, double);

// sizes: atoms, channels, views, threads. in: x [atoms, channels, dim_in], w [atoms, views, weights,
// channels], u [atoms, views, degrees, channels] only with copies, g [atoms, channels, dim_out],
// directions of x, w, u. out: [out]; with g [of x, of w, of u]; with directions [of g, of x, of w,
// of u].
GAUNT_KERNEL(gaunt_powers_f32, float);
GAUNT_KERNEL(gaunt_powers_f64, double);
