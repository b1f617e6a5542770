"""Gaunt interaction blocks for NequIP, named in a config by ``_target_``.

Environment: nequip 0.19, e3nn 0.6.

* :func:`GauntNequIPGNNModel`, :func:`PresetGauntNequIPGNNModel`,
  :func:`FullGauntNequIPGNNModel`: model builders
"""

import re

try:
    import nequip
except ImportError as error:
    raise ImportError(
        "gaunt_plugin.nequip needs NequIP: pip install 'gaunt-plugin[nequip]', in an environment "
        "without MACE (the two need different releases of e3nn)"
    ) from error

# Compared as text: packaged models carry this module, and nothing else should be imported for it.
if not re.match(r"0\.19\.[1-9]", nequip.__version__):
    raise ImportError(
        f"gaunt_plugin.nequip is made for nequip >= 0.19.1, < 0.20, found {nequip.__version__}"
    )

from gaunt_plugin.nequip.models import (
    FullGauntNequIPGNNModel,
    GauntNequIPGNNModel,
    PresetGauntNequIPGNNModel,
)

__all__ = ["FullGauntNequIPGNNModel", "GauntNequIPGNNModel", "PresetGauntNequIPGNNModel"]
