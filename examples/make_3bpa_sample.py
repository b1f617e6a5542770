"""Make a small, freely redistributable 3BPA data set with GFN2-xTB.

3BPA is 3-(benzyloxy)pyridin-2-amine, C12H12N2O, 27 atoms. The files have the names and the layout
of the published 3BPA set (Kovács et al., J. Chem. Theory Comput. 2021, 17, 7696), but every number
is computed here, from a geometry built here: the published DFT data are not used. Errors measured
on these files are therefore not comparable with published 3BPA results.

Method
    * Geometry: the internal coordinates `ZMATRIX`, relaxed with GFN2-xTB.
    * Frames: Langevin dynamics at 300, 600 and 1200 K. Every file and temperature has a trajectory
      and a seed of its own, so no test frame shares a trajectory with a training frame. A
      trajectory whose bond graph changes is thrown away and run again with another seed.
    * `test_dih.xyz`: the relaxed molecule turned rigidly (the published scan is relaxed): three
      cuts, beta = 120, 150, 180 degrees with alpha as relaxed, along which gamma is scanned.
    * Labels: positions are rounded first; energy and forces are then computed at the rounded
      positions by a tightly converged calculation that knows nothing of the trajectory.
    * `iso_atoms.xyz`: ground-state multiplicities, the same (spin-restricted) Hamiltonian.

Units: Å, eV, eV/Å; times in fs, temperatures in K, dihedrals in degrees within [0, 360).

Needs ase >= 3.29 and tblite (written with 0.8). Molecular dynamics is chaotic: another machine or
version gives other frames of the same ensemble from the same seed.

Usage:
    python make_3bpa_sample.py --out 3bpa_sample                 # half an hour on one thread
    python make_3bpa_sample.py --out quick --frames-scale 0.02   # a test of the script, minutes

Finished trajectories are kept in the folder `--work`, and an interrupted run started again takes
them from there. Delete that folder after changing a setting of the dynamics below.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import ase
import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.data import covalent_radii
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.optimize import BFGS
from tblite.ase import TBLite

METHOD = "GFN2-xTB"
CELL = 50.0  # Å; decoration only, as in the published files: the frames are not periodic
DECIMALS = 5  # of positions (Å) and forces (eV/Å)
FRICTION = 0.01 / units.fs
EQUILIBRATION = 1000.0  # fs
SPACING = 50.0  # fs between sampled frames
TIME_STEP = {300: 1.0, 600: 1.0, 1200: 0.5}  # fs
ATTEMPTS = 5

# Frames of each file: ((temperature, number of frames), ...), in the order in which they are run.
SETS = {
    "train_300K": ((300, 200),),
    "test_300K": ((300, 100),),
    "train_mixedT": ((300, 33), (600, 33), (1200, 33)),
    "test_600K": ((600, 100),),
    "test_1200K": ((1200, 100),),
}

MULTIPLICITY = {"C": 3, "H": 2, "N": 4, "O": 3}

# Element; the atoms that define bond, angle and dihedral; the values of these (Å, degrees).
# fmt: off
ZMATRIX = (
    ("N", (), ()),                                # 0   pyridine N1
    ("C", (0,), (1.34,)),                         # 1   C2, bears NH2
    ("C", (1, 0), (1.40, 122)),                   # 2   C3, bears O
    ("C", (2, 1, 0), (1.39, 119, 0)),             # 3   C4
    ("C", (3, 2, 1), (1.39, 119, 0)),             # 4   C5
    ("C", (4, 3, 2), (1.39, 119, 0)),             # 5   C6
    ("N", (1, 0, 2), (1.37, 117, 180)),           # 6   amine
    ("H", (6, 1, 0), (1.01, 118, 0)),             # 7
    ("H", (6, 1, 0), (1.01, 118, 180)),           # 8
    ("O", (2, 1, 3), (1.37, 117, 180)),           # 9   ether
    ("H", (3, 2, 4), (1.09, 120, 180)),           # 10
    ("H", (4, 3, 5), (1.09, 120, 180)),           # 11
    ("H", (5, 4, 3), (1.09, 120, 180)),           # 12
    ("C", (9, 2, 1), (1.43, 117, 180)),           # 13  CH2
    ("C", (13, 9, 2), (1.51, 109, 75)),          # 14  phenyl, ipso; 75: lower than 120 and 180
    ("H", (13, 9, 2), (1.10, 109, -45)),          # 15
    ("H", (13, 9, 2), (1.10, 109, -165)),         # 16
    ("C", (14, 13, 9), (1.40, 120, 90)),          # 17  ortho
    ("C", (14, 13, 9), (1.40, 120, -90)),         # 18  ortho
    ("C", (17, 14, 13), (1.40, 120, 180)),        # 19  meta
    ("C", (18, 14, 13), (1.40, 120, 180)),        # 20  meta
    ("C", (19, 17, 14), (1.40, 120, 0)),          # 21  para
    ("H", (17, 14, 19), (1.09, 120, 180)),        # 22
    ("H", (18, 14, 20), (1.09, 120, 180)),        # 23
    ("H", (19, 17, 21), (1.09, 120, 180)),        # 24
    ("H", (20, 18, 21), (1.09, 120, 180)),        # 25
    ("H", (21, 19, 20), (1.09, 120, 180)),        # 26
)
# fmt: on
RING_CLOSURES = ((0, 5), (20, 21))
BONDS = {tuple(sorted((i, row[1][0]))) for i, row in enumerate(ZMATRIX) if i} | set(RING_CLOSURES)

# Four atoms, and the first of the atoms that turn (they are the last ones of the list).
DIHEDRALS = {
    "alpha": ((1, 2, 9, 13), 13),  # C2-C3-O-CH2
    "beta": ((2, 9, 13, 14), 14),  # C3-O-CH2-C(ipso)
    "gamma": ((9, 13, 14, 17), 17),  # O-CH2-C(ipso)-C(ortho)
}
SCAN_BETA = (120.0, 150.0, 180.0)
SCAN_GAMMA = tuple(
    15.0 * n for n in range(12)
)  # the phenyl ring repeats (nearly) after 180 degrees
SCAN_MAX_ENERGY = 2.0  # eV above the relaxed molecule; higher frames are clashes


def build_molecule():
    """Cartesian coordinates (Å) of `ZMATRIX`, in which every atom is placed from earlier ones."""
    axes = np.array(
        [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    )  # for the first three atoms
    positions = []
    for _, atoms, values in ZMATRIX:
        c, b, a = [positions[i] for i in atoms] + list(axes[len(atoms) :])
        r, angle, dihedral = values + (0.0, 90.0, 0.0)[len(values) :]
        angle, dihedral = np.radians([angle, dihedral])
        bc = (c - b) / np.linalg.norm(c - b)
        normal = np.cross(b - a, bc)
        normal /= np.linalg.norm(normal)
        across = np.cross(normal, bc)
        turned = np.cos(dihedral) * across + np.sin(dihedral) * normal
        positions.append(c + r * (-np.cos(angle) * bc + np.sin(angle) * turned))
    return Atoms([row[0] for row in ZMATRIX], np.array(positions), cell=[CELL] * 3, pbc=False)


def bond_graph(atoms):
    """Pairs of atoms closer than 1.3 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    close = atoms.get_all_distances() < 1.3 * (radii[:, None] + radii[None, :])
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(close, 1)), strict=True)}


