"""e3nn's o3, which in release 0.4.4 can be imported once the layers are."""

from e3nn import o3

import gaunt_plugin.layers  # noqa: F401

__all__ = ["o3"]
