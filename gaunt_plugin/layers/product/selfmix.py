"""Equivariant feature interaction: a feature multiplied with itself."""

from __future__ import annotations

import math
from typing import List

import torch

from gaunt_plugin.layers.irreps import (
    Irreps,
    channels_last,
    flat,
    functions_of,
    paths_with_itself,
)
from gaunt_plugin.layers.layer import Layer
from gaunt_plugin.layers.product.mixing import ChannelWeights
from gaunt_plugin.layers.product.sphere_product import SphereProduct


class GauntSelfmix(Layer):
    r"""Lets the degrees of a feature interact: the feature plus its product with itself.

    Per channel c, with R pairs of weighted copies (the paper's ``w_l1 w_l2 w_l``, R times),

    .. math:: y_{l c} = \frac{1}{\sqrt 2} \Big( k_{lc}\, x_{lc} + \frac{1}{\sqrt{R}} \sum_r
       w_{rcl}\, P_l\Big[\sum_{l_1} u_{rcl_1} x_{l_1 c},\; \sum_{l_2} v_{rcl_2} x_{l_2 c}\Big]
       \Big)

    where ``[ , ]`` is the product of :class:`~gaunt_plugin.layers.GauntTensorProduct`: pointwise
    on the sphere, and with ``s . (grad A x grad B)`` where both parities are there. ``k`` starts at
    one, the other weights are unit normal; for unit normal x, y has unit variance.

    Args:
        irreps: one multiplicity, each irrep once. For an embedding of degrees 0 to lmax:
            ``"64x0e+64x1o+..."``, natural parity ``(-1)^l``.
        rank: R.
        antisymmetric: whether the couplings with ``l1 + l2 + l`` odd are made, where parities
            allow them.

    Shapes:
        ``x [nodes, irreps.dim]``, e3nn's flat layout, or ``[nodes, sum(2l+1), channels]``, for
        lmax ``[nodes, (lmax+1)^2, channels]`` -> the same shape.

    Raises:
        ValueError: irreps or shapes that don't fit.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216, equivariant feature interaction
    (there in EquiformerV2); Unke et al., NeurIPS 2021, arXiv 2106.02347.
    """

    def __init__(
        self,
        irreps: Irreps | str,
        rank: int = 1,
        antisymmetric: bool = True,
    ) -> None:
        super().__init__()
        self.irreps_in = self.irreps_out = Irreps(irreps)
        self.channels, functions = functions_of(irreps, "irreps")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank!r}")
        self.rank = rank
        self.dims: List[int] = [2 * l + 1 for l, _ in functions]
        self.dim = sum(self.dims)
        self.paths = paths_with_itself(irreps, irreps, antisymmetric)
        if not self.paths:
            raise ValueError(f"no product of {self.irreps_in} with itself reaches any of its parts")
        self.product = SphereProduct(self.paths, same=True)
        used = (self.product.irreps1, self.product.irreps2, self.product.irreps3)
        self.mix1, self.mix2, self.mix3 = (
            ChannelWeights(self.irreps_in, irs, rank, shared=True, norm=False) for irs in used
        )
        self.numels = [self.mix1.weight_numel, self.mix2.weight_numel, self.mix3.weight_numel]
        # Where outputs that no product reaches are left out by mix3.
        reached = [ir in self.product.irreps3 for _, ir in self.irreps_in]
        self.sizes: List[int] = [
            self.channels * dim if ok else 0 for dim, ok in zip(self.dims, reached)
        ]
        self.weight = torch.nn.Parameter(torch.randn(sum(self.numels)))
        self.weight_self = torch.nn.Parameter(torch.ones(self.channels, len(functions)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2 and x.shape[1] == self.channels * self.dim:
            return self._flat(x)
        if x.dim() == 3 and x.shape[1] == self.dim and x.shape[2] == self.channels:
            return channels_last(self._flat(flat(x, self.dims)), self.channels, self.dims)
        raise ValueError(
            f"x must be [nodes, {self.channels * self.dim}] or [nodes, {self.dim}, "
            f"{self.channels}], got {list(x.shape)}"
        )

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self.weight.dtype:
            raise ValueError(f"x must be of the layer's dtype, {self.weight.dtype}, got {x.dtype}")
        w1, w2, w3 = self.weight.split(self.numels)
        a, b = self.mix1(x, w1), self.mix2(x, w2)
        c = self.product(a.flatten(0, 1), b.flatten(0, 1))
        mixed = self.mix3.back(c.view(a.shape[0], a.shape[1], c.shape[1]), w3)
        parts: List[torch.Tensor] = []
        start, reached = 0, 0
        for i, (dim, size) in enumerate(zip(self.dims, self.sizes)):
            stop = start + self.channels * dim
            # nck,c->nck
            part = x[:, start:stop].view(-1, self.channels, dim) * self.weight_self[:, i, None]
            start = stop
            part = part.flatten(1)
            if size > 0:
                part = (part + mixed[:, reached : reached + size]) * math.sqrt(0.5)
            reached += size
            parts.append(part)
        return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        odd = sum(path.antisymmetric for path in self.paths)
        return f"{self.irreps_in}, rank={self.rank}, paths={len(self.paths)} ({odd} antisymmetric)"
