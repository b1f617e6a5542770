"""Descriptors of Gaunt models, for ``MACECalculator.get_descriptors`` and ``mace_eval_configs``.

MACE finds the invariants among the node features by a formula that holds for irreps 0e, 1o, 2e, ...
without gaps. Gaunt models may have others, such as 0e + 1o + 1e. They therefore note on their node
features where the invariants are, and MACE's function reads that note. It does what it did for
features without one, which are those of all other models.
"""

from __future__ import annotations

import sys

from mace.modules import utils

import torch
from e3nn import o3

_stock = utils.extract_invariant


def note_invariants(node_feats: torch.Tensor, layers: list[o3.Irreps]) -> None:
    """Note on ``node_feats [nodes, features of all layers]`` where each layer's 0e features are.

    0o is not among them: it changes sign under inversion.
    """
    notes, start = [], 0
    for irreps in layers:
        parts = [part for (_, ir), part in zip(irreps, irreps.slices()) if (ir.l, ir.p) == (0, 1)]
        notes.append([(start + part.start, start + part.stop) for part in parts])
        start += irreps.dim
    node_feats.gaunt_invariants = notes  # plain numbers: the features may be saved


def extract_invariant(x: torch.Tensor, num_layers: int, num_features: int, l_max: int):
    """MACE's function of this name, which also reads the notes of Gaunt models.

    Args:
        x: features of all layers, ``[nodes, features]``.
        num_layers: take the invariants of the first so many layers.
        num_features: invariants per layer, for MACE's formula.
        l_max: highest degree, for MACE's formula.

    Returns:
        ``[nodes, invariants]``.
    """
    notes = getattr(x, "gaunt_invariants", None)
    if notes is None:
        return _stock(x, num_layers, num_features, l_max)
    parts = [x[:, start:stop] for layer in notes[:num_layers] for start, stop in layer]
    return torch.cat(parts, dim=-1)


def register() -> None:
    """Replace the function for modules that imported it and for those that will."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("extract_invariant") is _stock:
            module.extract_invariant = extract_invariant
