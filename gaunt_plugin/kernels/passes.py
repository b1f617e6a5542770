"""A kernel's three passes."""

from __future__ import annotations

import torch

from gaunt_plugin.kernels import _call, radial
from gaunt_plugin.kernels._call import zeros_like


def forward(name, program, sizes, shape, index, inputs):
    """What the kernel computes, of the given shape; arguments as for :func:`call`."""
    if name == radial.NAME:
        return radial.forward(program, sizes, shape, index, inputs)
    out = inputs[0].new_zeros(shape)
    _call.call(name, program, sizes, index, inputs, [out])
    return out


def gradient(name, program, sizes, index, inputs, g, needed=None):
    """Gradients of ``<g, forward>`` with respect to the inputs, of which not all may be needed."""
    if name == radial.NAME:
        of_mixing = inputs[-1].requires_grad if needed is None else needed[-1]
        return radial.gradient(program, sizes, index, inputs, g, of_mixing)
    out = zeros_like(inputs)
    _call.call(name, program, sizes, index, [*inputs, g], out)
    return out


def second(name, program, sizes, index, inputs, g, v):
    """Gradients of ``<v, gradient>`` with respect to g and the inputs."""
    if name == radial.NAME:
        return radial.second(program, sizes, index, inputs, g, v)
    out = zeros_like([g, *inputs])
    _call.call(name, program, sizes, index, [*inputs, g, *v], out)
    return out


class Kernel:
    """What :func:`gaunt_plugin.kernels.fused.fused` calls.

    Attributes:
        name, program, index: as for :func:`call`.
    """

    name: str
    program: torch.Tensor
    index: torch.Tensor | None = None

    def shapes(self, *inputs: torch.Tensor) -> tuple[list[int], list[int]]:
        """Sizes as for :func:`call`, and the shape of what the kernel computes."""
        raise NotImplementedError

    def forward(self, *inputs):
        return forward(self.name, self.program, *self.shapes(*inputs), self.index, inputs)

    def gradient(self, needed, g, *inputs):
        sizes, _ = self.shapes(*inputs)
        return gradient(self.name, self.program, sizes, self.index, inputs, g, needed)

    def second(self, g, *inputs_and_v):
        *inputs, v = inputs_and_v
        sizes, _ = self.shapes(*inputs)
        return second(self.name, self.program, sizes, self.index, inputs, g, v)
