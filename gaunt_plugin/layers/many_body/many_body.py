"""Many-body (symmetric contraction) product on the sphere."""

from __future__ import annotations

from typing import ClassVar, List

import numpy as np
import torch

from gaunt_plugin.layers.irreps import (
    Irreps,
    check_channels,
    degrees_of,
    flat_first,
    functions_of,
)
from gaunt_plugin.layers.layer import Layer
from gaunt_plugin.layers.many_body.full import Full
from gaunt_plugin.layers.many_body.nested import Nested
from gaunt_plugin.layers.many_body.power import Paper, Power
from gaunt_plugin.layers.many_body.weights import element_weights
from gaunt_plugin.ops.tables import TableModule

PARAMETRIZATIONS = {"power": Power, "paper": Paper, "full": Full, "nested": Nested}
MAX_CORRELATION = 8


def check_options(
    parametrization: str,
    correlation: int,
    rank: int = 4,
    antisymmetric: bool = False,
    rank_name: str = "rank",
) -> None:
    """Raise ValueError unless :class:`GauntManyBody` has these options.

    ``rank_name``: what the caller calls the rank.
    """
    if not isinstance(parametrization, str) or parametrization not in PARAMETRIZATIONS:
        raise ValueError(
            f"unknown parametrization {parametrization!r}; possible: {', '.join(PARAMETRIZATIONS)}"
        )
    if type(correlation) is not int or not 1 <= correlation <= MAX_CORRELATION:
        raise ValueError(f"correlation must be 1 to {MAX_CORRELATION}, got {correlation!r}")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"{rank_name} must be a whole number, at least 1, got {rank!r}")
    if type(antisymmetric) is not bool:
        raise ValueError(f"antisymmetric must be true or false, got {antisymmetric!r}")
    PARAMETRIZATIONS[parametrization].check(correlation, antisymmetric)


