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

import gaunt_plugin
from gaunt_plugin._files import replacing
from gaunt_plugin.deploy import contract
from gaunt_plugin.deploy.contract import DTYPES, Description, ModelFileError
from gaunt_plugin.deploy.program import run_as_written
from gaunt_plugin.ops import operators_in_programs
from gaunt_plugin.ops.cpu.build import library, status

# An exported model against the same model as Python code, relative.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
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


def export(
    model: Path | torch.nn.Module,
    output: Path,
    *,
    head: str | None = None,
    dtype: str | None = None,
    report: Callable[[str], None] = print,
) -> Description:
    """Write the file and check that both its programs compute what the model does.

    A file that is there is replaced only by one that passed.

    Args:
        model: a model of MACE or NequIP, or a file: a ``.model`` of MACE, a checkpoint or package
            of NequIP. Reading a file runs code that is stored in it.
        output: the file to write.
        head: of a MACE model with several heads.
        dtype: ``"float32"`` or ``"float64"``; default: the model's own. A NequIP model has the
            dtype it was built with.
        report: called with a line of text if the program with compiled kernels can't be checked.

    Raises:
        ModelFileError: the model can't be exported; the message says why.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelFileError(f"unknown dtype {dtype!r}; possible: {', '.join(DTYPES)}")
    if isinstance(model, Path) and not model.is_file():
        raise ModelFileError(f"there is no file {model}")
    try:
        adapter = _adapter(model)
        loaded = adapter.load(model) if isinstance(model, Path) else model
        eager, description = adapter.edge_model(loaded, head, dtype)
        try:
            program = adapter.script(eager)
            fast = copy.deepcopy(eager)
            kernels = adapter.script(fast) if operators_in_programs(fast) else None
        except RuntimeError as error:
            cause = [line for line in str(error).splitlines() if line.strip()][:1]
            raise ModelFileError(f"TorchScript can't compile it ({''.join(cause)})") from error
    except ModelFileError as error:
        name = model if isinstance(model, Path) else type(model).__name__
        raise ModelFileError(f"can't export {name}: {error}") from error
    versions = {"gaunt-plugin": gaunt_plugin.__version__, **description.versions}
    description = replace(description, versions=versions, kernels=kernels is not None)
    with replacing(output) as new:
        contract.save(program, description, new, kernels)
        _check(eager, *contract.load(new))
        if kernels is not None and library() is not None:
            _check(eager, *contract.load(new, kernels=True))
        elif kernels is not None:
            report(f"Its program with compiled kernels was not run here. {status()}")
    return description


def _adapter(model: Path | torch.nn.Module) -> ModuleType:
    """The module of this package for the model's host."""
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
    vectors = positions.unsqueeze(0) - positions.unsqueeze(1)  # [sender, receiver]
    lengths = vectors.norm(dim=-1) + torch.eye(num_nodes) * 1e9
    edge_index = (lengths < about.cutoff).nonzero().T.contiguous()
    types = torch.arange(num_nodes) % len(about.elements)
    owned = torch.ones(num_nodes, dtype=torch.bool)
    if num_nodes > 1:
        owned[-1] = False
    return vectors[edge_index[0], edge_index[1]], edge_index, types, owned
