// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// Failures that only some ranks may have: a library that one node can't open, memory, a GPU.
#ifndef GAUNT_ON_ALL_RANKS_H
#define GAUNT_ON_ALL_RANKS_H

#include "error.h"
#include "lammps.h"

#include <exception>
#include <mpi.h>
#include <new>
#include <string>

namespace Gaunt {

// Runs `part` on every rank. If it throws on some, all stop with the words of the first of these: a
// rank that stopped alone would wait for the others, and they for it. `part` must neither
// communicate nor call error->all. `name` begins the message.
template <class Part>
void on_all_ranks(LAMMPS_NS::LAMMPS *lmp, const std::string &name, const Part &part)
{
  std::string failure;
  try {
    part();
  } catch (const std::bad_alloc &) {
    failure = name + ": out of memory";
  } catch (const std::exception &problem) {
    failure = name + ": " + problem.what();
  }
  int me = 0, ranks = 1;
  MPI_Comm_rank(lmp->world, &me);
  MPI_Comm_size(lmp->world, &ranks);
  const bool failed = !failure.empty();
  int mine[2] = {failed ? me : ranks, failed}, smallest[2];
  MPI_Allreduce(mine, smallest, 2, MPI_INT, MPI_MIN, lmp->world);
  const int first = smallest[0];
  const bool all_failed = smallest[1];
  if (first == ranks) return;
  int length = static_cast<int>(failure.size());
  MPI_Bcast(&length, 1, MPI_INT, first, lmp->world);
  failure.resize(length);
  MPI_Bcast(&failure[0], length, MPI_CHAR, first, lmp->world);
  if (!all_failed)
    failure += " (on rank " + std::to_string(first) + " of " + std::to_string(ranks) + ")";
  lmp->error->all(FLERR, failure);
}

}    // namespace Gaunt

#endif
