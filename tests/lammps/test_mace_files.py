"""MACE's own LAMMPS files of Gaunt models: pair_style mace, and ML-IAP with a mock of LAMMPS."""

import copy

from mace.calculators import LAMMPS_MACE

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from e3nn.util import jit

from gaunt_plugin import cli
from gaunt_plugin.mace import weights

from ..deploy.structures import small_cell, triclinic
from .simulation import header, write_data

# What pair_style mace does with the file, in a process without any package of the model.
PAIR_MACE = """
import sys, torch
model = torch.jit.load(sys.argv[1])
# the style reads these when it loads the file ...
r_max, layers = model.r_max.item(), model.num_interactions.item()
numbers = model.atomic_numbers
names = {name: value.dtype for name, value in model.named_parameters()}
names.update({name: value.dtype for name, value in model.named_buffers()})
dtype = names["model.node_embedding.linear.weight"]
# ... and calls it with these at every step
inputs = torch.load(sys.argv[2])
mask = inputs.pop("mask")
inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
out = model(inputs, mask, True)
keys = ("total_energy_local", "forces", "node_energy", "virials")
torch.save({"r_max": r_max, "layers": layers, "numbers": numbers, "dtype": dtype,
            **{key: out[key] for key in keys}}, sys.argv[3])
loaded = {"gaunt_plugin", "mace", "nequip", "e3nn"} & set(sys.modules)
assert not loaded, loaded
"""
TYPES = {"H": 0, "C": 1, "O": 2}


def inputs_of(atoms, cutoff, reach=0.0):
    """What pair_style mace fills in, and the owner of each atom.

    With a ``reach`` the images within it are atoms of their own (domain decomposition); without,
    neighbours come with periodic shifts (its option no_domain_decomposition).
    """
    n = len(atoms)
    if reach:
        repeats = np.ceil(reach / np.abs(1 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)))
        r = [range(-int(k), int(k) + 1) for k in repeats]
        shifts = np.array([[i, j, k] for i in r[0] for j in r[1] for k in r[2]]) @ atoms.cell
        shifts = shifts[np.argsort(np.linalg.norm(shifts, axis=1), kind="stable")]
        positions = (shifts[:, None] + atoms.positions[None]).reshape(-1, 3)
        near = np.linalg.norm(positions[:, None] - atoms.positions[None], axis=2).min(1) <= reach
        near[:n] = True
        symbols = np.tile(atoms.symbols, len(shifts))[near]
        owner = np.tile(np.arange(n), len(shifts))[near]
        cluster = type(atoms)(symbols, positions=positions[near])
        receiver, sender, unit = neighbor_list("ijS", cluster, cutoff)
        atoms = cluster
        atoms.cell = np.eye(3)
    else:
        receiver, sender, unit = neighbor_list("ijS", atoms, cutoff)
        owner = np.arange(n)
    types = torch.tensor([TYPES[s] for s in atoms.symbols])
    mask = torch.zeros(len(atoms), dtype=torch.bool)
    mask[:n] = True
    # MACE: vector = positions[receiver] - positions[sender] + shift, so the image's shift is minus
    unit = torch.tensor(-unit, dtype=torch.float64)
    cell = torch.tensor(np.asarray(atoms.cell))
    inputs = {
        "positions": torch.tensor(atoms.positions),
        "cell": cell,
        "edge_index": torch.tensor(np.stack([sender, receiver])),
        "shifts": unit @ cell,
        "unit_shifts": unit,
        "node_attrs": torch.nn.functional.one_hot(types, 3).double(),
        "batch": torch.zeros(len(atoms), dtype=torch.long),
        "ptr": torch.tensor([0, len(atoms)]),
        "weight": torch.ones(1, dtype=torch.float64),
        "energy": torch.empty(1, dtype=torch.float64),
        "forces": torch.empty(len(atoms), 3, dtype=torch.float64),
        "mask": mask,
    }
    return inputs, owner