def relaxed_molecule():
    """3BPA at its GFN2-xTB minimum (forces below 0.001 eV/Å); raises if it is not 3BPA."""
    atoms = build_molecule()
    atoms.calc = TBLite(method=METHOD, verbosity=0)
    converged = BFGS(atoms, logfile=None).run(fmax=0.001, steps=1000)
    if not converged or bond_graph(atoms) != BONDS:
        raise RuntimeError(
            "the relaxation did not end in 3BPA: check ZMATRIX and the tblite version"
        )
    if atoms.get_chemical_formula() != "C12H12N2O":
        raise RuntimeError(f"expected C12H12N2O, ZMATRIX holds {atoms.get_chemical_formula()}")
    return atoms


def dihedrals(atoms):
    """alpha, beta and gamma in degrees."""
    return [round(float(atoms.get_dihedral(*index)), 2) for index, _ in DIHEDRALS.values()]


def run_trajectory(start, temperature, count, seed, label):
    """Sample `count` frames of Langevin dynamics; `None` if a bond broke.

    Args:
        start: the relaxed molecule.
        temperature: in K.
        count: number of frames, `SPACING` apart, after `EQUILIBRATION`.
        seed: anything `numpy.random.default_rng` takes.
        label: printed with the progress.

    Returns:
        Array of shape (count, 27, 3) in Å, or `None`.
    """
    rng = np.random.default_rng(seed)
    atoms = start.copy()
    atoms.set_constraint(FixCom())
    atoms.calc = TBLite(method=METHOD, verbosity=0)
    thermalize_momenta(atoms, temperature, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    step = TIME_STEP[temperature]
    dynamics = Langevin(
        atoms, step * units.fs, temperature_K=temperature, friction=FRICTION, fixcm=False, rng=rng
    )
    dynamics.run(round(EQUILIBRATION / step))
    frames, kinetic = [], []
    while len(frames) < count:
        dynamics.run(round(SPACING / step))
        if bond_graph(atoms) != BONDS:
            print(
                f"{label}: a bond changed at frame {len(frames)}, trajectory discarded", flush=True
            )
            return None
        frames.append(atoms.positions - atoms.get_center_of_mass())
        kinetic.append(atoms.get_temperature())
        if len(frames) % 20 == 0 or len(frames) == count:
            print(
                f"{label}: {len(frames)}/{count}, {np.mean(kinetic):.0f} K on average", flush=True
            )
    return np.array(frames)


def trajectory(start, temperature, count, seed, label, work):
    """`run_trajectory` with a cache and, after a broken bond, with another seed."""
    cache = work / f"{label}_seed{'_'.join(map(str, seed))}_{count}.npy"
    if cache.exists():
        print(f"{label}: taken from {cache}", flush=True)
        return np.load(cache)
    for attempt in range(ATTEMPTS):
        frames = run_trajectory(start, temperature, count, [*seed, attempt], label)
        if frames is not None:
            np.save(cache, frames)
            return frames
    raise RuntimeError(f"{label}: the molecule broke in {ATTEMPTS} trajectories")


def label_frame(positions, symbols, multiplicity=1):
    """Round the positions, then compute energy and forces there: an `Atoms` with its results."""
    atoms = Atoms(symbols, np.round(positions, DECIMALS), cell=[CELL] * 3, pbc=False)
    atoms.calc = TBLite(method=METHOD, verbosity=0, accuracy=0.01, multiplicity=multiplicity)
    atoms.get_forces()
    return atoms


def scan_frames(relaxed):
    """Frames of the dihedral scan, without clashes."""
    frames = []
    lowest = relaxed.get_potential_energy()
    for beta in SCAN_BETA:
        for gamma in SCAN_GAMMA:
            atoms = relaxed.copy()
            for name, value in (("beta", beta), ("gamma", gamma)):
                index, first = DIHEDRALS[name]
                atoms.set_dihedral(*index, value, indices=range(first, len(atoms)))
            if bond_graph(atoms) != BONDS:
                continue
            frame = label_frame(atoms.positions - atoms.get_center_of_mass(), atoms.symbols)
            if frame.get_potential_energy() < lowest + SCAN_MAX_ENERGY:
                frames.append(frame)
    print(f"test_dih: {len(frames)} of {len(SCAN_BETA) * len(SCAN_GAMMA)} frames kept", flush=True)
    return frames


def write_frames(path, frames):
    """Write extended XYZ (ASE's writer has fixed decimals); the final name means a whole file."""
    lines = []
    for atoms in frames:
        molecule = len(atoms) > 1
        energy = f"energy={atoms.get_potential_energy():.6f}"
        lines.append(str(len(atoms)))
        if molecule:
            cell = " ".join(f"{x:.1f}" for x in atoms.cell.array.ravel())
            lines.append(
                f'Lattice="{cell}" Properties=species:S:1:pos:R:3:forces:R:3 {energy} '
                f'dihedrals="_JSON {json.dumps(dihedrals(atoms))}" pbc="F F F"'
            )
            table = np.hstack([atoms.positions, atoms.get_forces()])
        else:
            lines.append(f'Properties=species:S:1:pos:R:3 {energy} pbc="F F F"')
            table = atoms.positions
        for symbol, row in zip(atoms.symbols, table, strict=True):
            lines.append(symbol + " " + " ".join(f"{x:.{DECIMALS}f}" for x in row))
    partial = path.with_suffix(".part")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)
    print(f"wrote {path}: {len(frames)} frames", flush=True)


