"""``constraints-oldest.txt`` names the lower bounds that the package itself states."""

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# e3nn is left to the hosts, and the others touch no result.
WITHOUT = {"e3nn", "pre-commit", "ruff", "furo", "myst-parser", "sphinx"}


def test_oldest_releases_are_the_lower_bounds():
    bounds = {}
    for text in importlib.metadata.requires("gaunt-plugin"):
        requirement = Requirement(text)
        (bounds[requirement.name],) = (
            s.version for s in requirement.specifier if s.operator == ">="
        )
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    named = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert named.keys() == bounds.keys() - WITHOUT
    for name, version in named.items():
        # 2.6 and 2.6.0 are one release.
        padded = bounds[name] + ".0" * (version.count(".") - bounds[name].count("."))
        assert version == padded, name
