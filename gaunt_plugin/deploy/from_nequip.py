"""NequIP models behind the contract of exported files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Dict, Optional, Tuple

import nequip
import torch
from ase.data import chemical_symbols
from e3nn.util.jit import compile_mode
from e3nn.util.jit import script as e3nn_script
from nequip.data import AtomicDataDict
from nequip.model.modify_utils import modify
from nequip.model.saved_models.load_utils import load_saved_model
from nequip.utils.global_state import set_global_state

from gaunt_plugin.deploy.contract import Description, ModelFileError, edge_gradients


@compile_mode("script")
class EdgeModel(torch.nn.Module):
    """A NequIP model as a function of edge vectors.

    NequIP takes edge vectors as an input. Its edges point the other way: row 0 of its
    ``edge_index`` is the receiver, and its vectors are ``r[sender] - r[receiver]``.

    Args:
        model: a model of the energy alone.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
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
        data: Dict[str, torch.Tensor] = {
            # read for the number of nodes only
            AtomicDataDict.POSITIONS_KEY: torch.zeros(
                types.shape[0], 3, dtype=vectors.dtype, device=vectors.device
            ),
            AtomicDataDict.EDGE_VECTORS_KEY: -vectors,
            AtomicDataDict.EDGE_INDEX_KEY: edge_index.flip(0),
            AtomicDataDict.ATOM_TYPE_KEY: types,
        }
        energies = self.model(data)[AtomicDataDict.PER_ATOM_ENERGY_KEY].view(-1).double()
        return energies.detach(), edge_gradients(energies, vectors, owned)


def load(path: Path) -> torch.nn.Module:
    """Load a checkpoint or a package (both can run code: only from people you trust).

    Raises:
        ModelFileError: not such a file.
    """
    set_global_state()
    try:
        return load_saved_model(str(path))
    except Exception as error:  # torch.package and Lightning raise all kinds
        raise ModelFileError(f"it is no NequIP checkpoint or package ({error})") from error


def edge_model(
    model: torch.nn.Module, head: Optional[str], dtype: Optional[str]
) -> Tuple[torch.nn.Module, Description]:
    """A model behind the contract, as Python code, and its description.

    Args:
        model: stays as it is; its type names must be chemical symbols.
        head: must be None.
        dtype: None, or the one that the model has.

    Raises:
        ModelFileError: the arguments or the model are different.
    """
    if head is not None:
        raise ModelFileError("NequIP models have no heads; leave out --head")
    metadata = model.metadata
    if dtype not in (None, metadata["model_dtype"]):
        raise ModelFileError(
            f"a NequIP model keeps the dtype it was built with, {metadata['model_dtype']}"
        )
    names = tuple(metadata["type_names"].split())
    strange = [name for name in names if name not in chemical_symbols[1:]]
    if strange:
        raise ModelFileError(f"its types {' '.join(strange)} are no chemical symbols")
    # By name: a packaged model has classes of its own.
    layers = sum(type(module).__name__ == "ConvNetLayer" for module in model.modules())
    if layers == 0:
        raise ModelFileError("it has no message-passing layers that are known here")
    model = copy.deepcopy(model)
    # Energy alone: the gradients are taken here.
    model = modify(model, [{"modifier": "disable_ForceStressOutput"}]).eval()
    description = Description(
        elements=names,
        cutoff=float(metadata["r_max"]),
        layers=layers,
        dtype=metadata["model_dtype"],
        versions={"nequip": nequip.__version__, "torch": torch.__version__},
    )
    return EdgeModel(model), description


def script(model: torch.nn.Module) -> torch.jit.ScriptModule:
    """Compile to TorchScript; the model itself stays Python code."""
    return e3nn_script(copy.deepcopy(model), in_place=True)
