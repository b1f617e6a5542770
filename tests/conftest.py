"""Settings that all tests share."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

from .once import once

# The plain path, whatever lies in the user's cache; tests of the kernels ask for them.
os.environ.setdefault("GAUNT_KERNELS", "0")

# Triton reads this when it is imported, by torch, too. Without a GPU its kernels are interpreted.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples everywhere and no data base in the repository; machines differ in speed.
hypothesis.settings.register_profile(
    "gaunt_plugin",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("gaunt_plugin")


@pytest.fixture(scope="session")
def built_kernels(tmp_path_factory):
    """The folder of builds, with the kernels in it; compiled once per test run."""
    from gaunt_plugin._compiler import BuildError, find_compiler
    from gaunt_plugin.ops.cpu import build

    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))

    def compiled(folder: Path) -> None:
        if shared := os.environ.get("GAUNT_TEST_KERNELS"):  # by tests/run.py's environments
            (folder / "kernels").symlink_to(shared)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GAUNT_PLUGIN_CACHE", str(folder))
            build.build()

    return once(tmp_path_factory, "kernels", compiled)


@pytest.fixture(
    params=[pytest.param("cpu", id="interpreter"), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def way(request, monkeypatch, tmp_path):
    """Triton's kernels: in its interpreter, and on a GPU if there is one."""
    from .on_triton import Way

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted != (request.param == "cpu"):
        pytest.skip("Triton compiles for the GPU here" if not interpreted else "no GPU here")
    monkeypatch.setenv("GAUNT_KERNELS", "1")
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    return Way(request.param, monkeypatch)


@pytest.fixture(scope="session")
def built_pair_style(tmp_path_factory):
    """The same with pair_style gaunt for this environment; its name is awkward."""
    from gaunt_plugin.lammps.build import build

    def compiled(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GAUNT_PLUGIN_CACHE", str(folder))
            build(report=lambda line: None)

    return once(tmp_path_factory, "cache, with blanks é", compiled)


@pytest.fixture
def kernels(built_kernels, monkeypatch):
    """In use; a function that switches them on (True) or off."""
    from gaunt_plugin.ops import _operator
    from gaunt_plugin.ops.cpu import build, call

    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(built_kernels))
    monkeypatch.setenv("GAUNT_KERNELS", "1")
    build.library.cache_clear()
    library = build.library()
    assert library is not None

    def switch(on: bool) -> None:
        for module in (_operator, call):
            monkeypatch.setattr(module, "library", lambda: library if on else None)

    yield switch
    build.library.cache_clear()
