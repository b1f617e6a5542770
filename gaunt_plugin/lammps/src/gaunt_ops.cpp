// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// kernels/ops.py has the same operators in Python. The kernels lie in a library of their own: they
// are compiled for processors that this one may not be.
#include "gaunt_ops.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <optional>
#include <type_traits>
#include <vector>

namespace Gaunt {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

static void *kernels = nullptr;

// What all passes of a kernel share; an index that is not defined is none.
struct Call {
  std::string kernel;
  std::vector<int64_t> sizes;
  Tensor program, index;
};

// kernels.h has the interface.
static void run(const Call &call, std::vector<Tensor> inputs, const std::vector<Tensor> &outputs)
{
  TORCH_CHECK(inputs.size() <= 7 && outputs.size() <= 5 && call.program.scalar_type() == at::kLong,
              "no call of the kernel ", call.kernel);
  for (auto &input : inputs) {
    TORCH_CHECK(input.is_cpu() && input.scalar_type() == inputs[0].scalar_type(),
                "arrays of a kernel must be on the CPU and of one dtype");
    input = input.contiguous();
  }
  const Tensor index = call.index.defined() ? call.index.to(at::kLong).contiguous() : Tensor();
  auto sizes = call.sizes;
  sizes.push_back(at::get_num_threads());
  AT_DISPATCH_FLOATING_TYPES(inputs[0].scalar_type(), "gaunt kernel", [&] {
    using Kernel = int(const int64_t *, const int64_t *, const int64_t *, const scalar_t *const *,
                       scalar_t *const *);
    const auto symbol = "gaunt_" + call.kernel + (std::is_same_v<scalar_t, float> ? "_f32" : "_f64");
    auto *kernel = reinterpret_cast<Kernel *>(dlsym(kernels, symbol.c_str()));
    TORCH_CHECK(kernel, "there is no kernel ", symbol);
    const scalar_t *in[7] = {};
    scalar_t *out[5] = {};
    for (size_t i = 0; i < inputs.size(); ++i) in[i] = inputs[i].const_data_ptr<scalar_t>();
    for (size_t i = 0; i < outputs.size(); ++i) out[i] = outputs[i].mutable_data_ptr<scalar_t>();
    const auto *edges = index.defined() ? index.const_data_ptr<int64_t>() : nullptr;
    const int failed = kernel(call.program.const_data_ptr<int64_t>(), sizes.data(), edges, in, out);
    TORCH_CHECK_INDEX(!failed, "an edge's index is out of range");
  });
}

// kernels/radial.py: the convolution with weights that are made for a block of edges at a time.
// With a gradient g also those of <g, forward>, in the order of the inputs.
static void run_radial(const Call &call, const std::vector<Tensor> &inputs, const Tensor &g,
                       const std::vector<Tensor> &outputs, bool needs_mixing)
{
  const auto &hidden = inputs[2], &mixing = inputs[3];
  const int64_t edges = hidden.size(0), width = mixing.size(1);
  const int64_t block = (int64_t{1} << 19) * at::get_num_threads() / std::max<int64_t>(1, width);
  const int64_t rows = std::max<int64_t>(1, block);
  Call part{"convolution", call.sizes, call.program, {}};
  for (int64_t begin = 0; begin < edges; begin += rows) {
    const int64_t end = std::min(begin + rows, edges);
    part.sizes[1] = end - begin;
    part.index = call.index.slice(1, begin, end);
    const auto h = hidden.slice(0, begin, end), w = at::mm(h, mixing);
    const auto entries = inputs[1].slice(0, begin, end);
    if (!g.defined()) {
      run(part, {inputs[0], entries, w}, outputs);
      continue;
    }
    const auto of_w = at::empty_like(w);
    run(part, {inputs[0], entries, w, g}, {outputs[0], outputs[1].slice(0, begin, end), of_w});
    auto of_hidden = outputs[2].slice(0, begin, end);
    at::mm_out(of_hidden, of_w, mixing.t());
    if (needs_mixing) outputs[3].addmm_(h.t(), of_w);
  }
}

static bool is_radial(const Call &call) { return call.kernel == "radial_convolution"; }

// A kernel with its gradient; MD needs no more.
struct Fused : torch::autograd::Function<Fused> {
  static Tensor forward(AutogradContext *context, const Call &call,
                        const std::vector<int64_t> &shape, at::TensorList inputs)
  {
    context->saved_data["kernel"] = call.kernel;
    context->saved_data["sizes"] = call.sizes;
    context->saved_data["program"] = call.program;
    context->saved_data["index"] = call.index;
    context->save_for_backward(inputs.vec());
    const Tensor out = at::zeros(shape, inputs[0].options());    // some kernels add
    if (is_radial(call))
      run_radial(call, inputs.vec(), {}, {out}, false);
    else
      run(call, inputs.vec(), {out});
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients)
  {
    TORCH_CHECK(!at::GradMode::is_enabled(), "kernels have no second derivatives in C++");
    auto &data = context->saved_data;
    const Call call{data["kernel"].toStringRef(), data["sizes"].toIntVector(),
                    data["program"].toTensor(), data["index"].toTensor()};
    variable_list inputs = context->get_saved_variables(), out;
    for (const auto &input : inputs) out.push_back(at::zeros(input.sizes(), input.options()));
    if (is_radial(call)) {
      run_radial(call, inputs, gradients[0], out, context->needs_input_grad(3));
    } else {
      inputs.push_back(gradients[0]);
      run(call, inputs, out);
    }
    out.insert(out.begin(), 2, Tensor());    // call and shape have none
    return out;
  }
};

static Tensor fused(c10::string_view kernel, const Tensor &program, at::IntArrayRef sizes,
                    at::IntArrayRef shape, const std::optional<Tensor> &index,
                    at::TensorList inputs)
{
  const Call call{std::string(kernel), sizes.vec(), program, index.value_or(Tensor())};
  return Fused::apply(call, shape.vec(), inputs);
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
  if (c10::Dispatcher::singleton().findSchema({"gaunt::fused", ""}))
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
  library.def("fused(str kernel, Tensor program, SymInt[] sizes, SymInt[] shape, Tensor? index, "
              "Tensor[] inputs) -> Tensor",
              fused);
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
