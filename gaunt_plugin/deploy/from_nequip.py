"""NequIP models behind the contract of exported files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import nequip
import torch
from ase.data import chemical_symbols
from e3nn.o3._irreps import Irreps
from e3nn.util.jit import compile_mode
from e3nn.util.jit import script as e3nn_script
from nequip.data import AtomicDataDict
from nequip.model.modify_utils import modify
from nequip.model.saved_models.load_utils import load_saved_model
from nequip.utils.global_state import set_global_state

from gaunt_plugin.deploy import radial
from gaunt_plugin.deploy.contract import DTYPES, Description, ModelFileError, edge_gradients
from gaunt_plugin.layers import ChannelsLastConvolution, GroupedConvolution
from gaunt_plugin.layers.convolution.radial_table import (
    RADIAL,
    RadialTable,
    TabulatedConvolution,
    TabulatedGroups,
    join_radial,
)
from gaunt_plugin.nequip.stock import replace_stock


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
        self.dtype: torch.dtype = DTYPES[model.metadata["model_dtype"]]
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
    replace_stock(model)
    description = Description(
        elements=names,
        cutoff=float(metadata["r_max"]),
        layers=layers,
        dtype=metadata["model_dtype"],
        versions={"nequip": nequip.__version__, "torch": torch.__version__},
    )
    return EdgeModel(model), description


class _TabulatedEncoding(torch.nn.Module):
    """In place of NequIP's encoding of lengths: the place of each edge in the tables."""

    def __init__(self, table: RadialTable, num_types: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = table
        # 0: kinds of edges are all alike
        self.num_types = num_types
        self.dtype = dtype

    def forward(self, data: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        lengths = data[AtomicDataDict.EDGE_LENGTH_KEY].view(-1)
        kinds = torch.zeros_like(data[AtomicDataDict.EDGE_INDEX_KEY][0])
        if self.num_types > 0:
            types = data[AtomicDataDict.EDGE_TYPE_KEY]
            kinds = types[0] * self.num_types + types[1]
        factors, rows = self.table(lengths, kinds)
        data[AtomicDataDict.EDGE_EMBEDDING_KEY] = join_radial(factors.to(self.dtype), rows)
        return data


class _SameData(torch.nn.Module):
    def forward(self, data: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        return data


class _NoLayer(torch.nn.Module):
    """In place of a network's last layer, whose weights are in the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0))
        self.alpha = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class _NoNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.ModuleList([_NoLayer()])


def in_float64(edge_model: EdgeModel) -> EdgeModel:
    """The model itself: those of NequIP keep their dtype."""
    return edge_model


def tabulated(edge_model: EdgeModel, intervals: int) -> torch.nn.Module:
    """The same with tables in place of the radial networks.

    Args:
        edge_model: stays as it is; both share their tensors.
        intervals: of the tables.

    Raises:
        NoTablesError: a part of the model has no tables.
    """
    out = radial.shared_copy(edge_model)
    network = _network(out)
    norm, bessel, factor = (copy.deepcopy(getattr(network, name)).double() for name in _ENCODING)
    bessel._output_dtype = torch.float64
    blocks = [module.conv for module in network if type(module).__name__ == "ConvNetLayer"]
    networks = []
    for block in blocks:
        convolution = getattr(block, "convolution", None)
        if isinstance(convolution, GroupedConvolution):
            for group in convolution.groups:
                radial.check_convolution(group)
        elif not isinstance(convolution, ChannelsLastConvolution):
            where = " of a package" if hasattr(block, "convolution") else ""
            raise radial.NoTablesError(f"it has a {type(block).__name__}{where}")
        networks.append(copy.deepcopy(block.edge_mlp.mlp).double())
    types = norm.num_types if norm._per_edge_type else 0
    cutoffs = (1 / norm._rmax_recip.double()).view(-1).tolist()
    table = RadialTable(radial.START, cutoffs, intervals)

    def features(lengths: torch.Tensor, kind: int) -> List[torch.Tensor]:
        data = {
            AtomicDataDict.EDGE_VECTORS_KEY: lengths.new_zeros(len(lengths), 3),
            AtomicDataDict.EDGE_LENGTH_KEY: lengths.unsqueeze(1),
        }
        if types:
            pair = torch.tensor([[kind // types], [kind % types]])
            data[AtomicDataDict.EDGE_TYPE_KEY] = pair.expand(2, len(lengths))
        for module in (norm, bessel, factor):
            data = module(data)
        return [mlp[:-1](data[AtomicDataDict.EDGE_EMBEDDING_KEY]) for mlp in networks]

    with torch.no_grad():
        mixings = [mlp[-1].weight * mlp[-1].alpha for mlp in networks]
        tables = radial.tables_of(table, features, mixings)
    encoding = _TabulatedEncoding(table.double(), types, edge_model.dtype)
    setattr(network, _ENCODING[1], encoding)
    # What NequIP's modules say of the array that they hand on.
    for module in out.modules():
        for irreps in (getattr(module, "irreps_in", None), getattr(module, "irreps_out", None)):
            if isinstance(irreps, dict) and AtomicDataDict.EDGE_EMBEDDING_KEY in irreps:
                irreps[AtomicDataDict.EDGE_EMBEDDING_KEY] = Irreps([(RADIAL, (0, 1))])
    setattr(network, _ENCODING[2], _SameData())
    for block, values in zip(blocks, tables):
        if isinstance(block.convolution, ChannelsLastConvolution):
            with_table = TabulatedConvolution(block.convolution.convolution, values.numpy(), True)
        else:
            with_table = TabulatedGroups(block.convolution, values.numpy())
        block.convolution = with_table.to(edge_model.dtype)
        block.edge_mlp = _NoNetwork().to(edge_model.dtype)
    return radial.TabulatedModel(out, edge_model, radial.START)


# What encodes lengths in NequIP's networks.
_ENCODING = ("edge_norm", "bessel_encode", "factor")


def _network(edge_model: EdgeModel) -> torch.nn.Module:
    """The sequence of modules of NequIP's GNN model."""
    for module in edge_model.model.modules():
        if all(hasattr(module, name) for name in _ENCODING):
            return module
    raise radial.NoTablesError("it isn't made as NequIP's own models are")


def script(model: torch.nn.Module) -> torch.jit.ScriptModule:
    """Compile to TorchScript; the model itself stays Python code."""
    return e3nn_script(copy.deepcopy(model), in_place=True)
