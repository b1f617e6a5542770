"""Whether Python runs for its result, or only once to record a program."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def recording() -> bool:
    """True under ``torch.compile``, ``torch.export``, ``make_fx`` and ``torch.jit.trace``.

    A program must hold neither sizes that depend on data nor loops over blocks of one size. False
    in TorchScript, whose compiler reads the source instead.
    """
    if torch.jit.is_scripting():
        return False
    return _recording()


@torch.jit.unused
def _recording() -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return get_proxy_mode() is not None
