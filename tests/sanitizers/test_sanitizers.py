"""The run of ``tests/run.py --sanitize`` finds faults: a tool that finds none proves nothing."""

import ctypes
import os
import subprocess
import sys

import pytest

from gaunt_plugin._compiler import find_compiler
from gaunt_plugin.ops.cpu import build

OPTIONS = os.environ.get("GAUNT_CXXFLAGS", "").split()

pytestmark = pytest.mark.skipif(
    "-fsanitize=address,undefined" not in OPTIONS, reason="for tests/run.py --sanitize"
)

FAULTS = r"""
#include <cstdint>
extern "C" {
double past_the_end(const double* x, int64_t n) { return x[n]; }
int overflow(int x) { return x + 2147483647; }
double right(const double* x, int64_t n) { return x[n - 1]; }
}
"""
CALLS = """
import ctypes, sys, torch
library = ctypes.CDLL(sys.argv[1])
x = torch.ones(24, dtype=torch.float64)
for name in ("past_the_end", "right"):
    getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int64]
{call}
print("went on")
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faults.cpp").write_text(FAULTS)
    command = [*find_compiler(), "-shared", "-fPIC", *OPTIONS, "faults.cpp", "-o", "faults.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "faults.so"


def call(library, statement):
    command = [sys.executable, "-c", CALLS.format(call=statement), str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("library.past_the_end(x.data_ptr(), len(x))", "heap-buffer-overflow"),
        ("library.overflow(1)", "signed integer overflow"),
    ],
)
def test_faults_are_found(statement, message, faults):
    done = call(faults, statement)
    assert done.returncode != 0
    assert message in done.stderr
    assert "went on" not in done.stdout


def test_right_code_goes_on(faults):
    done = call(faults, "library.right(x.data_ptr(), len(x))")
    assert done.returncode == 0, done.stderr
    assert "went on" in done.stdout


def test_the_kernels_are_checked(kernels):
    """What the other tests of this run call was compiled with the sanitizers."""
    assert ctypes.CDLL(None).__asan_init
    library = build.path().read_bytes()
    assert b"__asan_report_load" in library
    assert b"__ubsan_handle" in library
