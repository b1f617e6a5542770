"""Exported programs whose radial functions are tables, against those with networks."""

from types import SimpleNamespace

import ase.io
import pytest
import torch

from gaunt_plugin import cli
from gaunt_plugin.deploy import contract, radial
from gaunt_plugin.deploy.export import samples
from gaunt_plugin.deploy.neighbors import Edges

from .conftest import host
from .structures import STRUCTURES, molecule


def graph_of(atoms, about):
    edges = Edges(about.cutoff, 0.0, torch.device("cpu"))
    vectors, index = edges(atoms.positions, atoms.cell.array, atoms.pbc)
    types = torch.tensor([about.elements.index(s) for s in atoms.symbols], dtype=torch.int64)
    return vectors, index, types, torch.ones(len(atoms), dtype=torch.bool)


def programs(path):
    """With networks and with tables, and the file's description."""
    exact, _ = contract.load(path)
    tables, about = contract.load(path, kernels=True)
    return exact, tables, about


def forces(graph, gradients):
    out = torch.zeros(len(graph[2]), 3, dtype=torch.float64).index_add(0, graph[1][0], gradients)
    return out.index_add(0, graph[1][1], gradients, alpha=-1)


@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("name", host.TABULATED)
def test_bounds(name, structure, exported, kernels):
    """On other structures than the export's own."""
    exact, tables, about = programs(exported(name, radial="table"))
    graph = graph_of(STRUCTURES[structure](), about)
    expected, found = exact(*graph), tables(*graph)
    energies = (found[0] - expected[0]).abs().max().item()
    different = (forces(graph, found[1]) - forces(graph, expected[1])).abs().max().item()
    assert 1e-14 < energies < radial.ENERGY_BOUND
    assert 1e-13 < different < radial.FORCE_BOUND
    assert about.radial.intervals in radial.INTERVALS
    assert about.radial.force_error < radial.FORCE_BOUND


@pytest.mark.parametrize("name", host.TABULATED)
def test_float32(name, exported, kernels):
    exact, tables, about = programs(exported(name, "float32", "table"))
    graph = graph_of(molecule(), about)
    expected, found = exact(*graph), tables(*graph)
    for a, b in zip(found, expected):
        assert (a - b).abs().max() < 1e-5 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("name", host.TABULATED)
def test_gradients_are_those_of_the_energy(name, exported, kernels):
    """By finite differences, on both sides of a knot."""
    _, tables, about = programs(exported(name, radial="table"))
    vectors, *graph = graph_of(molecule(), about)
    step = (about.cutoff - radial.START) / about.radial.intervals
    place = (vectors[0].norm() - radial.START) / step
    vectors = vectors.clone()
    vectors[0] *= 1 + (place.round() - place) * step / vectors[0].norm()  # onto a knot
    gradients = tables(vectors, *graph)[1]
    along = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)).double()
    h = 1e-5
    ahead, behind = (tables(vectors + s * h * along, *graph)[0].sum() for s in (1, -1))
    expected = ((ahead - behind) / (2 * h)).item()
    assert (gradients * along).sum().item() == pytest.approx(expected, rel=1e-7, abs=1e-8)


