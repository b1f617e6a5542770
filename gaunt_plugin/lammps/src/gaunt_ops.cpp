// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// ops/_operator.py has the same operators in Python, and their second derivatives. The kernels lie
// in a library of their own: they are compiled for processors that this one may not be.
#include "gaunt_ops.h"

#include "operators.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <optional>
#include <vector>

namespace Gaunt {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Kernel = int(int64_t, const GauntArray *, int64_t, int64_t, GauntMatmul, char *);

static void *kernels = nullptr;

static at::ScalarType scalar_type(int64_t type)
{
  return type == FLOAT32 ? at::kFloat : at::kDouble;
}

static int matmul(int64_t type, int64_t transpose_a, int64_t transpose_b, int64_t m, int64_t n,
                  int64_t k, const void *a, const void *b, void *c, int64_t accumulate)
{
  try {
    const auto matrix = [&](const void *data, bool transpose, int64_t rows, int64_t columns) {
      const auto options = at::TensorOptions().dtype(scalar_type(type));
      auto *memory = const_cast<void *>(data);
      return transpose ? at::from_blob(memory, {columns, rows}, options).t()
                       : at::from_blob(memory, {rows, columns}, options);
    };
    auto out = matrix(c, false, m, n);
    at::addmm_out(out, out, matrix(a, transpose_a, m, k), matrix(b, transpose_b, k, n),
                  accumulate ? 1 : 0);
    return 0;
  } catch (...) {    // it can't pass through C
    return 1;
  }
}

// Autograd takes no undefined tensor: what is left out is one of a type that no operand has.
static Tensor or_left_out(const std::optional<Tensor> &tensor)
{
  return tensor.has_value() ? *tensor : at::empty({0}, at::kBool);
}

static bool is_left_out(const Tensor &tensor)
{
  return !tensor.defined() || (tensor.scalar_type() == at::kBool && tensor.numel() == 0);
}

static GauntArray array_of(const Tensor &tensor)
{
  if (is_left_out(tensor)) return {nullptr, FLOAT32, -1, {}};
  const auto type = tensor.scalar_type();
  TORCH_CHECK(tensor.is_cpu() && tensor.dim() <= 4 &&
                  (type == at::kFloat || type == at::kDouble || type == at::kLong),
              "kernels take arrays of float32, float64 or int64 on the CPU");
  GauntArray array{tensor.data_ptr(), type == at::kLong ? INT64 : type == at::kFloat ? FLOAT32 : FLOAT64,
                   tensor.dim(), {}};
  std::copy(tensor.sizes().begin(), tensor.sizes().end(), array.sizes);
  return array;
}

// operators.h has the order of the arrays.
static void run(const std::string &name, GauntPass pass, std::vector<Tensor> tensors)
{
  auto *kernel = reinterpret_cast<Kernel *>(dlsym(kernels, ("gaunt_" + name).c_str()));
  TORCH_CHECK(kernel, "there is no kernel ", name);
  std::vector<GauntArray> arrays;
  for (auto &tensor : tensors) {
    if (tensor.defined()) tensor = tensor.contiguous();    // results are
    arrays.push_back(array_of(tensor));
  }
  char message[512] = "";
  const int status = kernel(pass, arrays.data(), static_cast<int64_t>(arrays.size()),
                            at::get_num_threads(), &matmul, message);
  if (status == OUT_OF_MEMORY) throw std::bad_alloc();
  if (status == WRONG_INDEX) TORCH_CHECK_INDEX(false, message);
  TORCH_CHECK(status == OK, "gaunt::", name, ": ", message);
}

// An operator with its gradient; MD needs no more. `tensors` are the operands, the edges if there
// are some, and the constants.
struct Operator : torch::autograd::Function<Operator> {
  static Tensor forward(AutogradContext *context, const std::string &name, int64_t operands,
                        const std::vector<int64_t> &shape, at::TensorList tensors)
  {
    context->saved_data["name"] = name;
    context->saved_data["operands"] = operands;
    context->save_for_backward(tensors.vec());
    const Tensor out = at::empty(shape, tensors[0].options());
    std::vector<Tensor> arrays{tensors.back()};
    arrays.insert(arrays.end(), tensors.begin(), tensors.end() - 1);
    arrays.push_back(out);
    run(name, FORWARD, arrays);
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients)
  {
    TORCH_CHECK(!at::GradMode::is_enabled(), "kernels have no second derivatives in C++");
    const auto tensors = context->get_saved_variables();
    const auto operands = context->saved_data["operands"].toInt();
    std::vector<Tensor> arrays{tensors.back()};
    arrays.insert(arrays.end(), tensors.begin(), tensors.end() - 1);
    arrays.push_back(gradients[0]);
    variable_list out(3);    // name, number and shape have none
    for (size_t k = 0; k < tensors.size(); ++k) {
      const bool is_operand = static_cast<int64_t>(k) < operands;
      // Kernels can leave out the gradient of the last of several operands.
      const bool needed = operands == 1 || static_cast<int64_t>(k) < operands - 1 ||
          context->needs_input_grad(k);
      Tensor of_tensor;
      if (is_operand && needed && !is_left_out(tensors[k]))
        of_tensor = at::empty(tensors[k].sizes(), tensors[k].options());
      if (is_operand) arrays.push_back(of_tensor);
      out.push_back(of_tensor);
    }
    run(context->saved_data["name"].toStringRef(), BACKWARD, arrays);
    return out;
  }
};

static Tensor apply(const char *name, int64_t operands, std::vector<int64_t> shape,
                    const std::vector<Tensor> &tensors)
{
  return Operator::apply(std::string(name), operands, shape, at::TensorList(tensors));
}

static Tensor convolution(const Tensor &node_feats, const Tensor &frames, const Tensor &weights,
                          const std::optional<Tensor> &mixing, const Tensor &edge_index,
                          const std::optional<Tensor> &rows, const Tensor &constants, int64_t width)
{
  return apply("convolution", 4, {node_feats.size(0), width, node_feats.size(2)},
               {node_feats, frames, weights, or_left_out(mixing), edge_index,
                or_left_out(rows), constants});
}

static Tensor channelwise_convolution(const Tensor &node_feats, const Tensor &harmonics,
                                      const Tensor &weights, const std::optional<Tensor> &mixing,
                                      const Tensor &edge_index, const std::optional<Tensor> &rows,
                                      const Tensor &constants, int64_t width)
{
  return apply("channelwise_convolution", 4, {node_feats.size(0), width},
               {node_feats, harmonics, weights, or_left_out(mixing), edge_index,
                or_left_out(rows), constants});
}

static Tensor edge_frames(const Tensor &directions, const Tensor &constants, int64_t width)
{
  return apply("edge_frames", 1, {directions.size(0), width}, {directions, constants});
}

static Tensor polynomials(const Tensor &node_feats, const Tensor &weights,
                          const Tensor &node_attrs, const Tensor &constants, int64_t width)
{
  return apply("polynomials", 2, {node_feats.size(0), node_feats.size(1), width},
               {node_feats, weights, node_attrs, constants});
}

static Tensor powers(const Tensor &node_feats, const Tensor &weights_out,
                     const std::optional<Tensor> &weights_in, const Tensor &constants,
                     int64_t width)
{
  return apply("powers", 3, {node_feats.size(0), node_feats.size(1), width},
               {node_feats, weights_out, or_left_out(weights_in), constants});
}

static std::string load_and_register()
{
#ifdef __x86_64__
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi2"))
    return "this processor lacks AVX2";
#endif
  // Python's, in the same process: they may have other kernels, or none.
  if (c10::Dispatcher::singleton().findSchema({"gaunt::convolution", ""}))
    return "gaunt_plugin has registered its own in this process";
  Dl_info info;
  if (dladdr(reinterpret_cast<void *>(&load_and_register), &info) == 0 || !info.dli_fname)
    return "this library's folder is unknown";
  const std::string here = info.dli_fname;
  const auto slash = here.rfind('/');
  const auto path = (slash == std::string::npos ? "." : here.substr(0, slash)) + "/gaunt_kernels.so";
  kernels = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!kernels) {
    const char *reason = dlerror();
    return reason ? reason : path;
  }
  static torch::Library library(torch::Library::FRAGMENT, "gaunt", std::nullopt, __FILE__, __LINE__);
  // Each for two keys, where Python may put its own later.
  const auto define = [&](const char *name, const char *schema, auto function) {
    library.def(schema);
    for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::Autograd})
      library.impl(name, torch::dispatch(key, function));
  };
  define("convolution",
         "convolution(Tensor node_feats, Tensor frames, Tensor weights, Tensor? mixing, "
         "Tensor edge_index, Tensor? rows, Tensor constants, int width) -> Tensor",
         TORCH_FN(convolution));
  define("channelwise_convolution",
         "channelwise_convolution(Tensor node_feats, Tensor harmonics, Tensor weights, "
         "Tensor? mixing, Tensor edge_index, Tensor? rows, Tensor constants, int width) -> Tensor",
         TORCH_FN(channelwise_convolution));
  define("edge_frames", "edge_frames(Tensor directions, Tensor constants, int width) -> Tensor",
         TORCH_FN(edge_frames));
  define("polynomials",
         "polynomials(Tensor node_feats, Tensor weights, Tensor node_attrs, Tensor constants, "
         "int width) -> Tensor",
         TORCH_FN(polynomials));
  define("powers",
         "powers(Tensor node_feats, Tensor weights_out, Tensor? weights_in, Tensor constants, "
         "int width) -> Tensor",
         TORCH_FN(powers));
  return "";
}

std::string register_ops()
{
  const char *wanted = std::getenv("GAUNT_KERNELS");
  if (wanted && std::string(wanted) == "0") return "GAUNT_KERNELS is 0";
  static const std::string result = load_and_register();
  return result;
}

}    // namespace Gaunt
