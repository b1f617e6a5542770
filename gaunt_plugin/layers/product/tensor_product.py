"""Bilinear product of features: e3nn's tensor product on the sphere."""

from __future__ import annotations

from typing import Optional

import torch

from gaunt_plugin.layers.irreps import Irreps, functions_of, reachable_paths
from gaunt_plugin.layers.layer import Layer
from gaunt_plugin.layers.product.mixing import ChannelMixing, ChannelWeights
from gaunt_plugin.layers.product.sphere_product import SphereProduct

MODES = ("uvw", "uuu")
NORMALIZATIONS = ("component", "norm")


class GauntTensorProduct(Layer):
    r"""Product of two features with factorised weights, for any irreps of O(3).

    A channel's irreps of natural parity ``(-1)^l`` are one function on the sphere, those of pseudo
    parity ``-(-1)^l`` another. Weighted copies are multiplied on an exact grid, each
    Clebsch-Gordan path ``l1 x l2 -> l3`` with ``l1 + l2 + l3`` even by the pointwise product, and
    with ``l1 + l2 + l3`` odd by ``s . (grad A x grad B)``:

    .. math:: C_{w l_3} = \frac{1}{\sqrt{R}} \sum_{r} w^{(3)}_{r w l_3}\, P_{l_3}\Big[
       \sum_{l_1} A_{r l_1},\; \sum_{l_2} B_{r l_2} \Big]

    ``"uvw"``: ``A_rl = sum_u w1_url x_ul / sqrt(U_l)``, every channel of x meets every channel of
    y; multiplicities are free. ``"uuu"``: channel by channel, with R weighted copies of each,
    ``A_rcl = w1_rcl x_cl``; both inputs and the output have one multiplicity.

    A path's weight is thus ``sum_r w1 w2 w3`` where e3nn has one free number. With
    ``antisymmetric``, every path that O(3) allows is reached (:func:`reachable_paths`). For unit
    normal inputs and weights, outputs have unit variance.

    Args:
        irreps_in1, irreps_in2, irreps_out: as in e3nn; ``"uuu"``: one multiplicity, each irrep
            once.
        mode: ``"uvw"`` or ``"uuu"``.
        rank: R; by default the largest multiplicity (``"uvw"``) or 1 (``"uuu"``).
        antisymmetric: whether paths with ``l1 + l2 + l3`` odd are reached where parities allow
            them; they need gradients on the grid.
        irrep_normalization: ``"component"``: components of inputs and outputs have variance 1;
            ``"norm"``: irreps have mean squared norm 1.
        shared_weights: the same weights for all rows (default), or one row of weights per row.
        internal_weights: weights are parameters (default where they are shared).

    Attributes:
        weight_numel: number of weights: those of the first input, the second, the output.
            ``"uvw"``: per irrep (natural parity first, in increasing degree) and entry of the
            irreps ``[channel, rank]``, for the output ``[rank, channel]``; ``"uuu"``:
            ``[rank, channel, irrep]``. Irreps that couple to nothing have no weights.
        paths: the paths that are reached.

    Shapes:
        ``x [..., irreps_in1.dim]``, ``y [..., irreps_in2.dim]`` and ``weight [weight_numel]``, or
        ``[..., weight_numel]`` where weights are not shared -> ``[..., irreps_out.dim]``. Leading
        axes are broadcast.

    Raises:
        ValueError: options or shapes that don't fit, or an irrep of the output that no path
            reaches.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216; antisymmetric part: Xie et al.,
    arXiv 2602.21466; Heyraud et al., arXiv 2603.08630; Bochkarev et al., arXiv 2605.15073.
    """

    def __init__(
        self,
        irreps_in1: Irreps | str,
        irreps_in2: Irreps | str,
        irreps_out: Irreps | str,
        mode: str = "uvw",
        rank: Optional[int] = None,
        antisymmetric: bool = True,
        irrep_normalization: str = "component",
        shared_weights: Optional[bool] = None,
        internal_weights: Optional[bool] = None,
    ) -> None:
        super().__init__()
        self.irreps_in1 = Irreps(irreps_in1)
        self.irreps_in2 = Irreps(irreps_in2)
        self.irreps_out = Irreps(irreps_out)
        sides = (self.irreps_in1, self.irreps_in2, self.irreps_out)
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; possible: {', '.join(MODES)}")
        if irrep_normalization not in NORMALIZATIONS:
            raise ValueError(
                f"unknown irrep_normalization {irrep_normalization!r}; "
                f"possible: {', '.join(NORMALIZATIONS)}"
            )
        if shared_weights is None:
            shared_weights = True
        if internal_weights is None:
            internal_weights = shared_weights
        if internal_weights and not shared_weights:
            raise ValueError("internal weights are shared: shared_weights=False needs external")
        if mode == "uuu":
            multiplicities = {functions_of(irreps, "irreps")[0] for irreps in sides}
            if len(multiplicities) != 1:
                raise ValueError(
                    "mode 'uuu' needs the same multiplicity everywhere, got "
                    f"{self.irreps_in1}, {self.irreps_in2} and {self.irreps_out}"
                )
        if rank is None:
            rank = max((mul for irreps in sides for mul, _ in irreps), default=1)
            rank = rank if mode == "uvw" else 1
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank!r}")
        self.paths = reachable_paths(*sides, antisymmetric)
        reached = {path.irreps[2] for path in self.paths}
        missing = [ir for mul, ir in self.irreps_out if mul > 0 and ir not in reached]
        if missing or not reached:
            raise ValueError(
                f"no {'' if antisymmetric else 'symmetric '}product of {self.irreps_in1} and "
                f"{self.irreps_in2} reaches {missing[0] if missing else 'anything'} in irreps_out "
                f"{self.irreps_out}"
            )
        self.mode, self.rank = mode, rank
        self.shared_weights, self.internal_weights = shared_weights, internal_weights
        self.dim1, self.dim2, self.dim3 = (irreps.dim for irreps in sides)
        self.product = SphereProduct(self.paths)
        mixing = ChannelMixing if mode == "uvw" else ChannelWeights
        norm = irrep_normalization == "norm"
        self.mix1 = mixing(self.irreps_in1, self.product.irreps1, rank, shared_weights, norm)
        self.mix2 = mixing(self.irreps_in2, self.product.irreps2, rank, shared_weights, norm)
        self.mix3 = mixing(self.irreps_out, self.product.irreps3, rank, shared_weights, norm)
        self.numels = [self.mix1.weight_numel, self.mix2.weight_numel, self.mix3.weight_numel]
        self.weight_numel = sum(self.numels)
        if internal_weights:
            self.weight = torch.nn.Parameter(torch.randn(self.weight_numel))
        else:
            self.register_parameter("weight", None)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, weight: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        if weight is None:
            weight = self.weight
        if weight is None:
            raise ValueError("weights are external (internal_weights=False): pass weight")
        self._check(x, y, weight)
        leading = torch.broadcast_tensors(x[..., 0], y[..., 0])[0]
        if not self.shared_weights:
            leading = torch.broadcast_tensors(leading, weight[..., 0])[0]
            weight = weight.expand(leading.shape + (self.weight_numel,))
            weight = weight.reshape(-1, self.weight_numel)
        x = x.expand(leading.shape + (self.dim1,)).reshape(-1, self.dim1)
        y = y.expand(leading.shape + (self.dim2,)).reshape(-1, self.dim2)
        w1, w2, w3 = weight.split(self.numels, dim=-1)
        a, b = self.mix1(x, w1), self.mix2(y, w2)
        c = self.product(a.flatten(0, 1), b.flatten(0, 1))
        out = self.mix3.back(c.view(a.shape[0], a.shape[1], c.shape[1]), w3)
        return out.view(leading.shape + (self.dim3,))

    def _check(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> None:
        if x.dim() < 1 or x.shape[-1] != self.dim1:
            raise ValueError(f"x must be [..., {self.dim1}], got {list(x.shape)}")
        if y.dim() < 1 or y.shape[-1] != self.dim2:
            raise ValueError(f"y must be [..., {self.dim2}], got {list(y.shape)}")
        given = [x, y] if self.shared_weights else [x, y, weight]
        for i, first in enumerate(given):
            for second in given[i + 1 :]:
                for axis in range(2, min(first.dim(), second.dim()) + 1):
                    m, n = first.shape[-axis], second.shape[-axis]
                    if m != n and m != 1 and n != 1:
                        raise ValueError(
                            "leading axes of x, y and weight must be broadcastable, got "
                            f"{list(first.shape)} and {list(second.shape)}"
                        )
        axes = "" if self.shared_weights else "..., "
        if (
            weight.dim() < 1
            or weight.shape[-1] != self.weight_numel
            or (self.shared_weights and weight.dim() != 1)
        ):
            raise ValueError(
                f"weight must be [{axes}{self.weight_numel}], got {list(weight.shape)}"
            )
        if x.dtype != y.dtype or x.dtype != weight.dtype:
            raise ValueError(
                f"x, y and weight must be of one dtype, got {x.dtype}, {y.dtype} and {weight.dtype}"
            )
        if x.device != y.device or x.device != weight.device:
            raise ValueError(
                f"x, y and weight must be on one device, got {x.device}, {y.device} and "
                f"{weight.device}"
            )

    def extra_repr(self) -> str:
        odd = sum(path.antisymmetric for path in self.paths)
        return (
            f"{self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out}, mode={self.mode}, "
            f"rank={self.rank}, paths={len(self.paths)} ({odd} antisymmetric), "
            f"weights={self.weight_numel}"
        )
