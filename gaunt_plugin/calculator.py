"""ASE's calculator for exported files. It needs torch, ASE and vesin, and neither host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

try:
    from ase import Atoms
    from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
    from ase.data import atomic_numbers
    from ase.stress import full_3x3_to_voigt_6_stress

    from gaunt_plugin.deploy.neighbors import Edges
except ModuleNotFoundError as error:
    raise ImportError(
        f"gaunt_plugin.calculator needs {error.name}: pip install 'gaunt-plugin[ase]'"
    ) from error

from gaunt_plugin.deploy.contract import forces_of
from gaunt_plugin.deploy.program import Program
from gaunt_plugin.pretrained import resolve


class GauntCalculator(Calculator):
    """Energy, forces and stress of a model that ``gaunt export`` has written.

    With edge vectors ``d``, their gradients ``g = dE/dd`` and volume ``V``, forces are
    ``F[receiver] -= g``, ``F[sender] += g`` and the stress is ``sum d g / V``, with ASE's sign and
    order (xx, yy, zz, yz, xz, xy). It is there in a cell with a volume, periodic or not.

    Units are eV and Å. Results don't depend on the skin. A deep copy shares the model; a pickle
    holds the path of the file.

    Args:
        path: the file, or the name of a model in :mod:`gaunt_plugin.pretrained`.
        device: as torch names it, for example ``"cuda"``.
        threads: of torch during an evaluation; default: as many as torch has.
        skin: Å by which the list of neighbours reaches further than the cutoff. It is made again
            when an atom has moved by more than half of it, or the cell has changed.
        kernels: ``"auto"``: compiled kernels where the file calls them and they are built; True:
            the same, but an error if they can't run; False: never.
        **kwargs: of ASE's ``Calculator``.

    Attributes:
        program: the model, with the file's description in ``program.about``.
        edges: the list of neighbours; ``edges.builds`` counts how often it was made.

    Raises:
        ModelFileError: no such file, or kernels asked for that can't run.
        ValueError: an argument is none of those above.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        skin: float = 0.5,
        kernels: bool | str = "auto",
        **kwargs,
    ) -> None:
        self.program = Program(resolve(path), device, threads, kernels)
        about = self.program.about
        self.edges = Edges(about.cutoff, skin, self.program.device)
        self._type_of = np.full(max(atomic_numbers.values()) + 1, -1)
        for number, symbol in enumerate(about.elements):
            self._type_of[atomic_numbers[symbol]] = number
        super().__init__(**kwargs)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute all properties.

        Raises:
            ValueError: elements that the model doesn't know, or positions or a cell that can't be.
            CalculationFailed: energies or forces aren't finite.
        """
        super().calculate(atoms, properties or ["energy"], system_changes)
        self.results = self._evaluate(self.atoms)

    def _evaluate(self, atoms: Atoms) -> dict:
        types = self._type_of[atoms.numbers]
        if (types < 0).any():
            unknown = sorted(set(np.asarray(atoms.symbols)[types < 0]))
            raise ValueError(
                f"the model doesn't know {', '.join(unknown)}; it knows "
                f"{', '.join(self.program.about.elements)}"
            )
        energies, forces, strain = np.zeros(0), np.zeros((0, 3)), np.zeros((3, 3))
        if len(atoms) > 0:
            energies, forces, strain = self._run(atoms, types)
        results = {"energy": float(energies.sum()), "energies": energies, "forces": forces}
        results["free_energy"] = results["energy"]
        if atoms.cell.rank == 3:
            stress = (strain + strain.T) / (2 * atoms.cell.volume)
            results["stress"] = full_3x3_to_voigt_6_stress(stress)
        if not all(np.isfinite(value).all() for value in results.values()):
            raise CalculationFailed(
                "energies or forces are not finite; are atoms on top of each other?"
            )
        return results

    def _run(self, atoms: Atoms, types: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies and forces of the atoms, and the energy's gradient with respect to a strain."""
        device = self.program.device
        with self.program.settings():
            vectors, index = self.edges(atoms.positions, atoms.cell.array, atoms.pbc)
            owned = torch.ones(len(atoms), dtype=torch.bool, device=device)
            energies, gradients = self.program(
                vectors, index, torch.from_numpy(types).to(device), owned
            )
            forces = forces_of(gradients, index, len(atoms))
            strain = torch.einsum("ea,eb->ab", vectors, gradients)
            return tuple(values.cpu().numpy() for values in (energies, forces, strain))
