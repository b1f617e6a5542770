"""Commands that change atoms, the box, ghosts or neighbor lists: right results on any ranks.

Each case runs in LAMMPS; what it ends with goes to the host's ASE calculator.
"""

import pytest
from ase import Atoms

from ..deploy.structures import molecule, triclinic
from .simulation import Case, assert_like_ase, header, simulate, write_data

RUN = "timestep 0.0005\nfix 1 all nve\nrun 3"
# Ghosts of the second layer come from up to 6.7 Å away: further than the next subdomain.
LARGER = "replicate 2 1 2\n"


def single_atoms() -> Atoms:
    """Three atoms, none within the cutoff of another one."""
    return Atoms("OHC", positions=[[0, 0, 0], [4, 0, 0], [0, 0, 9.0]])


def partly_periodic() -> Atoms:
    """Periodic in two directions."""
    atoms = triclinic()
    atoms.pbc = [True, True, False]
    return atoms


def one_atom() -> Atoms:
    """An atom with images of itself as its only neighbours."""
    return Atoms("C", positions=[[0.3, 0.4, 0.5]], cell=[2.0, 2.3, 2.1], pbc=True)


# How ghosts and neighbours are found, in a cell where that matters.
LISTS = {
    "tiled": "replicate 2 2 2\ncomm_style tiled\nbalance 1.0 rcb",
    "nsq": LARGER + "neighbor 0.7 nsq",
    "no skin": LARGER + "neighbor 0.0 bin",
    "long cutoff": LARGER + "comm_modify cutoff 9.0",
    "short cutoff": LARGER + "comm_modify cutoff 3.0",
    "velocities of ghosts": LARGER + "comm_modify vel yes",
    "no ghosts taken away": LARGER + "comm_modify mode single group all",
    "no pairs taken away": LARGER + "neigh_modify exclude type 1 2\nneigh_modify exclude none",
    "all pairs of one group": LARGER + "group none type > 5\nneigh_modify exclude group none all",
    "sorted": LARGER + "atom_modify sort 1 2.0",
}
# On several ranks an error: test_errors.py.
ON_ONE_RANK = {
    "multi lists": LARGER + "neighbor 0.7 multi",
    "multi ghosts": LARGER + "neighbor 0.7 multi\ncomm_modify mode multi",
    "tiled small box": "comm_style tiled",
}
CHANGES = {
    "deleted": (triclinic, "run 0\ngroup some id 2 5 11\ndelete_atoms group some", "run 0"),
    "deleted, with gaps in the IDs": (
        triclinic, "run 0\ngroup some id 2 5 11\ndelete_atoms group some compress no", "run 0"
    ),
    "created": (molecule, "run 0\ncreate_atoms 3 single 1.9 0.3 1.1 units box", "run 0"),
    "other types": (triclinic, "run 0\nset atom 3*5 type 2", "run 0"),
    "box scaled": (triclinic, "run 0\nchange_box all x scale 1.1 z scale 0.9 remap", "run 0"),
    "box skewed": (triclinic, "run 0\nchange_box all xy final 2.0 yz delta 0.5 remap", "run 0"),
    "atoms displaced": (triclinic, "run 0\ndisplace_atoms all random 0.2 0.2 0.2 71", "run 0"),
    "box flipped": (
        triclinic, "fix 2 all deform 1 xz erate 300 flip yes", RUN + "\nrun 40\nunfix 2\nrun 0"
    ),
    "partly periodic": (partly_periodic, "", RUN),
    "single atoms": (single_atoms, "", RUN),
    "one periodic atom": (one_atom, "", RUN),
    "velocities scaled": (
        triclinic, "fix 2 all temp/rescale 1 200 250 0.01 1.0\nvelocity all scale 400", RUN
    ),
    "types swapped": (
        triclinic, "fix 2 all atom/swap 1 5 29494 300 ke no types 1 2", RUN
    ),
    "inserted and deleted": (
        triclinic, "fix 2 all gcmc 1 5 5 2 29494 300 -5 0.1", RUN
    ),
    "two time steps": (triclinic, "run_style respa 2 2 pair 2", RUN),
    "two temperatures": (
        triclinic, "fix 2 all temp/berendsen 300 300 0.01\n", RUN + "\nunfix 2\nrun 2"
    ),
    "runs that go on": (
        triclinic, "", RUN + "\nrun 2 pre no post no\nrun 4 every 2 NULL\nrun 0\nrun 2"
    ),
    "minimized box": (
        triclinic, "fix 2 all box/relax tri 0.0 vmax 0.01", "minimize 0 1e-3 4 8\nunfix 2\nrun 0"
    ),
    "other style between": (
        triclinic,
        "run 0\npair_style zero 4.0\npair_coeff * *\nrun 1\npair_style gaunt\n{pair_coeff}",
        RUN,
    ),
    "rerun": (
        triclinic,
        "",
        "dump 1 all custom 1 rerun.dump id type x y z\n"
        "dump_modify 1 format float %.17g\n" + RUN + "\nundump 1\nunfix 1\n"
        "displace_atoms all move 0.3 0.1 0.2\n"
        "rerun rerun.dump first 1 dump x y z",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(lammps, exported):
    """By name of a case, the results on one and two ranks."""
    model = exported("gaunt")
    cases = {name: Case(triclinic(), model, before=before) for name, before in LISTS.items()}
    for name, (make, before, commands) in CHANGES.items():
        before = before.replace("{pair_coeff}", f"pair_coeff * * {model} H C O")
        cases[name] = Case(make(), model, commands, before)
    alone = {name: Case(triclinic(), model, before=b) for name, b in ON_ONE_RANK.items()}
    one = dict(zip([*cases, *alone], simulate(lammps, [*cases.values(), *alone.values()])))
    two = dict(zip(cases, simulate(lammps, list(cases.values()), ranks=2)))
    return {name: [one[name]] + ([two[name]] if name in two else []) for name in one}


@pytest.mark.parametrize("name", [*LISTS, *CHANGES, *ON_ONE_RANK])
def test_same_as_ase(results, calculator, name):
    for result in results[name]:
        assert_like_ase(result, calculator("gaunt"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_atom_that_monte_carlo_takes_away(lammps, exported, calculator, ranks):
    """As ``fix gcmc`` tries a deletion: the atom has no energy of its own either."""
    atoms, folder = triclinic(), lammps.folder()
    write_data(folder / "data.lammps", atoms)
    text = (
        header(atoms, exported("gaunt"))
        + """
neigh_modify every 1 delay 0 check no
group gone empty
neigh_modify exclude group gone all
thermo 1
run 0
group gone id 5
run 1 pre no
print "RESULT $(pe:%.17g)"
"""
    )
    output = lammps.run(text, folder, ranks)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    del atoms[4]
    atoms.calc = calculator("gaunt")
    assert float(line.split()[1]) == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)
