// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

#include "gaunt_graph.h"

#include <unordered_map>

namespace Gaunt {

Graph build_graph(const Atoms &atoms, double cutoff, int layers)
{
  Graph graph;
  std::unordered_map<std::int64_t, std::int64_t> node_of;    // by tag
  node_of.reserve(2 * static_cast<std::size_t>(atoms.num_owned));
  const auto add_node = [&](int i) {
    graph.types.push_back(atoms.type[i]);
    graph.atoms.push_back(i);
    return static_cast<std::int64_t>(graph.types.size()) - 1;
  };
  for (int k = 0; k < atoms.num_owned; ++k) {
    const int i = atoms.owned[k];
    if (atoms.type[i] >= 0) node_of.emplace(atoms.tag[i], add_node(i));
  }
  graph.num_owned = static_cast<std::int64_t>(graph.types.size());

  // Layer by layer away from the owned atoms. The image at which a node is first met is the one
  // fewest edges away, whose neighbours are all on this rank.
  std::int64_t begin = 0;
  for (int layer = 0; layer < layers; ++layer) {
    const auto end = static_cast<std::int64_t>(graph.types.size());
    for (std::int64_t receiver = begin; receiver < end; ++receiver) {
      const int i = graph.atoms[receiver];
      const double *xi = atoms.x[i];
      for (int k = 0; k < atoms.num_neighbors[i]; ++k) {
        const int j = atoms.neighbors[i][k] & atoms.neighbor_mask;
        if (atoms.type[j] < 0) continue;
        const double *xj = atoms.x[j];
        const double d[3] = {xi[0] - xj[0], xi[1] - xj[1], xi[2] - xj[2]};
        if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= cutoff * cutoff) continue;
        const auto found = node_of.find(atoms.tag[j]);
        std::int64_t sender;
        if (found == node_of.end()) {
          sender = add_node(j);
          node_of.emplace(atoms.tag[j], sender);
        } else {
          sender = found->second;
        }
        graph.senders.push_back(sender);
        graph.receivers.push_back(receiver);
        graph.vectors.insert(graph.vectors.end(), d, d + 3);
      }
    }
    begin = end;
  }
  return graph;
}

}    // namespace Gaunt
