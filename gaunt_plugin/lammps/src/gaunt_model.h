// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// An exported model, behind an interface without libtorch.
#ifndef GAUNT_MODEL_H
#define GAUNT_MODEL_H

#include "gaunt_graph.h"

#include <memory>
#include <string>
#include <vector>

namespace Gaunt {

// The contract between `gaunt export` and this code; contract.py documents it.
constexpr int CONTRACT_VERSION = 1;

// Energies in eV, gradients in eV/Angstrom.
struct Result {
  std::vector<double> energies;     // per owned node
  std::vector<double> gradients;    // [edges][3], dE/d(edge vector), E of the owned nodes
};

class Model {
 public:
  // `bytes` is the content of the file; `device` is as torch writes it, or "auto".
  // Throws std::runtime_error with one sentence that names the cause.
  Model(const std::string &bytes, const std::string &device, int local_rank);
  ~Model();

  // With `threads` for libtorch's operators. Throws std::runtime_error like the constructor.
  Result evaluate(const Graph &graph, int threads);

  std::vector<std::string> elements;    // symbols in the order of the model's types
  double cutoff = 0.0;                  // Angstrom
  int layers = 0;                       // of message passing
  std::string dtype;                    // float32 or float64
  std::string device;                   // what it runs on
  std::string kernels;                  // a note on compiled kernels, if the file has them

 private:
  void load(const std::string &bytes, const std::string &device_name, int local_rank);

  struct Program;
  std::unique_ptr<Program> program;
};

}    // namespace Gaunt

#endif