@pytest.fixture(scope="module")
def pair_mace(models, tmp_path_factory, python):
    """The results of pair_style mace's calls, with and without ghost atoms, per structure."""
    folder = tmp_path_factory.mktemp("pair_mace")
    model = torch.load(models["gaunt"], weights_only=False)
    path = folder / "model-lammps.pt"
    jit.compile(LAMMPS_MACE(copy.deepcopy(model))).save(str(path))  # mace_create_lammps_model

    def run(atoms, reach):
        inputs, owner = inputs_of(atoms, 3.0, reach)
        torch.save(inputs, folder / "in.pt")
        python(PAIR_MACE, path, folder / "in.pt", folder / "out.pt")
        return torch.load(folder / "out.pt"), owner

    return run


@pytest.mark.parametrize("make", [small_cell, triclinic])
@pytest.mark.parametrize("reach", [0.0, 6.0], ids=["periodic", "ghosts"])
def test_pair_style_mace(pair_mace, calculator, make, reach):
    atoms = make()
    out, owner = pair_mace(atoms, reach)
    assert (out["r_max"], out["layers"]) == (3.0, 2)
    assert out["numbers"].tolist() == [1, 6, 8]
    assert out["dtype"] == torch.float64
    atoms.calc = calculator("gaunt")
    n = len(atoms)
    energy = out["total_energy_local"].item()
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)
    energies = out["node_energy"][:n].detach().numpy()
    np.testing.assert_allclose(energies, atoms.get_potential_energies(), rtol=0, atol=1e-8)
    forces = np.zeros((n, 3))
    np.add.at(forces, owner, out["forces"].numpy())  # LAMMPS's reverse communication
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-10)
    virial = out["virials"].numpy().reshape(3, 3)
    expected = -atoms.get_volume() * atoms.get_stress(voigt=False)
    size = np.abs(expected).max()
    np.testing.assert_allclose(virial, expected, rtol=0, atol=1e-8 * size)


class MliapData:
    """LAMMPS's side of the ML-IAP coupling for one rank, where ghosts are periodic images."""

    def __init__(self, atoms, cutoff):
        receiver, sender, d, shift = neighbor_list("ijDS", atoms, cutoff)
        n = len(atoms)
        images = {}
        index = []
        for j, s in zip(sender, map(tuple, shift)):
            index.append(j if not any(s) else images.setdefault((j, s), n + len(images)))
        self.owner = torch.tensor([*range(n), *(j for j, _ in images)])
        self.nlocal, self.ntotal, self.npairs = n, len(self.owner), len(d)
        self.elems = np.array([TYPES[atoms.symbols[i]] for i in self.owner])
        self.pair_i, self.pair_j, self.rij = receiver, np.array(index), d
        self.eatoms = np.zeros(n)
        self.energy = None
        self.forces = np.zeros((self.ntotal, 3))

    def forward_exchange(self, source, target, length):
        """Owners give their rows to their ghosts."""
        target.copy_(source[self.owner])

    def reverse_exchange(self, source, target, length):
        """Ghosts hand theirs back, as the derivative of the above."""
        target.zero_()
        target.index_add_(0, self.owner, source)

    def update_pair_forces_gpu(self, pair_forces):
        """The pair force acts on i, and its opposite on j."""
        pair_forces = np.asarray(pair_forces)
        np.add.at(self.forces, self.pair_i, pair_forces)
        np.add.at(self.forces, self.pair_j, -pair_forces)


@pytest.mark.parametrize("name", ["non_linear", "stock_non_linear"])
def test_other_blocks_in_lammps(models, lammps, exported, calculator, name):
    from .simulation import Case, simulate

    atoms = triclinic()
    (found,) = simulate(lammps, [Case(atoms, exported(name))])
    atoms.calc = calculator(name)
    assert found.energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)
    np.testing.assert_allclose(found.forces, atoms.get_forces(), rtol=0, atol=1e-10)


