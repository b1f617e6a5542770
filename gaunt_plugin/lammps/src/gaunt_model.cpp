// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

#include <ATen/Parallel.h>
#include <c10/core/DefaultDtype.h>
#include <caffe2/serialize/in_memory_adapter.h>
#include <torch/cuda.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include "gaunt_model.h"
#include "gaunt_ops.h"

#include <mutex>
#include <new>
#include <sstream>
#include <stdexcept>

namespace Gaunt {

struct Model::Program {
  torch::jit::Module module;
  torch::Device device = torch::kCPU;
};

static const char *const OUT_OF_MEMORY = "out of memory";

// libtorch's message without its stack trace: the last line says what is wrong, at times after
// a traceback through TorchScript.
static std::string reason(const std::exception &error)
{
  const auto *own = dynamic_cast<const c10::Error *>(&error);
  std::string text = own ? own->what_without_backtrace() : error.what();
  // TorchScript makes text of other exceptions.
  for (const auto *memory : {"std::bad_alloc", "DefaultCPUAllocator"})
    if (text.find(memory) != std::string::npos) return OUT_OF_MEMORY;
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  const auto line = text.rfind('\n');
  return line == std::string::npos ? text : text.substr(line + 1);
}

// TorchScript's default executor watches the first calls and compiles for the sizes it saw. Here
// the number of edges changes all the time: that costs seconds at the start and again whenever a
// size is new, and gains nothing afterwards. Run as written instead.
// A constant times integers (nuclear charges) has torch's default dtype, which MACE sets to that of
// the model; it would be float32 here.
// These settings, and the number of threads, belong to the process, so they are put back. LAMMPS
// instances in several threads take turns; a thread that uses libtorch without LAMMPS can meet them.
class RunAsWritten {
 public:
  RunAsWritten(const std::string &dtype, int wanted) :
      turn(process), executor(torch::jit::getExecutorMode().exchange(false)),
      optimize(torch::jit::getGraphExecutorOptimize()), number(c10::get_default_dtype()),
      threads(at::get_num_threads())
  {
    torch::jit::setGraphExecutorOptimize(false);
    if (threads != wanted) at::set_num_threads(wanted);
    c10::set_default_dtype(
        c10::scalarTypeToTypeMeta(dtype == "float64" ? torch::kFloat64 : torch::kFloat32));
  }
  ~RunAsWritten()
  {
    if (threads != at::get_num_threads()) at::set_num_threads(threads);
    c10::set_default_dtype(number);
    torch::jit::setGraphExecutorOptimize(optimize);
    torch::jit::getExecutorMode() = executor;
  }
  RunAsWritten(const RunAsWritten &) = delete;
  RunAsWritten &operator=(const RunAsWritten &) = delete;

 private:
  static inline std::mutex process;
  std::lock_guard<std::mutex> turn;
  bool executor, optimize;
  caffe2::TypeMeta number;
  int threads;
};

static torch::jit::Module read(const std::string &bytes, torch::jit::ExtraFilesMap &extra)
{
  const auto size = static_cast<off_t>(bytes.size());
  auto source = std::make_shared<caffe2::serialize::MemoryReadAdapter>(bytes.data(), size);
  return torch::jit::load(source, torch::kCPU, extra);
}

static double number(const std::string &name, const std::string &text)
{
  std::size_t end = 0;
  double value = 0.0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception &) {
  }
  if (end == 0 || end != text.size())
    throw std::runtime_error("its entry '" + name + "' is '" + text + "', which is no number");
  return value;
}

static torch::Device pick_device(const std::string &name, int local_rank)
{
  const auto gpus = static_cast<int>(torch::cuda::is_available() ? torch::cuda::device_count() : 0);
  if (name == "cpu" || (name == "auto" && gpus == 0)) return torch::kCPU;
  if (gpus == 0)
    throw std::runtime_error("device " + name + " asked for, but this libtorch sees no GPU");
  if (name == "cuda" || name == "auto")
    return torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(local_rank % gpus));
  torch::Device device(name);
  if (!device.is_cuda() || device.index() >= gpus)
    throw std::runtime_error("there is no device " + name);
  return device;
}

Model::Model(const std::string &bytes, const std::string &device_name, int local_rank) :
    program(std::make_unique<Program>())
{
  try {
    load(bytes, device_name, local_rank);
  } catch (const std::exception &error) {
    throw std::runtime_error(reason(error));
  }
}

