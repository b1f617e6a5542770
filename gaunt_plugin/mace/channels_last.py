"""What MACE's blocks need where the channels of features come last."""

from __future__ import annotations

from typing import List

import torch
from e3nn import o3
from e3nn.util.jit import compile_mode

from gaunt_plugin.layers.irreps import mix_channels


@compile_mode("script")
class LayoutLinear(torch.nn.Module):
    r"""A linear layer between irreps of any multiplicities, for either order of their numbers.

    .. math:: y_{n l m v} = \frac{1}{\sqrt{U_l}} \sum_u W_{l, uv}\, x_{n l m u}

    Each irrep's numbers lie as ``[channels, components]``, e3nn's order, or, where channels come
    last, as ``[components, channels]``: then the layer is one product of matrices per irrep. Irreps
    of the result that the input lacks are zero.

    Args:
        irreps_in: adjacent equal irreps are one.
        irreps_out: each irrep once.
        last_in, last_out: whether channels come last before and after the layer.

    Shapes:
        ``[nodes, irreps_in.dim] -> [nodes, irreps_out.dim]``.

    State dict:
        ``weight``, with the layout, scale and random numbers of ``o3.Linear``.

    Raises:
        ValueError: an irrep in two places.
    """

    def __init__(
        self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, last_in: bool, last_out: bool
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = (
            o3.Irreps(irreps).simplify() for irreps in (irreps_in, irreps_out)
        )
        for irreps in (self.irreps_in, self.irreps_out):
            if len({ir for _, ir in irreps}) != len(irreps):
                raise ValueError(f"each irrep must be in one place, got {irreps}")
        self.last_in, self.last_out = last_in, last_out
        places = {ir: k for k, (_, ir) in enumerate(self.irreps_in)}
        starts, begin = [], 0
        for mul, ir in self.irreps_in:
            starts.append(begin)
            begin += mul * sum(m for m, other in self.irreps_out if other == ir)
        # Per irrep of the result: its part of the input, components, channels, weights.
        self.paths: List[List[int]] = []
        for mul, ir in self.irreps_out:
            k = places.get(ir, -1)
            mul_in, start = (self.irreps_in[k].mul, starts[k]) if k >= 0 else (0, 0)
            self.paths.append([k, ir.dim, mul_in, mul, start])
        self.widths: List[int] = [mul * ir.dim for mul, ir in self.irreps_in]
        self.weight = torch.nn.Parameter(torch.randn(begin))

    def matrices(self) -> List[torch.Tensor]:
        """Of each irrep of the result, ``[channels, channels]``."""
        found: List[torch.Tensor] = []
        for _, _, mul_in, mul_out, start in self.paths:
            weight = self.weight[start : start + mul_in * mul_out].view(mul_in, mul_out)
            found.append(weight / max(mul_in, 1) ** 0.5)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x, self.matrices())

    def mix(self, x: torch.Tensor, matrices: List[torch.Tensor]) -> torch.Tensor:
        """The layer with :meth:`matrices`, which don't change once a model is trained."""
        sources = [path[0] for path in self.paths]
        dims = [path[1] for path in self.paths]
        return mix_channels(x, matrices, sources, dims, self.widths, self.last_in, self.last_out)


class FixedLinear(torch.nn.Module):
    """A :class:`LayoutLinear` that isn't trained any more.

    Args:
        linear: the layer; both share nothing.
    """

    def __init__(self, linear: LayoutLinear) -> None:
        super().__init__()
        self.linear = linear
        matrices = [torch.nn.Parameter(m.detach(), False) for m in linear.matrices()]
        self.matrices = torch.nn.ParameterList(matrices)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrices: List[torch.Tensor] = []
        for matrix in self.matrices:
            matrices.append(matrix)
        return self.linear.mix(x, matrices)


class ChannelsFirst(torch.nn.Module):
    """In place of MACE's reshaping of messages whose channels come last.

    Shapes:
        ``[nodes, components * channels] -> [nodes, channels, components]``.
    """

    def __init__(self, components: int, channels: int) -> None:
        super().__init__()
        self.components, self.channels = components, channels

    def forward(self, messages: torch.Tensor) -> torch.Tensor:
        return messages.view(-1, self.components, self.channels).transpose(1, 2)
