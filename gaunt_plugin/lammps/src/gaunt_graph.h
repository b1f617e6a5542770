// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// From atoms and their neighbours to the nodes and edges that a message-passing model needs.
#ifndef GAUNT_GRAPH_H
#define GAUNT_GRAPH_H

#include <cstdint>
#include <vector>

namespace Gaunt {

// What the graph is made of; the arrays belong to the caller.
struct Atoms {
  int num_owned = 0;                       // entries of `owned`
  const int *owned = nullptr;              // indices of the atoms of this rank
  const double *const *x = nullptr;        // [atoms][3] positions, ghosts at their images, Angstrom
  const std::int64_t *tag = nullptr;       // [atoms] the same for an atom and all its images
  const int *type = nullptr;               // [atoms] type in the model, or -1: not there
  const int *num_neighbors = nullptr;      // [atoms]
  const int *const *neighbors = nullptr;   // [atoms][num_neighbors] indices
  int neighbor_mask = -1;                  // the bits of a neighbour that are its index
};

// Nodes are atoms, not images: a node's neighbours are the same at all its images, so one node
// serves them all, and edge vectors tell the images apart. Owned nodes come first.
struct Graph {
  std::int64_t num_owned = 0;
  std::vector<std::int64_t> types;        // [nodes]
  std::vector<int> atoms;                 // [nodes] an atom of each node: the owned one or a ghost
  std::vector<std::int64_t> senders;      // [edges]
  std::vector<std::int64_t> receivers;    // [edges]
  std::vector<double> vectors;            // [edges][3], x[receiver] - x[sender], Angstrom
};

// The graph that decides the energies of the owned atoms: edges (shorter than `cutoff`) into all
// nodes that are at most `layers` - 1 edges away from an owned one. With all nodes owned (one
// rank) no neighbours of ghosts are asked for.
Graph build_graph(const Atoms &atoms, double cutoff, int layers);

}    // namespace Gaunt

#endif
