"""Puts compiled CPU kernels into wheels; hatchling runs it.

An editable install has none: there, `gaunt build` compiles what the sources say now.
"""

import importlib.util
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "gaunt_plugin/ops/cpu"


class KernelsHook(BuildHookInterface):
    """Compiles where there is a compiler; else the wheel is pure Python and says why."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Compile into a temporary folder, which keeps the source tree clean."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        if _load_wheel_module(Path(self.root)).compile_all(folder, self.app.display_info):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"
        for path in folder.iterdir():
            build_data["force_include"][str(path)] = f"{KERNELS}/compiled/{path.name}"

    def finalize(self, version: str, build_data: dict, artifact_path: str) -> None:
        """Remove that folder."""
        if version != "editable":
            self._folder.cleanup()


def _load_wheel_module(root: Path):
    # Its packages import torch, which isn't there when a wheel is built.
    sys.path.insert(0, str(root))
    spec = importlib.util.spec_from_file_location("wheel_kernels", root / KERNELS / "wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(root))
    return module


def _platform() -> str:
    """This machine as wheels name it. Python for macOS may say "universal2"; kernels are not."""
    name = sysconfig.get_platform()
    if name.endswith("universal2"):
        name = f"macosx-11.0-{platform.machine()}"
    return name.replace("-", "_").replace(".", "_")
