// The C interface of the kernels. No headers of torch: one library serves all of its releases, and
// Python (call.py) as well as LAMMPS (lammps/src/gaunt_ops.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
#endif

enum GauntPass : int64_t { FORWARD, BACKWARD, DOUBLE_BACKWARD };
enum GauntType : int64_t { FLOAT32, FLOAT64, INT64 };

// A contiguous array; dim -1: left out.
struct GauntArray {
  void *data;
  int64_t type, dim, sizes[4];
};

// C = op(A) op(B), or C += with accumulate: op(A) is [m, k], op(B) [k, n], C [m, n], row by row;
// with transpose A is stored as [k, m], and B as [n, k]. Returns 0 unless it fails.
typedef int (*GauntMatmul)(int64_t type, int64_t transpose_a, int64_t transpose_b, int64_t m,
                           int64_t n, int64_t k, const void *a, const void *b, void *c,
                           int64_t accumulate);

// Arrays in this order: constants, operands; from the backward pass on the gradient of the result;
// in the double backward pass a direction per operand (left out: zero); then the results. Results
// are the value; or a gradient per operand; or those of <directions, gradients> with respect to the
// gradient of the result and each operand. Gradients of operands that are left out are left out.
// Arrays are checked against the constants before any of them is read.
// Returns a GauntStatus; `message`, of 512 characters, says what is wrong.
enum GauntStatus { OK, WRONG_ARGUMENT, WRONG_INDEX, OUT_OF_MEMORY, FAILED };
#define GAUNT_OPERATOR(name)                                                                       \
  extern "C" int name(int64_t pass, const GauntArray *arrays, int64_t count, int64_t threads,      \
                      [[maybe_unused]] GauntMatmul matmul, char *message)

// operands: node_feats [nodes, dim_in, channels], frames [edges, entries],
// weights [edges, paths * channels] or [edges, width], mixing [width, paths * channels] (then the
// weights are weights @ mixing) or left out, edge_index [2, edges], rows [edges] or left out: with
// rows mixing may have more rows, and an edge takes `width` of them from rows[edge] on. The last
// two have no gradient and no direction.
// result: [nodes, dim_out, channels].
// constants: the irreps of features and of the result, each as their number and per irrep l and
// whether its parity is pseudo; then the degrees of the harmonics, which for scalar features are
// the frames, as their number and each.
GAUNT_OPERATOR(gaunt_convolution);

// operands: node_feats [nodes, dim_in], harmonics [edges, dim_edge], weights, mixing, edge_index and
// rows as above, with numel = paths * channels summed over the paths. result: [nodes, dim_out].
// constants: the blocks of the features as their number and per block components and channels;
// dim_edge; dim_out; the number of paths and for each its block, where its first component begins
// in the result, the distance between components there and their number, then the number of
// coefficients and for each component of features, harmonics and result. values: the coefficients.
GAUNT_OPERATOR(gaunt_channelwise_convolution);

// operands: directions [edges, 3]. result: [edges, entries].
// constants: lmax, mmax; per l = 1 ... lmax - 1 the number of Gaunt coefficients of (l, 1, l + 1)
// and for each its row, component and axis. values: these coefficients, then the factor of each
// column and that of the top order.
GAUNT_OPERATOR(gaunt_edge_frames);

// operands: node_feats [nodes, channels, dim_in], weights_out [nodes, rank, terms, channels],
// weights_in [nodes, rank, degrees, channels] or left out. result: [nodes, channels, dim_out].
// constants: the degrees of features and of the result, each as their number and each; correlation;
// whether there are weights_in; the number of pairs of antipodal nodes of the quadrature.
// values: scale per degree of the features, factor per order and degree of the result (0: no
// term), harmonics [pairs, dim_in] and harmonics times quadrature weights [pairs, dim_out].
GAUNT_OPERATOR(gaunt_powers);

// operands: node_feats [nodes, channels, variables], weights [elements, channels, terms],
// node_attrs [nodes, elements]; the last one has no gradient and no direction.
// result: [nodes, channels, outputs].
// constants: variables, outputs, terms; the number of coefficients and for each its output, three
// variables, whose number stands for 1, and term. values: of each coefficient.
GAUNT_OPERATOR(gaunt_polynomials);

// Below: what the kernels share.

