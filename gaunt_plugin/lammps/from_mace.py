"""MACE models behind the contract of exported files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Dict, List, Optional, Tuple

# First: it prepares torch for e3nn 0.4.4.
import mace
from mace.tools.utils import AtomicNumberTable  # noqa: F401 (models refer to it)

import torch
from ase.data import chemical_symbols
from e3nn.util import jit
from e3nn.util.jit import compile_mode

from gaunt_plugin.lammps.contract import DTYPES, Description, ModelFileError

# The models whose energy is a function of edge vectors and elements alone.
_MODELS = ("MACE", "ScaleShiftMACE")


@compile_mode("script")
class EdgeModel(torch.nn.Module):
    """A MACE model as a function of edge vectors.

    MACE computes ``positions[receiver] - positions[sender] + shifts``. With all positions zero
    the shifts are the edge vectors, and the model is differentiated with respect to them.

    Args:
        model: the model, in the dtype it shall have.
        head: number of the head whose energies are returned.
    """

    def __init__(self, model: torch.nn.Module, head: int) -> None:
        super().__init__()
        self.model = model
        self.num_elements = len(model.atomic_numbers)
        self.register_buffer("head", torch.tensor([head], dtype=torch.long))
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def forward(
        self,
        edge_vectors: torch.Tensor,
        edge_index: torch.Tensor,
        types: torch.Tensor,
        owned: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        vectors = edge_vectors.detach().requires_grad_(True)
        num_nodes = types.shape[0]
        node_attrs = torch.zeros(
            num_nodes, self.num_elements, dtype=vectors.dtype, device=vectors.device
        )
        node_attrs.scatter_(1, types.unsqueeze(1), 1.0)
        data: Dict[str, torch.Tensor] = {
            "positions": torch.zeros(num_nodes, 3, dtype=vectors.dtype, device=vectors.device),
            "shifts": vectors,
            "unit_shifts": torch.zeros_like(edge_vectors),
            "cell": torch.zeros(3, 3, dtype=vectors.dtype, device=vectors.device),
            "edge_index": edge_index,
            "node_attrs": node_attrs,
            "batch": torch.zeros_like(types),
            "ptr": torch.tensor([0, num_nodes], dtype=torch.long, device=types.device),
            "head": self.head,
        }
        output = self.model(data, compute_force=False)
        energies = output["node_energy"]
        assert energies is not None
        energies = energies.double()
        gradient: Optional[torch.Tensor] = None
        if vectors.shape[0] > 0:
            total: List[torch.Tensor] = [energies[owned].sum()]
            gradient = torch.autograd.grad(total, [vectors], allow_unused=True)[0]
        if gradient is None:
            gradient = torch.zeros_like(edge_vectors)
        return energies.detach(), gradient


def read(path: Path) -> torch.nn.Module:
    """Load a ``.model`` file (a pickle, which can run code: only from people you trust).

    Raises:
        ModelFileError: not such a file, or a model of another kind.
    """
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ImportError, AttributeError) as error:
        raise ModelFileError(f"{path} is no MACE model: {error}") from error
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelFileError(
            f"{path} is compiled already; export the .model file it was compiled from"
        )
    if type(model).__name__ not in _MODELS or not isinstance(model, torch.nn.Module):
        raise ModelFileError(
            f"{path} holds a {type(model).__name__}; possible are {' and '.join(_MODELS)}"
        )
    if hasattr(model, "joint_embedding"):
        raise ModelFileError(
            f"{path} takes charge, spin or other inputs besides positions and elements, which "
            "LAMMPS can't give it"
        )
    return model


def edge_model(
    path: Path, head: Optional[str], dtype: Optional[str]
) -> Tuple[torch.nn.Module, Description]:
    """The eager edge model of a file, and its description.

    Args:
        path: a ``.model`` file.
        head: name of a head; may be left out if there is only one.
        dtype: ``"float32"``, ``"float64"`` or None for the model's own.

    Raises:
        ModelFileError: wrong file, unknown head, or a head must be chosen.
    """
    model = read(path)
    heads = getattr(model, "heads", None) or ["Default"]
    if head is None and len(heads) > 1:
        # The calculator asks, too; taking one silently would give another model's energies.
        raise ModelFileError(f"{path} has the heads {', '.join(heads)}: choose one with --head")
    if head is not None and head not in heads:
        raise ModelFileError(f"{path} has no head {head!r}; possible: {', '.join(heads)}")
    own = next(model.parameters()).dtype
    name = dtype or {value: key for key, value in DTYPES.items()}[own]
    model = model.to(DTYPES[name]).eval()
    description = Description(
        elements=tuple(chemical_symbols[int(number)] for number in model.atomic_numbers),
        cutoff=float(model.r_max),
        layers=int(model.num_interactions),
        dtype=name,
        versions={"mace-torch": mace.__version__, "torch": torch.__version__},
    )
    return EdgeModel(model, heads.index(head) if head is not None else 0), description


def script(model: torch.nn.Module) -> torch.jit.ScriptModule:
    """Compile to TorchScript; the model itself stays Python code."""
    return jit.script(model, in_place=False)