class GauntManyBody(Layer):
    r"""Many-body product: powers of functions on the sphere instead of coupled tensors.

    A channel's input is a function ``A(s) = sum_lm A_lm Y_lm(s)``. Per element z and channel c,

    ``power`` (default), with R = ``rank`` differently weighted copies of A:

    .. math:: F_r(s) = \sum_{lm} \frac{u_{zrcl}}{\sqrt{2l+1}}\, A_{lm} Y_{lm}(s), \qquad
       B_{LM} = w_{zcL} A_{LM} + \sum_{\nu=2}^{N} \frac{t_{\nu L}}{\sqrt{R}} \sum_r
       w_{z \nu r c L}\, \langle F_r(s)^\nu\, Y_{LM}(s) \rangle

    ``paper`` (Luo et al.): the same with one copy and ``u = 1``.

    ``full``: free weights on a basis of products ``P_L[P_k[A_l1 A_l2] A_l3]`` that spans every
    coupling of MACE's symmetric contraction (correlation <= 3). With pseudo parity, in the input or
    the output, some of its products are brackets.

    ``nested``: ``power`` and, at half of the variance each, products with a weighted projection
    after each factor (:class:`~gaunt_plugin.layers.NestedTerms`), ``rank`` of both. With
    ``antisymmetric`` these hold the bracket ``s . (grad A x grad B)`` of different copies, and
    pseudo outputs are reached from natural inputs.

    With pseudo parity ``-(-1)^l`` (``0o``, ``1e``, ...) a channel has a second function P(s). The
    power terms f are those of ``U = A + P`` and ``V = A - P``, with the same weights:

    .. math:: B^{natural} = \frac{f(U) + f(V)}{2}, \qquad B^{pseudo} = \frac{f(U) - f(V)}{2}

    which are the products of A and P with an even and an odd number of P (twice the cost).

    ``<.>`` is the average over the sphere; ``t`` gives each order the root mean square that it has
    in MACE's contraction at initialisation (:func:`gaunt_plugin.sphere.coupling_rms`). Harmonics
    are component-normalised, in e3nn's order; every integral is exact.

    Args:
        irreps_in: one multiplicity for all irreps, e.g. ``"16x0e+16x1o"``; of natural parity in
            increasing degree, or of both parities, each irrep once.
        irreps_out: same multiplicity.
        correlation: number of factors N, 1 to 8 (``full``: 1 to 3).
        num_elements: size of the one-hot ``node_attrs``.
        parametrization: ``"power"``, ``"paper"``, ``"full"`` or ``"nested"``.
        rank: R of ``power`` and ``nested``.
        antisymmetric: whether ``nested`` has the couplings with ``l1 + l2 + l3`` odd.

    Shapes:
        ``x [nodes, channels, sum(2l+1)]``, ``node_attrs [nodes, elements]`` ->
        ``[nodes, channels * sum(2L+1)]``, e3nn's flat layout of ``irreps_out``.

    Raises:
        ValueError: irreps or options outside of the above.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216; MACE's contraction: Batatia et
    al., NeurIPS 2022, arXiv 2206.07697.
    """

    # Whether the product makes the term of order one, too.
    joint = False
    __constants__: ClassVar[List[str]] = ["joint"]

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_out: Irreps | str,
        correlation: int,
        num_elements: int,
        parametrization: str = "power",
        rank: int = 4,
        antisymmetric: bool = False,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_out = Irreps(irreps_out)
        channels, functions_in = functions_of(irreps_in, "irreps_in")
        channels_out, functions_out = functions_of(irreps_out, "irreps_out")
        if not any(pseudo for _, pseudo in functions_in + functions_out):
            # the order of degrees is part of saved weights
            degrees_of(irreps_in, "irreps_in")
            degrees_of(irreps_out, "irreps_out")
        check_channels(irreps_in, channels, irreps_out, channels_out)
        check_options(parametrization, correlation, rank, antisymmetric)
        if type(num_elements) is not int or num_elements < 1:
            raise ValueError(
                f"num_elements must be a whole number, at least 1, got {num_elements!r}"
            )
        cls = PARAMETRIZATIONS[parametrization]
        reached = cls.outputs(functions_in, functions_out, correlation, antisymmetric)
        for L, pseudo in functions_out:
            if (L, pseudo) not in functions_in and (L, pseudo) not in reached:
                raise ValueError(
                    f"no product of up to {correlation} factors of {self.irreps_in} reaches "
                    f"{'pseudo ' if pseudo else ''}degree {L} in irreps_out {self.irreps_out}"
                )
        self.channels = channels
        self.num_elements = num_elements
        self.parametrization, self.antisymmetric = parametrization, antisymmetric
        # MACE reads this when it extracts a model's configuration.
        self.contraction_degree = correlation
        self.dims_in = sum(2 * l + 1 for l, _ in functions_in)
        self.dims_out = [2 * L + 1 for L, _ in functions_out]
        self.linear, self.product = None, None
        if set(functions_in) & set(functions_out):
            self.linear = LinearTerm(functions_in, functions_out, channels, num_elements)
        if reached:
            self.product = cls(
                functions_in,
                functions_out,
                channels,
                num_elements,
                correlation,
                rank,
                antisymmetric,
            )
        self.joint = isinstance(self.product, Full)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if isinstance(self.product, Full) and not self.joint:  # a file of version 0.2.0
            functions = [functions_of(i, "")[1] for i in (self.irreps_in, self.irreps_out)]
            self.product.complete(*functions, self.channels, self.contraction_degree)
            self.joint = True

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        if x.dim() != 3 or x.shape[1] != self.channels or x.shape[2] != self.dims_in:
            raise ValueError(
                f"x must be [nodes, {self.channels}, {self.dims_in}], got {list(x.shape)}"
            )
        if node_attrs.dim() != 2 or list(node_attrs.shape) != [x.shape[0], self.num_elements]:
            raise ValueError(
                f"node_attrs must be one-hot [{x.shape[0]}, {self.num_elements}], "
                f"got {list(node_attrs.shape)}"
            )
        if x.dtype != node_attrs.dtype:
            raise ValueError(
                f"x and node_attrs must be of one dtype, got {x.dtype} and {node_attrs.dtype}"
            )
        if self.joint:
            linear = None if self.linear is None else self.linear.weight
            out = self.product(x, node_attrs, linear)
        else:
            out = torch.zeros(
                [x.shape[0], self.channels, sum(self.dims_out)], dtype=x.dtype, device=x.device
            )
            if self.linear is not None:
                out = out + self.linear(x, node_attrs)
            if self.product is not None:
                out = out + self.product(x, node_attrs)
        return flat_first(out, self.dims_out)

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} -> {self.irreps_out}, correlation={self.contraction_degree}, "
            f"parametrization={self.parametrization}, "
            f"{'antisymmetric, ' if self.antisymmetric else ''}elements={self.num_elements}"
        )


class LinearTerm(TableModule):
    """``w_zcL A_LM``, the term of order one."""

    def __init__(self, functions_in, functions_out, channels, num_elements) -> None:
        super().__init__()
        common = [function for function in functions_in if function in functions_out]
        where_in, where_out = (
            [function for function in functions for _ in range(2 * function[0] + 1)]
            for functions in (functions_in, functions_out)
        )
        pick = np.zeros((len(where_in), len(where_out)))
        repeat = np.zeros((len(common), len(where_out)))
        for i, function in enumerate(common):
            rows, columns = (
                [k for k, other in enumerate(where) if other == function]
                for where in (where_in, where_out)
            )
            pick[rows, columns] = 1.0
            repeat[i, columns] = 1.0
        self.channels = channels
        # Whether outputs are the first components of the input.
        self.leading = np.array_equal(pick, np.eye(len(pick))[:, : pick.shape[1]])
        self.register_table("pick", pick)
        self.register_table("repeat", repeat)
        self.weight = element_weights(num_elements, channels, len(common))

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        # xcl,lj->xcj, zx,xcj->zcj: long thin products of matrices, as x @ pick, are slow
        of_element = self.weight.reshape(-1, self.repeat.shape[0]) @ self.repeat
        weight = node_attrs @ of_element.view(self.weight.shape[0], -1)
        picked = x[:, :, : self.pick.shape[1]] if self.leading else x @ self.pick  # zci,ij->zcj
        return picked * weight.view(x.shape[0], self.channels, self.pick.shape[1])
