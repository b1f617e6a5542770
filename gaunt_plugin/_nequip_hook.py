"""NequIP's stock models find our model modifier ``enable_GauntKernels``. Standard library only.

NequIP looks for modifiers in the classes of a model. It imports extensions so that they register
themselves, but has no registry of modifiers; and the classes of a packaged model are its own. So
the search is told first to look at the stock blocks of the model, see
:func:`gaunt_plugin.nequip.stock.offer`.
"""

import functools
import importlib.abc
import importlib.util
import sys

_MODULE = "nequip.model.modify_utils"


class _Finder(importlib.abc.MetaPathFinder):
    """Changes NequIP's module when it is imported, and nothing before."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader) -> None:
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        _extend(module)

    def __getattr__(self, name):  # what else a loader can: source, resources
        return getattr(self.loader, name)


def _extend(module) -> None:
    search = module.get_all_modifiers

    @functools.wraps(search)
    def get_all_modifiers(model, _all_modifiers=None):
        if _all_modifiers is None:  # not one of its calls of itself
            try:
                from gaunt_plugin.nequip.stock import offer
            except ImportError:  # another release of NequIP than those that are known
                pass
            else:
                offer(model)
        return search(model, _all_modifiers)

    module.get_all_modifiers = get_all_modifiers


def install() -> None:
    """Let NequIP's search know, now or once it is imported; not in a package's copy of this."""
    if __name__.startswith("<torch_package"):
        return
    if _MODULE in sys.modules:
        _extend(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _Finder())
