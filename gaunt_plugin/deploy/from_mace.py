"""MACE models behind the contract of exported files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import mace  # first: it prepares torch for e3nn 0.4.4

import torch
from ase.data import chemical_symbols
from e3nn.util import jit
from e3nn.util.jit import compile_mode

from gaunt_plugin.deploy import radial
from gaunt_plugin.deploy.contract import DTYPES, Description, ModelFileError, edge_gradients
from gaunt_plugin.layers import ChannelsLastConvolution, LayoutLinear
from gaunt_plugin.layers.convolution.radial_table import (
    RadialTable,
    TabulatedConvolution,
    TabulatedFunctions,
    join_radial,
)
from gaunt_plugin.mace.channels_last import ChannelsFirst, FixedLinear
from gaunt_plugin.mace.scripting import replace_gates
from gaunt_plugin.mace.weights import load_weights

# The models whose energy is a function of edge vectors and elements alone.
_MODELS = ("MACE", "ScaleShiftMACE")
# Blocks whose radial weights depend on nothing but distance and elements.
_TABULATED = (
    "GauntInteractionBlock",
    "GauntResidualInteractionBlock",
    "GauntDensityInteractionBlock",
    "GauntDensityResidualInteractionBlock",
)


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
        self.dtype: torch.dtype = model.r_max.dtype
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
        vectors = edge_vectors.detach().to(self.dtype).requires_grad_(True)
        num_nodes = types.shape[0]
        node_attrs = torch.zeros(
            num_nodes, self.num_elements, dtype=vectors.dtype, device=vectors.device
        )
        node_attrs.scatter_(1, types.unsqueeze(1), 1.0)
        data: Dict[str, torch.Tensor] = {
            "positions": torch.zeros(num_nodes, 3, dtype=vectors.dtype, device=vectors.device),
            "shifts": vectors,
            "unit_shifts": torch.zeros_like(vectors),
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
        return energies.detach(), edge_gradients(energies, vectors, owned).double()


def load(path: Path) -> torch.nn.Module:
    """Load a ``.model`` (a pickle, which can run code: only from people you trust) or ``.weights``.

    Raises:
        ModelFileError: not such a file.
    """
    if path.suffix == ".weights":
        try:
            return load_weights(path)
        except ValueError as error:
            raise ModelFileError(str(error)) from error
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ImportError, AttributeError) as error:
        raise ModelFileError(f"it is no MACE model ({error})") from error
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelFileError("it is compiled already; export the .model it was compiled from")
    return model


def check(model: torch.nn.Module) -> None:
    """Refuse a model that is not a function of edge vectors and elements alone.

    Raises:
        ModelFileError: such a model.
    """
    if type(model).__name__ not in _MODELS or not isinstance(model, torch.nn.Module):
        raise ModelFileError(
            f"it is a {type(model).__name__}; possible are {' and '.join(_MODELS)}"
        )
    if hasattr(model, "joint_embedding"):
        raise ModelFileError(
            "it takes charge, spin or other inputs besides positions and elements, which LAMMPS "
            "can't give it"
        )


def head_index(model: torch.nn.Module, head: Optional[str]) -> int:
    """The number of a head, which may be left out if there is only one.

    Raises:
        ModelFileError: no such head, or several to choose from.
    """
    heads = getattr(model, "heads", None) or ["Default"]
    if head is None and len(heads) > 1:
        # Taking one silently would give another model's energies.
        raise ModelFileError(f"it has the heads {', '.join(heads)}: choose one with --head")
    if head is not None and head not in heads:
        raise ModelFileError(f"it has no head {head!r}; possible: {', '.join(heads)}")
    return heads.index(head) if head is not None else 0


def edge_model(
    model: torch.nn.Module, head: Optional[str], dtype: Optional[str]
) -> Tuple[torch.nn.Module, Description]:
    """A model behind the contract, as Python code, and its description.

    Args:
        model: stays as it is.
        head: name of a head; may be left out if there is only one.
        dtype: ``"float32"``, ``"float64"`` or None for the model's own.

    Raises:
        ModelFileError: another kind of model, unknown head, or a head must be chosen.
    """
    check(model)
    number = head_index(model, head)
    names = {value: key for key, value in DTYPES.items()}
    name = dtype or names[next(model.parameters()).dtype]
    model = copy.deepcopy(model).to(DTYPES[name]).eval()
    replace_gates(model)
    description = Description(
        elements=tuple(chemical_symbols[int(z)] for z in model.atomic_numbers),
        cutoff=float(model.r_max),
        layers=int(model.num_interactions),
        dtype=name,
        versions={"mace-torch": mace.__version__, "torch": torch.__version__},
    )
    return EdgeModel(model, number), description


class _TabulatedEmbedding(torch.nn.Module):
    """In place of MACE's radial embedding: the place of each edge in the tables."""

    def __init__(self, table: RadialTable, num_elements: int) -> None:
        super().__init__()
        self.table = table
        # 0: kinds of edges are all alike
        self.num_elements = num_elements

    def forward(
        self,
        edge_lengths: torch.Tensor,
        node_attrs: torch.Tensor,
        edge_index: torch.Tensor,
        atomic_numbers: torch.Tensor,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        kinds = torch.zeros_like(edge_index[0])
        if self.num_elements > 0:
            elements = node_attrs.argmax(1)[edge_index]
            kinds = elements[0] * self.num_elements + elements[1]
        factors, rows = self.table(edge_lengths.squeeze(1), kinds)
        return join_radial(factors, rows), None


def _convolution_of(block: torch.nn.Module) -> torch.nn.Module:
    convolution = block.conv_tp.convolution
    if isinstance(convolution, ChannelsLastConvolution):
        return convolution.convolution
    return convolution


def _keeps_channels_last(block: torch.nn.Module) -> bool:
    """Whether a block does nothing with its messages but a linear layer from irrep to irrep."""
    linear = block.linear
    if isinstance(block.conv_tp.convolution, ChannelsLastConvolution):
        return False  # it does so without our help
    if "Residual" not in type(block).__name__:
        return False  # its self-connection acts on the messages
    # one multiplicity before and after it, as Gaunt layers need
    places = [(path.i_in, path.i_out) for path in linear.instructions]
    return (
        places
        == [(i, i) for i in range(len(linear.irreps_in))]
        == [(i, i) for i in range(len(linear.irreps_out))]
    )


def in_float64(edge_model: EdgeModel) -> EdgeModel:
    """A copy in float64."""
    out = copy.deepcopy(edge_model).double()
    out.dtype = torch.float64
    return out


def tabulated(edge_model: EdgeModel, intervals: int) -> torch.nn.Module:
    """The same with tables in place of the radial networks.

    Args:
        edge_model: stays as it is; both share their tensors.
        intervals: of the tables.

    Raises:
        NoTablesError: a part of the model has no tables.
    """
    out = radial.shared_copy(edge_model)
    model, exact = out.model, copy.deepcopy(edge_model.model).double()
    for block in model.interactions:
        if type(block).__name__ not in _TABULATED:
            raise radial.NoTablesError(f"it has a {type(block).__name__}")
        radial.check_convolution(_convolution_of(block))
    count = edge_model.num_elements
    typed = hasattr(exact.radial_embedding, "distance_transform")
    cutoffs = [float(exact.r_max)] * (count**2 if typed else 1)
    table = RadialTable(radial.START, cutoffs, intervals)

    def features(lengths: torch.Tensor, kind: int) -> List[torch.Tensor]:
        pair = torch.tensor([[kind // count], [kind % count]]).expand(2, len(lengths))
        feats, cutoff = exact.radial_embedding(
            lengths.unsqueeze(1),
            torch.eye(count, dtype=torch.float64),
            pair,
            exact.atomic_numbers,
        )
        found = []
        for block in exact.interactions:
            scale = 1.0 if cutoff is None else cutoff
            found.append(block.conv_tp_weights(feats) * scale)
            if hasattr(block, "density_fn"):
                if cutoff is not None:
                    raise radial.NoTablesError("its density has a cutoff of its own")
                found.append(block.density_fn(feats))
        return found

    mixings = []
    for block in exact.interactions:
        mixings.append(block.conv_tp.mixing())
        if hasattr(block, "density_fn"):
            mixings.append(torch.eye(1, dtype=torch.float64))
    with torch.no_grad():
        tables = iter(radial.tables_of(table, features, mixings))
    model.radial_embedding = _TabulatedEmbedding(table, count if typed else 0)
    for block in model.interactions:
        last = _keeps_channels_last(block)
        if last:
            irreps_out = block.linear.irreps_out
            linear = LayoutLinear(block.linear.irreps_in, irreps_out, True, True)
            linear.weight = block.linear.weight
            block.linear = linear
            block.reshape = ChannelsFirst(sum(ir.dim for _, ir in irreps_out), irreps_out[0].mul)
        last = last or isinstance(block.conv_tp.convolution, ChannelsLastConvolution)
        table_of = next(tables).numpy()
        block.conv_tp = TabulatedConvolution(_convolution_of(block), table_of, last)
        for name, layer in list(block.named_children()):
            if isinstance(layer, LayoutLinear):
                setattr(block, name, FixedLinear(layer))
        block.conv_tp_weights = torch.nn.Identity()
        if hasattr(block, "density_fn"):
            block.density_fn = TabulatedFunctions(next(tables).numpy())
    return radial.TabulatedModel(out.to(edge_model.dtype), edge_model, radial.START)


def script(model: torch.nn.Module) -> torch.jit.ScriptModule:
    """Compile to TorchScript; the model itself stays Python code."""
    return jit.script(model, in_place=False)
