// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

#ifndef LMP_PAIR_GAUNT_H
#define LMP_PAIR_GAUNT_H

#include "pair.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace Gaunt {
struct Graph;
class Model;
}

namespace LAMMPS_NS {

// pair_style gaunt [device NAME] [threads N]
// pair_coeff * * FILE SYMBOL ...
class PairGaunt : public Pair {
 public:
  explicit PairGaunt(class LAMMPS *);
  ~PairGaunt() override;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void setup() override;
  void compute(int, int) override;
  double memory_usage() override;
  void *extract(const char *, int &) override;

 private:
  void allocate();
  void read_settings(int, char **);
  std::vector<int> map_types(const Gaunt::Model &, char **) const;
  void check_bonds();
  void check_lists();
  double needed_comm_cutoff() const;
  Gaunt::Graph make_graph(int);

  std::unique_ptr<Gaunt::Model> model;
  std::string device = "cpu";
  int threads = 0;               // 0: as many as LAMMPS was given
  std::vector<int> type_map;     // LAMMPS type -> type of the model, -1: not this pair style's
  bool needs_ghosts = false;     // several ranks share the layers of the model
  double energy_unit = 1.0;      // eV in LAMMPS's unit
  double bytes = 0.0;            // of the graph and the arrays at the last step

  std::vector<std::int64_t> tags;    // [local and ghost atoms], for the graph
  std::vector<int> types;            // [local and ghost atoms]
};

}    // namespace LAMMPS_NS

#endif