def check_file(path):
    """Read a file back as a user would, and check labels, bonds and that no frame occurs twice."""
    frames = read(path, ":")
    for atoms in frames:
        if bond_graph(atoms) != BONDS or not np.isfinite(atoms.get_potential_energy()):
            raise RuntimeError(f"{path}: a frame is not an intact, labelled 3BPA molecule")
        if np.abs(atoms.get_forces().sum(axis=0)).max() > 1e-3:
            raise RuntimeError(f"{path}: the forces of a frame do not sum to zero")
    if len({atoms.positions.tobytes() for atoms in frames}) != len(frames):
        raise RuntimeError(f"{path}: a frame occurs twice")
    return frames


README = """# A 3BPA sample, labelled with {method}

3-(benzyloxy)pyridin-2-amine, C12H12N2O, 27 atoms. The data and this file are written by
`make_3bpa_sample.py`, which stands beside this folder.

**These are not the published 3BPA data.** File names and layout follow the published set (Kovács
et al., J. Chem. Theory Comput. 2021, 17, 7696), so that either can be used; `fetch_3bpa.py` obtains
the published one. All geometries, energies and forces here were computed by this project with the
semi-empirical {method} method, which is not DFT: errors measured on them cannot be compared with
published 3BPA results. The data are ours, under the MIT licence of this repository, free to
redistribute.

Energies in eV (spread: standard deviation), force components in eV/Å:

| file | frames | mean energy | spread | lowest | highest | force RMS | largest force |
|---|---|---|---|---|---|---|---|
{table}

`iso_atoms.xyz`, energies in eV: {atoms}.

* Molecular dynamics: Langevin, friction 0.01 / fs, {equilibration:g} fs of equilibration, then a
  frame every {spacing:g} fs. Time steps: {steps}.
* Every file and temperature has a trajectory of its own, with its own seed, started from the
  relaxed molecule ({relaxed:.6f} eV; alpha, beta, gamma = {relaxed_dihedrals} degrees). Frames
  stand in the order of time. The bond graph is the same in every frame.
* `train_mixedT.xyz`: one third each at 300, 600 and 1200 K, in this order.
* `test_all.xyz`: the three MD test sets in one file, with a `config_type` each, for MACE's error
  table.
* `test_dih.xyz`: the relaxed molecule turned rigidly (the published scan is relaxed): beta = 120,
  150, 180 degrees, and for each of them gamma from 0 to 165 degrees in steps of 15.
* `dihedrals` in the comment lines: alpha (C2-C3-O-CH2), beta (C3-O-CH2-C ipso) and gamma
  (O-CH2-C ipso-C ortho), in degrees.
* `energy` in eV, `forces` in eV/Å, positions in Å. Positions were rounded before energy and forces
  were computed. Not periodic; the 50 Å cell has no meaning. The order of the atoms is our own.
* Isolated atoms: multiplicities {multiplicities}, with the spin-restricted Hamiltonian of the
  molecule.
* Seeds: `numpy.random.default_rng([{seed}, file, part, attempt])`. File and part count the entries
  of `SETS` in the script from 0; attempt counts trajectories repeated after a broken bond.

Made with Python {python}, ase {ase}, tblite {tblite}, numpy {numpy}:

    python make_3bpa_sample.py --out 3bpa_sample --seed {seed}{scale}

Another machine or version gives other frames of the same ensemble: molecular dynamics is chaotic.
"""


