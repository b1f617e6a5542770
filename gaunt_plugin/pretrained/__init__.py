"""Small trained models that come with the package, by name.

``3bpa-small``: the molecule 3BPA; ``3bpa-small.md`` beside this file states data, errors, licence.
They are weights of MACE models, which run no code when they are loaded. What ASE and LAMMPS read
is exported from them when it is first asked for, which needs MACE, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

import gaunt_plugin
from gaunt_plugin._compiler import cache
from gaunt_plugin.ops import INTERFACE

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.weights")))


def weights(name: str) -> Path:
    """The weights of a model, as :mod:`gaunt_plugin.mace.weights` writes them.

    Raises:
        ValueError: there is no model of this name.
    """
    if name not in NAMES:
        raise ValueError(f"there is no file or model {name!r}; models by name: {', '.join(NAMES)}")
    return _FOLDER / f"{name}.weights"


def exported(name: str, report=print) -> Path:
    """The file of ``gaunt export`` for a model, written if it isn't there yet.

    Args:
        name: one of ``NAMES``.
        report: called with lines of text.

    Raises:
        ValueError: no such model, or it can't be exported here.
    """
    source = weights(name)
    # Whatever decides what an export holds.
    versions = f"{gaunt_plugin.__version__} {torch.__version__} {INTERFACE}"
    key = hashlib.sha256(source.read_bytes() + versions.encode()).hexdigest()[:16]
    target = cache("models") / f"{name}-{key}.pt"
    if not target.is_file():
        from gaunt_plugin.deploy.export import export

        report(f"Exporting {name} for this installation, once")
        target.parent.mkdir(parents=True, exist_ok=True)
        export(source, target, report=report)
    return target


def resolve(model: str | Path) -> Path:
    """The exported file that is meant: a path, or else the name of a model."""
    path = Path(model)
    # Files have suffixes, so one without that isn't there is a misspelt name.
    return path if path.exists() or path.suffix else exported(str(model))
