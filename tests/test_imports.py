"""The arrows of the import graph: sphere <- ops <- layers <- mace, nequip <- deploy <- lammps.

On top: the calculator, and the command line. Beside the hosts: the optimizer, on the layers.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gaunt_plugin"
HOSTS = {"mace", "nequip"}

# What each part must not import, at any depth of its code.
FORBIDDEN = {
    "": {"numpy", "scipy", "torch", "e3nn", *HOSTS},  # the modules directly in gaunt_plugin
    "sphere": {"torch", "e3nn", *HOSTS},
    "ops": {"scipy", "e3nn", *HOSTS},
    "layers": HOSTS,
    "optim": {"numpy", "scipy", "e3nn", *HOSTS},
    "mace": {"nequip"},
    "nequip": {"mace"},
    "deploy": set(),
    "lammps": set(),
    "pretrained": {"numpy", "scipy", "e3nn", "nequip"},
    "calculator": HOSTS | {"e3nn"},
    "cli": {"numpy", "scipy", "torch", "e3nn", *HOSTS},
    "installation": {"numpy", "scipy", "e3nn", *HOSTS},
}
# The parts of the package that each part may import.
ALLOWED = {
    # the start-up hook hands over to gaunt_plugin.mace.plugin_option, NequIP's to .nequip.stock
    "": {"", "mace", "nequip"},
    "sphere": {"", "sphere"},
    "ops": {"", "sphere", "ops"},
    "layers": {"", "sphere", "ops", "layers"},
    "optim": {"layers"},
    "mace": {"", "sphere", "ops", "layers", "optim", "mace"},
    "nequip": {"", "sphere", "ops", "layers", "nequip"},
    "deploy": {"", "sphere", "ops", "layers", "mace", "nequip", "deploy"},
    "lammps": {"", "ops", "deploy", "lammps"},
    "pretrained": {"", "ops", "mace", "deploy"},
    "calculator": {"deploy", "pretrained"},
    "cli": {"", "ops", "nequip", "deploy", "pretrained", "lammps", "installation"},
    "installation": {"", "ops", "lammps"},
}


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, inside functions too."""
    package = ("gaunt_plugin", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from gaunt_plugin import layers` imports a part of the package
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FORBIDDEN else ""


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_follow_the_arrows(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if path.parent == PACKAGE and part not in FORBIDDEN:
        part = ""
    assert part in FORBIDDEN, f"gaunt_plugin/{part} has no place in the import graph yet"
    for module in imported_modules(path):
        top = module.split(".")[0]
        if top == "gaunt_plugin":
            assert part_of(module) in ALLOWED[part], f"{part or 'the package'} imports {module}"
        else:
            assert top not in FORBIDDEN[part], f"{part or 'the package'} imports {module}"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, gaunt_plugin, gaunt_plugin.mace, gaunt_plugin.cli as c; c._parser(); "
    code += "print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "gaunt_plugin" in modules
    assert not modules & {"torch", "e3nn", "mace", "nequip", "numpy", "scipy"}