def write_readme(out, seed, scale, relaxed):
    """Check all files and describe them in `README.md`."""
    rows = []
    for name in (*SETS, "test_dih"):
        frames = check_file(out / f"{name}.xyz")
        energy = np.array([atoms.get_potential_energy() for atoms in frames])
        forces = np.array([atoms.get_forces() for atoms in frames])
        rows.append(
            f"| `{name}.xyz` | {len(frames)} | {energy.mean():.3f} | {energy.std():.3f} "
            f"| {energy.min():.3f} | {energy.max():.3f} | {np.sqrt((forces**2).mean()):.3f} "
            f"| {np.abs(forces).max():.2f} |"
        )
    isolated = read(out / "iso_atoms.xyz", ":")
    text = README.format(
        method=METHOD,
        table="\n".join(rows),
        atoms=", ".join(f"{a.symbols} {a.get_potential_energy():.6f}" for a in isolated),
        equilibration=EQUILIBRATION,
        spacing=SPACING,
        steps=", ".join(f"{dt:g} fs at {t} K" for t, dt in TIME_STEP.items()),
        relaxed=relaxed.get_potential_energy(),
        relaxed_dihedrals=", ".join(map(str, dihedrals(relaxed))),
        multiplicities=", ".join(f"{k} {v}" for k, v in MULTIPLICITY.items()),
        seed=seed,
        scale="" if scale == 1 else f" --frames-scale {scale:g}",
        python=platform.python_version(),
        ase=ase.__version__,
        tblite=version("tblite"),
        numpy=np.__version__,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def write_test_all(out):
    """Join the three test sets; MACE's error table has a row per ``config_type``."""
    text = ""
    for name in ("test_300K", "test_600K", "test_1200K"):
        frames = (out / f"{name}.xyz").read_text()
        text += frames.replace(" energy=", f" config_type={name} energy=")
    (out / "test_all.xyz").write_text(text)


def main():
    parser = argparse.ArgumentParser(description="Make a small 3BPA data set with GFN2-xTB.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the data files")
    parser.add_argument("--work", type=Path, help="folder for trajectories (default: OUT.work)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames-scale", type=float, default=1.0, help="below 1 for a quick test")
    args = parser.parse_args()
    work = args.work or args.out.with_name(args.out.name + ".work")
    for folder in (args.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    isolated = [label_frame(np.zeros((1, 3)), s, m) for s, m in MULTIPLICITY.items()]
    write_frames(args.out / "iso_atoms.xyz", isolated)
    relaxed = relaxed_molecule()
    print(f"relaxed: {relaxed.get_potential_energy():.6f} eV, {dihedrals(relaxed)}", flush=True)
    for file, (name, parts) in enumerate(SETS.items()):
        frames = []
        for part, (temperature, count) in enumerate(parts):
            count = max(1, round(count * args.frames_scale))
            seed = [args.seed, file, part]
            label = f"{name}_{temperature}K" if len(parts) > 1 else name
            frames += list(trajectory(relaxed, temperature, count, seed, label, work))
        write_frames(args.out / f"{name}.xyz", [label_frame(x, relaxed.symbols) for x in frames])
    write_frames(args.out / "test_dih.xyz", scan_frames(relaxed))
    write_test_all(args.out)
    write_readme(args.out, args.seed, args.frames_scale, relaxed)
    print(f"finished after {(time.perf_counter() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