def test_a_converted_model_is_the_stock_one(models, lammps, calculator, tmp_path):
    from .simulation import Case, assert_like_ase, simulate

    gaunt, exported = tmp_path / "gaunt.model", tmp_path / "gaunt.pt"
    assert cli.main(["convert", str(models["stock"]), str(gaunt)]) == 0
    assert cli.main(["export", str(gaunt), str(exported), "--radial", "exact"]) == 0
    cases = [Case(atoms, exported) for atoms in (small_cell(), triclinic())]
    for ranks in (1, 2):
        for result in simulate(lammps, cases, ranks):
            assert_like_ase(result, calculator("stock"))


@pytest.mark.parametrize("name", ["gaunt", "three_layers", "non_linear"])
def test_mliap_coupling(models, calculator, name, tmp_path, capsys):
    output = tmp_path / "mliap.pt"
    assert cli.main(["mliap", str(models[name]), str(output)]) == 0
    assert "pair_style mliap unified" in capsys.readouterr().out
    coupling = torch.load(output, weights_only=False)
    assert coupling.element_types == ["H", "C", "O"]
    assert coupling.rcutfac == 1.5
    for make in (small_cell, triclinic):
        atoms = make()
        data = MliapData(atoms, 3.0)
        coupling.compute_forces(data)
        atoms.calc = calculator(name)
        assert data.energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, data.owner.numpy(), data.forces)
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-10)


def test_a_head_must_be_chosen(models, tmp_path, capsys):
    out = tmp_path / "out.pt"
    for command in ("export", "mliap"):
        assert cli.main([command, str(models["two_heads"]), str(out)]) == 1
        assert "cold, hot: choose one with --head" in capsys.readouterr().err
        assert cli.main([command, str(models["two_heads"]), str(out), "--head", "warm"]) == 1
        assert "no head 'warm'" in capsys.readouterr().err
    assert not out.exists()


def test_head_of_an_exported_file(models, lammps, tmp_path):
    from ..deploy.mace_models import calculator
    from .simulation import Case, simulate

    atoms, cases = triclinic(), []
    for head in ("cold", "hot"):
        path = tmp_path / f"{head}.pt"
        assert cli.main(["export", str(models["two_heads"]), str(path), "--head", head]) == 0
        cases.append(Case(atoms, path))
    found = simulate(lammps, cases)
    for result, head in zip(found, ("cold", "hot")):
        atoms.calc = calculator(models["two_heads"], head=head)
        assert result.energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)
    assert abs(found[0].energy - found[1].energy) > 0.1


@pytest.mark.parametrize("command", ["pack", "unpack", "mliap"])
def test_old_files_survive_a_full_disk(models, monkeypatch, tmp_path, command):
    source, target = models["gaunt"], tmp_path / "target"
    if command == "unpack":
        weights.main(["pack", str(source), str(tmp_path / "packed")])
        source = tmp_path / "packed"
    target.write_text("old")
    before = set(tmp_path.iterdir())
    save = torch.save

    def full_disk(content, path):
        save(content, path)
        raise RuntimeError("no space left")

    main = cli.main if command == "mliap" else weights.main
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(RuntimeError, match="no space left"):
            main([command, str(source), str(target)])
    assert target.read_text() == "old"
    assert set(tmp_path.iterdir()) == before
    main([command, str(source), str(target)])
    assert target.read_bytes() != b"old"


def test_the_printed_lines_are_an_input(models, lammps, capsys):
    """Of a path with blanks."""
    folder = lammps.folder()
    path = folder / "my model.pt"
    assert cli.main(["export", str(models["gaunt"]), str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pair_")]
    atoms = triclinic()
    write_data(folder / "data.lammps", atoms)
    start, _, _ = header(atoms, path).partition("pair_style")
    output = lammps.run(start + "\n".join(lines), folder)
    assert "my model.pt, cutoff 3 A" in output