void Model::load(const std::string &bytes, const std::string &device_name, int local_rank)
{
  torch::jit::ExtraFilesMap extra = {{"gaunt_contract", ""}, {"gaunt_elements", ""},
                                     {"gaunt_cutoff", ""},   {"gaunt_layers", ""},
                                     {"gaunt_dtype", ""},    {"gaunt_versions", ""},
                                     {"gaunt_kernels", ""}};
  const char *hint = "; write it with gaunt export";
  std::string failure;
  try {
    program->module = read(bytes, extra);
  } catch (const std::exception &error) {
    failure = reason(error);
    if (failure == OUT_OF_MEMORY) throw;
  }
  // A file that holds something else has none of the entries; one that can't be read may have.
  if (extra["gaunt_contract"].empty())
    throw std::runtime_error(std::string("it is not a model file for pair_style gaunt") + hint +
                             (failure.empty() ? "" : " (" + failure + ")"));
  if (number("contract", extra["gaunt_contract"]) > CONTRACT_VERSION)
    throw std::runtime_error("it was written by a newer gaunt_plugin (contract version " +
                             extra["gaunt_contract"] + ", this pair style knows up to " +
                             std::to_string(CONTRACT_VERSION) +
                             "): update gaunt_plugin and run gaunt build lammps");
  if (!failure.empty())
    throw std::runtime_error("libtorch can't read it (written with " + extra["gaunt_versions"] +
                             "): " + failure);

  std::istringstream symbols(extra["gaunt_elements"]);
  for (std::string symbol; symbols >> symbol;) elements.push_back(symbol);
  cutoff = number("cutoff", extra["gaunt_cutoff"]);
  layers = static_cast<int>(number("layers", extra["gaunt_layers"]));
  dtype = extra["gaunt_dtype"];
  if (elements.empty() || !(cutoff > 0.0) || layers < 0 ||
      (dtype != "float32" && dtype != "float64"))
    throw std::runtime_error(std::string("its description is damaged") + hint);

  program->device = pick_device(device_name, local_rank);
  device = program->device.str();
  if (program->device.is_cpu() && !extra["gaunt_kernels"].empty()) {
    const auto missing = register_ops();
    kernels = missing.empty() ? ", compiled kernels" : ", no compiled kernels: " + missing;
    if (missing.empty()) {
      torch::jit::ExtraFilesMap none;
      try {
        program->module = read(extra["gaunt_kernels"], none);
      } catch (const std::exception &error) {
        if (reason(error) == OUT_OF_MEMORY) throw;
        throw std::runtime_error("libtorch can't read its program with kernels: " + reason(error) +
                                 "; GAUNT_KERNELS=0 runs it without");
      }
    }
  }
  program->module.eval();
  program->module.to(program->device);
}

Model::~Model() = default;

Result Model::evaluate(const Graph &graph, int threads)
{
  const auto edges = static_cast<int64_t>(graph.senders.size());
  const auto nodes = static_cast<int64_t>(graph.types.size());
  Result result;
  std::string failure;
  try {
    const auto doubles = torch::TensorOptions().dtype(torch::kFloat64);
    const auto longs = torch::TensorOptions().dtype(torch::kInt64);
    auto *vectors_data = const_cast<double *>(graph.vectors.data());
    auto vectors = torch::from_blob(vectors_data, {edges, 3}, doubles);
    auto index = torch::empty({2, edges}, longs);
    std::copy(graph.senders.begin(), graph.senders.end(), index.data_ptr<int64_t>());
    std::copy(graph.receivers.begin(), graph.receivers.end(), index.data_ptr<int64_t>() + edges);
    auto types = torch::from_blob(const_cast<int64_t *>(graph.types.data()), {nodes}, longs);
    auto owned = torch::zeros({nodes}, torch::kBool);
    owned.slice(0, 0, graph.num_owned).fill_(true);

    const RunAsWritten settings(dtype, threads);
    const auto on = program->device;
    auto output = program->module
                      .forward({vectors.to(on), index.to(on), types.to(on), owned.to(on)})
                      .toTuple();
    auto energies = output->elements().at(0).toTensor().to(torch::kCPU, torch::kFloat64);
    auto gradients = output->elements().at(1).toTensor().to(torch::kCPU, torch::kFloat64);
    energies = energies.slice(0, 0, graph.num_owned).contiguous();
    gradients = gradients.contiguous();
    if (energies.numel() != graph.num_owned || gradients.numel() != 3 * edges)
      throw std::runtime_error("the model returned arrays of the wrong size");
    if (!energies.isfinite().all().item<bool>() || !gradients.isfinite().all().item<bool>())
      throw std::runtime_error("energies or forces are not finite; are atoms on top of each other?");
    const auto *e = energies.data_ptr<double>();
    const auto *g = gradients.data_ptr<double>();
    result.energies.assign(e, e + energies.numel());
    result.gradients.assign(g, g + gradients.numel());
    return result;
  } catch (const std::exception &error) {
    failure = reason(error);
  }
  throw std::runtime_error("evaluating " + std::to_string(nodes) + " atoms (" +
                           std::to_string(graph.num_owned) + " of this rank) and " +
                           std::to_string(edges) + " edges on " + device + " failed: " + failure);
}

}    // namespace Gaunt
