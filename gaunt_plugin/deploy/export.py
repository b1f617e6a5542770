"""Export a trained model to one file for every engine; ``contract`` says what it holds."""

from __future__ import annotations

import copy
import importlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from ase.data import atomic_numbers, covalent_radii

import gaunt_plugin
from gaunt_plugin._files import replacing
from gaunt_plugin.deploy import contract
from gaunt_plugin.deploy.contract import DTYPES, Description, ModelFileError
from gaunt_plugin.deploy.program import quiet_compiler, run_as_written
from gaunt_plugin.deploy.radial import NoTablesError, tabulate
from gaunt_plugin.ops import operators_in_programs
from gaunt_plugin.ops.cpu.build import library, status

# An exported model against the same model as Python code, relative.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
RADIAL = ("table", "exact")
_HOSTS = {"mace": "mace-torch", "nequip": "nequip"}


def host_of(path: Path) -> str:
    """The host whose file this is: ``"mace"`` or ``"nequip"``.

    NequIP writes checkpoints (``.ckpt``) and packages (``.nequip.zip``); a package is also known
    by its contents. All else is taken for a ``.model`` of MACE.
    """
    if path.suffix == ".ckpt" or path.name.endswith(".nequip.zip"):
        return "nequip"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/.data/extern_modules" in name for name in archive.namelist()):
                return "nequip"  # torch.package
    return "mace"


@quiet_compiler()
def export(
    model: Path | torch.nn.Module,
    output: Path,
    *,
    head: str | None = None,
    dtype: str | None = None,
    radial: str = "table",
    structures: Path | None = None,
    report: Callable[[str], None] = print,
) -> Description:
    """Write the file and check that both its programs compute what the model does.

    A file that is there is replaced only by one that passed.

    Args:
        model: a model of MACE or NequIP, or a file: a ``.model`` or ``.weights`` of MACE, a
            checkpoint or package of NequIP. Reading any but weights runs code that is stored in it.
        output: the file to write.
        head: of a MACE model with several heads.
        dtype: ``"float32"`` or ``"float64"``; default: the model's own. A NequIP model has the
            dtype it was built with.
        radial: ``"table"``: the program with compiled kernels has splines in place of the radial
            networks, where the model can have them and they keep the bounds of
            :mod:`gaunt_plugin.deploy.radial`; ``"exact"``: it has the networks.
        structures: a file that ASE reads, on which the bounds are checked too; by default on
            clusters and pairs of atoms made here.
        report: called with lines of text about the tables, or if the program with compiled kernels
            can't be checked.

    Raises:
        ModelFileError: the model can't be exported; the message says why.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelFileError(f"unknown dtype {dtype!r}; possible: {', '.join(DTYPES)}")
    if radial not in RADIAL:
        raise ModelFileError(f"unknown radial {radial!r}; possible: {', '.join(RADIAL)}")
    if isinstance(model, Path) and not model.is_file():
        raise ModelFileError(f"there is no file {model}")
    try:
        adapter = adapter_of(model)
        loaded = adapter.load(model) if isinstance(model, Path) else model
        eager, description = adapter.edge_model(loaded, head, dtype)
        try:
            program = adapter.script(eager)
            fast, tables = copy.deepcopy(eager), None
            if radial == "table" and operators_in_programs(fast):
                graphs = [*samples(description), *_graphs_of(structures, description)]
                try:
                    fast, tables = tabulate(adapter, eager, graphs)
                    report(tables.summary())
                except NoTablesError as reason:
                    report(f"Its radial networks are kept: {reason}")
            kernels = adapter.script(fast) if operators_in_programs(fast) else None
        except RuntimeError as error:
            cause = [line for line in str(error).splitlines() if line.strip()][:1]
            raise ModelFileError(f"TorchScript can't compile it ({''.join(cause)})") from error
    except ModelFileError as error:
        name = model if isinstance(model, Path) else type(model).__name__
        raise ModelFileError(f"can't export {name}: {error}") from error
    versions = {"gaunt-plugin": gaunt_plugin.__version__, **description.versions}
    description = replace(
        description, versions=versions, kernels=kernels is not None, radial=tables
    )
    with replacing(output) as new:
        contract.save(program, description, new, kernels)
        _check(eager, *contract.load(new))
        if kernels is not None and library() is not None:
            _check(fast, *contract.load(new, kernels=True))
        elif kernels is not None:
            report(f"Its program with compiled kernels was not run here. {status()}")
    return description


def adapter_of(model: Path | torch.nn.Module) -> ModuleType:
    """The module of this package for the model's host.

    Raises:
        ModelFileError: the host is not installed.
    """
    if isinstance(model, Path):
        host = host_of(model)
    else:
        # NequIP marks its models, wherever their class comes from.
        host = "nequip" if getattr(model, "is_graph_model", False) else "mace"
    try:
        return importlib.import_module(f"gaunt_plugin.deploy.from_{host}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != host:
            raise
        raise ModelFileError(
            f"it looks like a model of {_HOSTS[host]}, which is not installed here"
        ) from error


def _check(eager: torch.nn.Module, program: torch.jit.ScriptModule, about: Description) -> None:
    """Compare the file with the model on a few graphs, empty ones included."""
    with run_as_written():
        _compare(eager, program, about)


def _compare(eager: torch.nn.Module, program: torch.jit.ScriptModule, about: Description) -> None:
    for num_nodes, spacing in ((1, 1.0), (3, 2.0 * about.cutoff), (6, 0.35 * about.cutoff)):
        graph = _chain(num_nodes, spacing, about)
        expected = eager(*graph)
        for a, b in zip(program(*graph), expected):
            error = (a - b).abs().max().item() if a.numel() else 0.0
            if not error <= _TOLERANCE[about.dtype] * max(1.0, b.abs().sum().item()):
                raise ModelFileError(
                    f"the exported model differs from the model by {error:.1e}; please report it"
                )


def _chain(num_nodes: int, spacing: float, about: Description) -> tuple[torch.Tensor, ...]:
    """Atoms along a helix; the last one is not owned if there are several."""
    k = torch.arange(num_nodes, dtype=torch.float64)
    positions = torch.stack([0.3 * torch.cos(2 * k), 0.3 * torch.sin(2 * k), k], dim=1) * spacing
    graph = _all_pairs(positions, torch.arange(num_nodes) % len(about.elements), about)
    if num_nodes > 1:
        graph[3][-1] = False
    return graph


def samples(about: Description) -> list[tuple[torch.Tensor, ...]]:
    """Graphs of a model's elements: clusters, and pairs of atoms at distances up to the cutoff."""
    generator = torch.Generator().manual_seed(0)
    radii = torch.tensor([covalent_radii[atomic_numbers[e]] for e in about.elements])
    found = []
    for count in (8, 14):
        types = torch.randint(len(radii), (count,), generator=generator)
        box = (16.0 * count) ** (1 / 3)
        positions = torch.zeros(0, 3, dtype=torch.float64)
        while len(positions) < count:
            place = torch.rand(3, generator=generator, dtype=torch.float64) * box
            closest = 0.8 * (radii[types[: len(positions)]] + radii[types[len(positions)]])
            if ((positions - place).norm(dim=1) > closest).all():
                positions = torch.cat([positions, place[None]])
            else:
                box *= 1.01  # until they fit
        found.append(_all_pairs(positions, types, about))
    pairs = torch.combinations(torch.arange(len(radii)), with_replacement=True)[:21]
    distances = torch.linspace(0.6, about.cutoff, 50, dtype=torch.float64)[:-1]
    index = torch.arange(2 * len(pairs) * len(distances)).view(-1, 2)
    vectors = torch.zeros(len(index), 3, dtype=torch.float64)
    vectors[:, 0] = distances.repeat(len(pairs))
    types = pairs.repeat_interleave(len(distances), dim=0).flatten()
    edge_index = torch.cat([index, index.flip(1)]).T.contiguous()
    owned = torch.ones(len(types), dtype=torch.bool)
    return [*found, (torch.cat([vectors, -vectors]), edge_index, types, owned)]