def test_short_distances_take_the_networks(exported, kernels):
    """The whole graph does, whose other edges then don't read the tables either."""
    exact, tables, about = programs(exported(host.TABULATED[0], radial="table"))
    atoms = molecule()
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.8 * radial.START, 0.0]
    graph = graph_of(atoms, about)
    assert graph[0].norm(dim=1).min() < radial.START
    for a, b in zip(tables(*graph), exact(*graph)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_no_edges(exported, kernels):
    exact, tables, about = programs(exported(host.TABULATED[0], radial="table"))
    for atoms in (molecule()[:1], molecule()[:0]):
        graph = graph_of(atoms, about)
        for a, b in zip(tables(*graph), exact(*graph)):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def export(model, *arguments):
    """The command, for a model of either host."""
    from gaunt_plugin.deploy.export import export

    lines = []
    loaded = host.build(model) if hasattr(host, "build") else model
    about = export(loaded, *arguments[:1], report=lines.append, **dict(arguments[1:]))
    return about, "\n".join(lines)


def test_networks_are_kept_where_there_are_no_tables(models, tmp_path, monkeypatch):
    about, said = export(models[host.TABULATED[0]], tmp_path / "a.pt", ("radial", "exact"))
    assert about.radial is None
    assert "tables" not in said
    # bounds that nothing keeps
    monkeypatch.setattr(radial, "FORCE_BOUND", 1e-16)
    monkeypatch.setattr(radial, "OF_FORCE", 0.0)
    monkeypatch.setattr(radial, "INTERVALS", (16, 32))
    about, said = export(models[host.TABULATED[0]], tmp_path / "a.pt")
    assert about.radial is None
    assert "Its radial networks are kept: Radial tables of 32 intervals" in said
    # kinds of edges that would need too much memory
    monkeypatch.setattr(radial, "MOST", 100)
    about, said = export(models[host.TABULATED[0]], tmp_path / "a.pt")
    assert about.radial is None
    assert "numbers" in said


class Steep(torch.nn.Module):
    """A repulsion like that of networks where no data were, with a relative error."""

    dtype = torch.float64

    def __init__(self, error):
        super().__init__()
        self.factor = 1e3 * (1 + error)

    def forward(self, vectors, index, types, owned):
        length = vectors.norm(dim=1, keepdim=True)
        pairs = self.factor * length**-12
        energies = torch.zeros(len(types), 1, dtype=torch.float64).index_add(0, index[1], pairs)
        return energies.squeeze(1), -12 * pairs / length**2 * vectors


@pytest.mark.parametrize("error", [1e-8, 1e-6])
def test_large_forces_may_differ_by_what_float32_rounds(error):
    """Networks can have forces of 1e6 eV/A for a pair of atoms at 0.6 A."""
    vectors = torch.tensor([[0.6, 0, 0], [0, 3.0, 0]], dtype=torch.float64)
    graph = vectors, torch.tensor([[0, 2], [1, 3]]), torch.zeros(4, dtype=torch.long), None
    adapter = SimpleNamespace(in_float64=lambda m: m, tabulated=lambda m, n: Steep(error))
    if error < radial.OF_FORCE:
        _, tables = radial.tabulate(adapter, Steep(0.0), [graph])
        assert tables.intervals == radial.INTERVALS[0]
        assert tables.force_error < radial.FORCE_BOUND
    else:
        with pytest.raises(radial.NoTablesError, match="forces within"):
            radial.tabulate(adapter, Steep(0.0), [graph])


def test_structures_of_the_user(models, tmp_path):
    path = tmp_path / "frames.xyz"
    ase.io.write(path, [STRUCTURES["triclinic"](), molecule()])
    about, said = export(models[host.TABULATED[0]], tmp_path / "a.pt", ("structures", path))
    assert about.radial is not None
    assert "energies within" in said
    other = molecule()
    other.symbols[0] = "Au"
    ase.io.write(path, other)
    with pytest.raises(contract.ModelFileError, match="has Au, which the model doesn't know"):
        export(models[host.TABULATED[0]], tmp_path / "b.pt", ("structures", path))
    with pytest.raises(contract.ModelFileError, match="there is no file"):
        export(models[host.TABULATED[0]], tmp_path / "b.pt", ("structures", tmp_path / "no.xyz"))
    assert not (tmp_path / "b.pt").exists()


def test_info_names_the_tables(exported, capsys):
    assert cli.main(["info", str(exported(host.TABULATED[0], radial="table"))]) == 0
    said = capsys.readouterr().out
    assert "Radial tables of" in said
    assert "of the networks" in said


def test_samples_cover_elements_and_distances(exported):
    _, about = contract.load(exported(host.TABULATED[0]))
    for vectors, index, types, owned in samples(about):
        assert set(types.tolist()) == {0, 1, 2}
        lengths = vectors.norm(dim=1)
        assert lengths.min() > radial.START
        assert lengths.max() < about.cutoff
        assert index.max() < len(types) == len(owned)
