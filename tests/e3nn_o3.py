"""e3nn's o3, which in release 0.4.4 can be imported once the layers are."""

from importlib.metadata import version

import gaunt_plugin.layers  # noqa: F401  # isort: skip
from e3nn import o3

# Highest degree of harmonics and rotations that the tests ask e3nn for; 0.4.4 has no more than 11.
LMAX = 11 if version("e3nn").startswith("0.4.") else 12

__all__ = ["LMAX", "o3"]