def _all_pairs(
    positions: torch.Tensor, types: torch.Tensor, about: Description
) -> tuple[torch.Tensor, ...]:
    """Graph of atoms that are not periodic, all owned."""
    vectors = positions.unsqueeze(0) - positions.unsqueeze(1)  # [sender, receiver]
    lengths = vectors.norm(dim=-1).fill_diagonal_(float("inf"))
    edge_index = (lengths < about.cutoff).nonzero().T.contiguous()
    owned = torch.ones(len(types), dtype=torch.bool)
    return vectors[edge_index[0], edge_index[1]], edge_index, types, owned


def _graphs_of(path: Path | None, about: Description) -> list[tuple[torch.Tensor, ...]]:
    """Graphs of at most 20 structures of a file, evenly spread over it."""
    if path is None:
        return []
    import ase.io

    from gaunt_plugin.deploy.neighbors import Edges

    if not path.is_file():
        raise ModelFileError(f"there is no file {path}")
    frames = ase.io.read(path, ":")
    graphs = []
    for atoms in frames[:: -(-len(frames) // 20)]:
        unknown = sorted(set(atoms.symbols) - set(about.elements))
        if unknown:
            raise ModelFileError(f"{path} has {', '.join(unknown)}, which the model doesn't know")
        edges = Edges(about.cutoff, 0.0, torch.device("cpu"))
        vectors, index = edges(atoms.positions, atoms.cell.array, atoms.pbc)
        types = torch.tensor([about.elements.index(s) for s in atoms.symbols], dtype=torch.int64)
        graphs.append((vectors, index, types, torch.ones(len(atoms), dtype=torch.bool)))
    return graphs
