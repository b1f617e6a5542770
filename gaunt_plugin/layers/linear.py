"""Linear layers between irreps, for either order of an irrep's numbers."""

from __future__ import annotations

from typing import List

import torch
from e3nn.util.jit import compile_mode

from gaunt_plugin.layers.irreps import E3nnLinear, Irreps, sum_of


class LayoutMixing(torch.nn.Module):
    r"""What an e3nn ``Linear`` computes, for either order of an irrep's numbers.

    .. math:: y_{n l m v} = \sum_p c_p \sum_u W_{p, uv}\, x_{n l_p m u}

    over the paths p to an irrep of the result, with e3nn's scales c; an irrep without any is zero.
    Each irrep's numbers lie as ``[channels, components]``, e3nn's order, or, where channels come
    last, as ``[components, channels]``. A path is one product of matrices, where e3nn has one per
    node.

    Args:
        linear: the layer; nothing of it is kept.
        last_in, last_out: whether channels come last before and after the layer.

    Shapes:
        ``x [nodes, irreps_in.dim]`` and the layer's weight -> ``[nodes, irreps_out.dim]``.

    Raises:
        ValueError: a layer with a bias.
    """

    def __init__(self, linear: E3nnLinear, last_in: bool = False, last_out: bool = False) -> None:
        super().__init__()
        if linear.bias.numel() > 0:
            raise ValueError(f"{linear} has a bias")
        self.last_in, self.last_out = last_in, last_out
        self.widths: List[int] = [mul * ir.dim for mul, ir in linear.irreps_in]
        self.muls: List[int] = [mul for mul, _ in linear.irreps_out]
        self.dims: List[int] = [ir.dim for _, ir in linear.irreps_out]
        # Per path: irreps before and after it, channels before and after it.
        self.paths: List[List[int]] = [
            [p.i_in, p.i_out, *p.path_shape] for p in linear.instructions
        ]
        self.scales: List[float] = [float(p.path_weight) for p in linear.instructions]
        self.numels: List[int] = [path[2] * path[3] for path in self.paths]

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.mix(x, self.matrices(weight))

    def matrices(self, weight: torch.Tensor) -> List[torch.Tensor]:
        """Per path ``[channels, channels]``."""
        # One split: the backward pass of each slice would fill a tensor like the weight.
        found: List[torch.Tensor] = []
        for part, scale, path in zip(weight.split(self.numels), self.scales, self.paths):
            found.append(scale * part.view(path[2], path[3]))
        return found

    def mix(self, x: torch.Tensor, matrices: List[torch.Tensor]) -> torch.Tensor:
        """The layer with :meth:`matrices`, which don't change once a model is trained."""
        blocks = x.split(self.widths, dim=1)
        parts: List[torch.Tensor] = []
        for k, (mul, dim) in enumerate(zip(self.muls, self.dims)):
            products: List[torch.Tensor] = []
            for path, matrix in zip(self.paths, matrices):
                if path[1] == k and path[2] * path[3] > 0:
                    part = blocks[path[0]]
                    if dim > 1 and not self.last_in:
                        part = part.reshape(-1, path[2], dim).transpose(1, 2)
                    if dim > 1:
                        part = part.reshape(-1, path[2])
                    products.append(part @ matrix)  # nmu,uv->nmv
            if len(products) == 0:
                parts.append(x.new_zeros([x.shape[0], dim * mul]))
                continue
            out = sum_of(products)
            if dim > 1:
                out = out.view(-1, dim, mul)
                out = (out if self.last_out else out.transpose(1, 2)).flatten(1)
            parts.append(out)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


@compile_mode("script")
class Linear(E3nnLinear):
    """e3nn's ``Linear`` with half of its operations; all else is the same, state dict included.

    Arguments: see there; without a bias.

    Shapes:
        ``[nodes, irreps_in.dim] -> [nodes, irreps_out.dim]``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.mixing = LayoutMixing(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixing(x, self.weight)


@compile_mode("script")
class LayoutLinear(torch.nn.Module):
    """A linear layer where the channels of its features come last, before it, after it or both.

    Args:
        irreps_in: features; adjacent equal irreps are one.
        irreps_out: new features; irreps that ``irreps_in`` lacks are zero.
        last_in, last_out: whether channels come last before and after the layer.

    Shapes:
        ``[nodes, irreps_in.dim] -> [nodes, irreps_out.dim]``.

    State dict:
        ``weight``, with the layout, scale and random numbers of e3nn's ``Linear``. It isn't one:
        MACE takes these apart for LoRA, in e3nn's order.
    """

    def __init__(
        self, irreps_in: Irreps | str, irreps_out: Irreps | str, last_in: bool, last_out: bool
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = (
            Irreps(irreps).simplify() for irreps in (irreps_in, irreps_out)
        )
        linear = E3nnLinear(self.irreps_in, self.irreps_out)
        self.mixing = LayoutMixing(linear, last_in, last_out)
        self.weight = linear.weight

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if "last_in" in state:  # of the first models with such layers, which did it themselves
            linear = E3nnLinear(self.irreps_in, self.irreps_out)
            self.mixing = LayoutMixing(linear, state["last_in"], state["last_out"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixing(x, self.weight)