struct WrongArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct WrongIndex : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Calls f() and turns what it throws into a status: no exception may cross the C interface.
template <class F> int guarded(char *message, const F &f) {
  const auto say = [&](const char *what, int status) {
    std::snprintf(message, 512, "%s", what);
    return status;
  };
  try {
    f();
    return OK;
  } catch (const WrongArgument &error) {
    return say(error.what(), WRONG_ARGUMENT);
  } catch (const WrongIndex &error) {
    return say(error.what(), WRONG_INDEX);
  } catch (const std::bad_alloc &) {
    return say("out of memory", OUT_OF_MEMORY);
  } catch (const std::length_error &) {
    return say("out of memory", OUT_OF_MEMORY);
  } catch (const std::exception &error) {
    return say(error.what(), FAILED);
  }
}

// The layer's constants: how many integers, these, and float64 values as their bits.
class Constants {
 public:
  explicit Constants(const GauntArray &array) {
    if (array.type != INT64 || array.dim != 1 || array.sizes[0] < 1) fail();
    const auto *all = static_cast<const int64_t *>(array.data);
    const int64_t rest = array.sizes[0] - 1;
    if (all[0] < 0 || all[0] > rest) fail();
    numbers = all + 1, count = all[0];
    values = all + 1 + count, value_count = rest - count;
  }
  int64_t next(int64_t least, int64_t most) {
    if (read == count || numbers[read] < least || numbers[read] > most) fail();
    return numbers[read++];
  }
  double next_value() {
    if (read_values == value_count) fail();
    double value;
    std::memcpy(&value, values + read_values++, sizeof value);
    return value;
  }
  void end() const {
    if (read != count || read_values != value_count) fail();
  }
  [[noreturn]] static void fail() {
    throw WrongArgument("constants are not those of a layer of this operator");
  }

 private:
  const int64_t *numbers, *values;
  int64_t count, value_count, read = 0, read_values = 0;
};

// The arrays of a call in their order, each checked.
class Arguments {
 public:
  Arguments(int64_t pass, const GauntArray *arrays, int64_t count, int64_t threads) :
      arrays(arrays), end(arrays + count) {
    if (pass < FORWARD || pass > DOUBLE_BACKWARD || threads < 1)
      throw WrongArgument("no such pass or number of threads");
    if (count < 2) missing();
  }
  const GauntArray &take() {
    if (arrays == end) missing();
    return *arrays++;
  }
  bool left_out() const {
    if (arrays == end) missing();
    return arrays->dim < 0;
  }
  const GauntArray &peek() const {
    if (arrays == end) missing();
    return *arrays;
  }
  void finish() const {
    if (arrays != end) throw WrongArgument("too many arrays");
  }
  // Data of an array of these sizes; -1: any size.
  void *take(const char *name, int64_t type, std::initializer_list<int64_t> sizes) {
    const GauntArray &array = take();
    const auto text = [](const int64_t *from, int64_t count) {
      std::string all;
      for (int64_t k = 0; k < count; k++)
        all += (k ? ", " : "") + (from[k] < 0 ? std::string("any") : std::to_string(from[k]));
      return "[" + all + "]";
    };
    if (array.type != type) throw WrongArgument(std::string(name) + " has the wrong dtype");
    bool fits = array.dim == (int64_t)sizes.size();
    for (size_t k = 0; fits && k < sizes.size(); k++) {
      const int64_t wanted = sizes.begin()[k];
      fits = array.sizes[k] >= 0 && (wanted < 0 || array.sizes[k] == wanted);
    }
    if (!fits)
      throw WrongArgument(std::string(name) + " must be " + text(sizes.begin(), sizes.size()) +
                          ", got " +
                          (array.dim < 0 ? "none" : text(array.sizes, std::min<int64_t>(array.dim, 4))));
    int64_t numbers = 1;
    for (int64_t k = 0; k < array.dim; k++) {
      if (array.sizes[k] && numbers > std::numeric_limits<int64_t>::max() / 16 / array.sizes[k])
        throw WrongArgument(std::string(name) + " is too large");
      numbers *= array.sizes[k];
    }
    if (numbers && !array.data) throw WrongArgument(std::string(name) + " has no memory");
    return array.data;
  }

 private:
  const GauntArray *arrays, *end;
  [[noreturn]] static void missing() { throw WrongArgument("arrays are missing"); }
};
