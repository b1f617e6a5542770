"""The exported file: a TorchScript program and its description.

The program takes a graph and returns energies and their gradients::

    forward(edge_vectors [E, 3], edge_index [2, E], types [N], owned [N]) -> (energies, gradients)

* ``edge_vectors``: float64, ``r[receiver] - r[sender]`` in Å; all pairs closer than the cutoff,
  both directions, images included
* ``edge_index``: int64, row 0 the sender and row 1 the receiver of every edge
* ``types``: int64, place of an atom's element in the file's list of elements
* ``owned``: bool, the atoms whose energies count; others only surround them
* ``energies [N]``: eV, float64, of every atom (meaningful where it is owned)
* ``gradients [E, 3]``: float64, ``dE/d(edge_vectors)`` of ``E = sum(energies[owned])``, eV/Å

With ``g`` the gradients and ``d`` the vectors, forces are ``F[receiver] -= g``, ``F[sender] += g``
and the virial (``sum r_i F_i``) is ``-sum d g``. An energy depends on edges into atoms that are
fewer than ``layers`` edges away; with those present it is the same on any number of ranks.
Torch's default dtype must be the file's: the product of a constant and integers has it.

The description lies beside the program, one TorchScript extra file per entry (the names below).
One more, ``gaunt_kernels``, may hold the same program a second time, with calls of the compiled
kernels (operators ``gaunt::...``): for the CPU, where these are registered. Its radial functions
may be splines in place of the model's networks (``gaunt_radial``): energies and forces differ by
no more than is said there, and values, first and second derivatives are continuous in all
distances that the splines hold. A graph with a shorter one is evaluated with the networks: of
several ranks those without it still read splines.
An entry added later leaves ``VERSION`` alone; a change that an older reader would get wrong
raises it.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Optional

import torch

VERSION = 1
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_PREFIX = "gaunt_"


class ModelFileError(ValueError):
    """A file that can't be exported or isn't what it should be; the message says why."""


def edge_gradients(
    energies: torch.Tensor, vectors: torch.Tensor, owned: torch.Tensor
) -> torch.Tensor:
    """``dE/d(vectors)`` of ``E = sum(energies[owned])``; scriptable.

    Args:
        energies: of every atom, eV.
        vectors: of the edges, Å; the energies were computed from them.
        owned: the atoms that count.
    """
    gradient: Optional[torch.Tensor] = None
    if vectors.shape[0] > 0:
        total: List[torch.Tensor] = [energies[owned].sum()]
        gradient = torch.autograd.grad(total, [vectors], allow_unused=True)[0]
    if gradient is None:
        gradient = torch.zeros_like(vectors)
    return gradient


def forces_of(gradients: torch.Tensor, edge_index: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Forces ``[N, 3]``, eV/Å: ``F[sender] += g``, ``F[receiver] -= g``."""
    forces = gradients.new_zeros(num_nodes, 3)
    forces.index_add_(0, edge_index[0], gradients)
    return forces.index_add_(0, edge_index[1], gradients, alpha=-1)


@dataclass(frozen=True)
class Tables:
    """What is known of a model's tables.

    Attributes:
        intervals: of the splines.
        start: the shortest distance, Å.
        energy_error: largest difference to the networks, eV per atom; less is counted for an atom
            with a large force, see ``deploy.radial``.
        force_error: likewise, eV/Å.
    """

    intervals: int
    start: float
    energy_error: float
    force_error: float

    def summary(self) -> str:
        """A line about them."""
        return (
            f"Radial tables of {self.intervals} intervals from {self.start:g} A: energies within "
            f"{self.energy_error:.0e} eV per atom and forces within {self.force_error:.0e} eV/A of "
            "the networks"
        )


@dataclass(frozen=True)
class Description:
    """What a file says about its model.

    Attributes:
        elements: symbols in the order of the model's types.
        cutoff: Å.
        layers: number of message-passing layers.
        dtype: what the model computes in, ``"float32"`` or ``"float64"``.
        versions: of the packages that wrote the file.
        kernels: whether the file holds a second program, with compiled kernels.
        radial: of the tables in that program; None: it has the model's networks.
        contract: version of the contract.
    """

    elements: tuple[str, ...]
    cutoff: float
    layers: int
    dtype: str
    versions: dict[str, str]
    kernels: bool = False
    radial: Optional[Tables] = None
    contract: int = VERSION

    def to_extra_files(self) -> dict[str, str]:
        return {
            _PREFIX + "contract": str(self.contract),
            _PREFIX + "elements": " ".join(self.elements),
            _PREFIX + "cutoff": repr(self.cutoff),
            _PREFIX + "layers": str(self.layers),
            _PREFIX + "dtype": self.dtype,
            _PREFIX + "versions": json.dumps(self.versions),
            _PREFIX + "radial": json.dumps(asdict(self.radial)) if self.radial else "",
        }


def save(
    program: torch.jit.ScriptModule,
    description: Description,
    path: Path,
    kernels: Optional[torch.jit.ScriptModule] = None,
) -> None:
    """Write an exported file; the caller sees to it that an existing one is kept until the end.

    Args:
        program: what the contract asks for.
        description: of its model.
        path: the file.
        kernels: the same program with calls of the compiled kernels.
    """
    extra = description.to_extra_files()
    if kernels is not None:
        extra[_PREFIX + "kernels"] = kernels.save_to_buffer()
    torch.jit.save(program, str(path), _extra_files=extra)


def load(path: Path, *, kernels: bool = False) -> tuple[torch.jit.ScriptModule, Description]:
    """Read an exported file on the CPU.

    Args:
        path: the file.
        kernels: take the program with compiled kernels, if the file has one.

    Raises:
        ModelFileError: missing, another kind of file, or a newer contract.
    """
    names = ("contract", "elements", "cutoff", "layers", "dtype", "versions", "radial")
    extra = {_PREFIX + name: "" for name in (*names, "kernels")}
    if not Path(path).is_file():
        raise ModelFileError(f"there is no file {path}")
    try:
        program = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except RuntimeError as error:
        raise ModelFileError(f"{path} is no TorchScript file: {error}".splitlines()[0]) from error
    # torch returns bytes or text, depending on its version
    entries = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in ((name, extra[_PREFIX + name]) for name in names)
    }
    if not entries["contract"]:
        raise ModelFileError(f"{path} was not written by gaunt export")
    if int(entries["contract"]) > VERSION:
        raise ModelFileError(
            f"{path} has contract version {entries['contract']}, this release of gaunt_plugin "
            f"knows up to {VERSION}; update gaunt_plugin"
        )
    second = extra[_PREFIX + "kernels"]
    if kernels and second:
        import gaunt_plugin.ops  # noqa: F401 (registers the operators)

        program = torch.jit.load(io.BytesIO(second), map_location="cpu")
    return program, Description(
        elements=tuple(entries["elements"].split()),
        cutoff=float(entries["cutoff"]),
        layers=int(entries["layers"]),
        dtype=entries["dtype"],
        versions=json.loads(entries["versions"]),
        kernels=bool(second),
        radial=Tables(**json.loads(entries["radial"])) if entries["radial"] else None,
        contract=int(entries["contract"]),
    )
