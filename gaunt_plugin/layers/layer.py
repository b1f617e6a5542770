"""Base class of the layers."""

from __future__ import annotations

import torch


class Layer(torch.nn.Module):
    """A module that computes in float32 under autocast, as torch's own sensitive functions do.

    In a shorter type the grid's quadrature, and with it equivariance, is good to two digits only.
    """

    def __call__(self, *args, **kwargs):
        first = args[0] if args else next(iter(kwargs.values()))
        device = first.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast
            return super().__call__(*args, **kwargs)
        args = [_lengthen(a) for a in args]
        kwargs = {name: _lengthen(a) for name, a in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return super().__call__(*args, **kwargs)


def _lengthen(argument):
    short = isinstance(argument, torch.Tensor) and argument.dtype in (torch.bfloat16, torch.float16)
    return argument.float() if short else argument
