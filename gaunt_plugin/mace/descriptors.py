"""Descriptors of Gaunt models, for ``MACECalculator.get_descriptors`` and ``mace_eval_configs``.

MACE finds the invariants among the node features by a formula that holds for irreps 0e, 1o, 2e, ...
without gaps. Gaunt models may have others, such as 0e + 1o + 1e. They therefore note the irreps of
their layers on the node features, and MACE's function reads that note. It does what it did for
features without one, which are those of all other models.
"""

from __future__ import annotations

import sys

from mace.modules import utils

import torch
from e3nn import o3

_stock = utils.extract_invariant


def note_irreps(node_feats: torch.Tensor, layers: list[o3.Irreps]) -> None:
    """Note on the features of a model which irreps each of its layers has put there."""
    node_feats.gaunt_layers = layers


def extract_invariant(x: torch.Tensor, num_layers: int, num_features: int, l_max: int):
    """MACE's function of this name, which also knows the features of Gaunt models.

    Args:
        x: features of all layers, ``[nodes, features]``.
        num_layers: take invariants of the first so many layers.
        num_features: invariants per layer, by MACE's formula.
        l_max: the highest degree, by MACE's formula.

    Returns:
        The 0e features. 0o is left out, since it changes sign under inversion.
    """
    layers = getattr(x, "gaunt_layers", None)
    if layers is None:
        return _stock(x, num_layers, num_features, l_max)
    parts, start = [], 0
    for irreps in layers[:num_layers]:
        for (_, ir), part in zip(irreps, irreps.slices()):
            if ir == o3.Irrep("0e"):
                parts.append(x[:, start + part.start : start + part.stop])
        start += irreps.dim
    return torch.cat(parts, dim=-1)


def register() -> None:
    """Replace the function for modules that imported it and for those that will."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("extract_invariant") is _stock:
            module.extract_invariant = extract_invariant
