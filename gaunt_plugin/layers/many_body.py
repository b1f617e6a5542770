"""Many-body (symmetric contraction) product on the sphere."""

from __future__ import annotations

import functools
import math
from typing import List, Optional

import numpy as np
import torch

from gaunt_plugin.kernels.fused import fused
from gaunt_plugin.kernels.powers import PowersKernel
from gaunt_plugin.layers._edges import flat_first
from gaunt_plugin.layers._fourier_powers import FourierPowers
from gaunt_plugin.layers._grid_powers import GridPowers
from gaunt_plugin.layers._irreps import Irreps, check_channels, degrees_of, functions_of
from gaunt_plugin.layers._method import choose_method, method_repr
from gaunt_plugin.layers._tables import (
    GAIN_IN,
    GAIN_OUT,
    TableModule,
    element_weights,
    repeat_matrix,
)
from gaunt_plugin.layers._tracing import calls_kernel, has_kernel
from gaunt_plugin.layers.chains import Chains, chain_outputs, irrep_of
from gaunt_plugin.layers.nested import NestedProducts
from gaunt_plugin.layers.parity_powers import FourierParityPowers, ParityPowers, parity_power_rms
from gaunt_plugin.sphere import (
    coupling_count,
    coupling_rms,
    nested_terms,
    power_rms,
    quadrature,
    real_harmonics,
)

PARAMETRIZATIONS = ("power", "paper", "full", "nested")
MAX_CORRELATION = 8


class GauntManyBody(torch.nn.Module):
    r"""Many-body product: powers of functions on the sphere instead of coupled tensors.

    A channel's input is a function ``A(s) = sum_lm A_lm Y_lm(s)``. Per element z and channel c,

    ``power`` (default), with V = ``views`` differently weighted copies of A:

    .. math:: F_v(s) = \sum_{lm} \frac{u_{zvcl}}{\sqrt{2l+1}}\, A_{lm} Y_{lm}(s), \qquad
       B_{LM} = w_{zcL} A_{LM} + \sum_{\nu=2}^{N} \frac{t_{\nu L}}{\sqrt{V}} \sum_v
       w_{z \nu v c L}\, \langle F_v(s)^\nu\, Y_{LM}(s) \rangle

    ``paper`` (Luo et al.): the same with one copy and ``u = 1``.

    ``full``: free weights on a basis of nested products ``P_L[P_k[A_l1 A_l2] A_l3]`` that spans
    every coupling of MACE's symmetric contraction (correlation <= 3).

    ``nested``: ``power`` and, at half of the variance each, chains of products with a weighted
    projection after each factor (:class:`~gaunt_plugin.layers.chains.Chains`), ``views`` of both.
    With ``antisymmetric`` a chain's products hold the bracket ``s . (grad A x grad B)`` of
    different copies, and pseudo outputs are reached from natural inputs.

    With pseudo parity ``-(-1)^l`` (``0o``, ``1e``, ...) a channel has a second function P(s). The
    power terms f are those of ``U = A + P`` and ``V = A - P``, with the same weights:

    .. math:: B^{natural} = \frac{f(U) + f(V)}{2}, \qquad B^{pseudo} = \frac{f(U) - f(V)}{2}

    which are the products of A and P with an even and an odd number of P (not in ``full``; twice
    the cost).

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
        views: number of copies in ``power``, and of copies and of chains in ``nested``.
        antisymmetric: whether ``nested`` makes the couplings with ``l1 + l2 + l3`` odd.
        method: ``"grid"``, quadrature; ``"fourier"``, the paper's 2D Fourier series and FFT, powers
            by divide and conquer; ``"auto"``: the faster one by count. The same numbers and the
            same weights; ``full`` needs neither.

    Shapes:
        ``x [nodes, channels, sum(2l+1)]``, ``node_attrs [nodes, elements]`` ->
        ``[nodes, channels * sum(2L+1)]``, e3nn's flat layout of ``irreps_out``.

    Raises:
        ValueError: irreps or options outside of the above.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216; MACE's contraction: Batatia et
    al., NeurIPS 2022, arXiv 2206.07697.
    """

    # as in models pickled by release 0.1
    antisymmetric = False
    method = method_used = "grid"

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_out: Irreps | str,
        correlation: int,
        num_elements: int,
        parametrization: str = "power",
        views: int = 4,
        antisymmetric: bool = False,
        method: str = "auto",
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_out = Irreps(irreps_out)
        channels, functions_in = functions_of(irreps_in, "irreps_in")
        channels_out, functions_out = functions_of(irreps_out, "irreps_out")
        parities = any(pseudo for _, pseudo in functions_in + functions_out)
        if not parities:  # the order of degrees is part of saved weights
            degrees_of(irreps_in, "irreps_in")
            degrees_of(irreps_out, "irreps_out")
        check_channels(irreps_in, channels, irreps_out, channels_out)
        if type(correlation) is not int or not 1 <= correlation <= MAX_CORRELATION:
            raise ValueError(f"correlation must be 1 to {MAX_CORRELATION}, got {correlation!r}")
        for name, value in (("num_elements", num_elements), ("views", views)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(
                f"unknown parametrization {parametrization!r}; "
                f"possible: {', '.join(PARAMETRIZATIONS)}"
            )
        if parities and parametrization == "full":
            raise ValueError(
                "parametrization 'full' takes natural parity (0e, 1o, 2e, ...) only, got "
                f"{self.irreps_in} -> {self.irreps_out}; use 'power'"
            )
        if antisymmetric and parametrization != "nested":
            raise ValueError(
                f"parametrization {parametrization!r} has no antisymmetric products; use 'nested'"
            )
        degrees_in, degrees_out = (
            tuple(l for l, _ in functions) for functions in (functions_in, functions_out)
        )
        nested = parametrization == "nested"
        random_weights = nested or parametrization == "power"
        orders = range(2, correlation + 1)
        chained = []
        if nested:
            chained = chain_outputs(functions_in, functions_out, correlation, antisymmetric)
        for L, pseudo in functions_out:
            if any(irrep_of(L, pseudo) in irs for irs in chained):
                reached = True
            elif parities:
                reached = (L, pseudo) in functions_in or any(
                    parity_power_rms(functions_in, n, L, pseudo, random_weights) for n in orders
                )
            else:
                reached = any(coupling_count(degrees_in, n, L) for n in range(1, correlation + 1))
            if not reached:
                raise ValueError(
                    f"no product of up to {correlation} factors of {self.irreps_in} reaches "
                    f"{'pseudo ' if pseudo else ''}degree {L} in irreps_out {self.irreps_out}"
                )
        self.channels = channels
        self.num_elements = num_elements
        self.parametrization, self.antisymmetric = parametrization, antisymmetric
        # MACE reads this when it extracts a model's configuration.
        self.contraction_degree = correlation
        self.method = method
        lmax, lmax_out = max(degrees_in), max(degrees_out)
        self.method_used = choose_method(method, (lmax,) * max(correlation, 2), lmax_out)
        fourier = self.method_used == "fourier"
        self.dims_in = sum(2 * l + 1 for l in degrees_in)
        self.dims_out = [2 * L + 1 for L in degrees_out]

        self.orders = torch.nn.ModuleList()
        args = (degrees_in, degrees_out, channels, num_elements)
        if set(functions_in) & set(functions_out):
            self.orders.append(_Linear(functions_in, functions_out, channels, num_elements))
        copies = views if random_weights else 0
        share = math.sqrt(0.5) if nested else 1.0
        if parities:
            if any(
                parity_power_rms(functions_in, n, L, pseudo, random_weights)
                for n in orders
                for L, pseudo in functions_out
            ):
                self.orders.append(
                    (FourierParityPowers if fourier else ParityPowers)(
                        functions_in,
                        functions_out,
                        channels,
                        num_elements,
                        correlation,
                        copies,
                        share,
                    )
                )
        elif parametrization == "full":
            for n in orders:
                if any(nested_terms(degrees_in, n, L) for L in degrees_out):
                    self.orders.append(NestedProducts(*args, correlation=n))
        elif any(
            power_rms(degrees_in, n, L, random_weights) > 0 for n in orders for L in degrees_out
        ):
            powers = _FourierPowers if fourier else _Powers
            self.orders.append(powers(*args, correlation, copies, share))
        if any(chained):
            self.orders.append(
                Chains(
                    functions_in,
                    functions_out,
                    channels,
                    num_elements,
                    correlation,
                    views,
                    antisymmetric,
                    method,
                )
            )

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
        out = torch.zeros(
            [x.shape[0], self.channels, sum(self.dims_out)], dtype=x.dtype, device=x.device
        )
        for order in self.orders:
            out = out + order(x, node_attrs)
        return flat_first(out, self.dims_out)

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} -> {self.irreps_out}, correlation={self.contraction_degree}, "
            f"parametrization={self.parametrization}, "
            f"{'antisymmetric, ' if self.antisymmetric else ''}"
            f"{method_repr(self.method, self.method_used)}, elements={self.num_elements}"
        )


class _Linear(TableModule):
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

    def __setstate__(self, state):
        super().__setstate__(state)
        self.__dict__.setdefault("leading", False)  # pickled by release 0.1

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        # xcl,lj->xcj, zx,xcj->zcj: long thin products of matrices, as x @ pick, are slow
        of_element = self.weight.reshape(-1, self.repeat.shape[0]) @ self.repeat
        weight = node_attrs @ of_element.view(self.weight.shape[0], -1)
        picked = x[:, :, : self.pick.shape[1]] if self.leading else x @ self.pick  # zci,ij->zcj
        return picked * weight.view(x.shape[0], self.channels, self.pick.shape[1])


class _Powers(GridPowers):
    """``sum_nu sum_v t_nuL w_znuvcL <F_v^nu Y_LM>``; without copies F is the plain sum."""

    problem = None  # the kernel's; None, also in models pickled by earlier releases: no kernel
    kernel_in_programs, __constants__ = False, ["kernel_in_programs"]

    def __init__(self, degrees_in, degrees_out, channels, num_elements, correlation, copies, share):
        super().__init__()
        self.channels, self.copies = channels, copies
        self.problem = (degrees_in, degrees_out, correlation, copies, share)
        to_degree = [1 / math.sqrt(2 * l + 1) for l in degrees_in]
        scale = np.sum(repeat_matrix(degrees_in, to_degree), axis=0)
        if copies:
            self.weight_in = element_weights(
                num_elements, copies, channels, len(degrees_in), std=1 / GAIN_IN
            )
            self.register_table("repeat_in", GAIN_IN * repeat_matrix(degrees_in, to_degree))
            scale = np.ones_like(scale)
        else:
            self.register_buffer("weight_in", None)
            self.register_table("repeat_in", np.zeros((0, 0)))

        factors = _factors(*self.problem)
        spread = np.stack([np.sum(repeat_matrix(degrees_out, row), axis=0) for row in factors])
        self._make_tables(degrees_in, degrees_out, scale, spread)
        # [weights, orders * components]: one weight per order and reached degree.
        repeat_out = [GAIN_OUT * repeat_matrix(degrees_out)[row > 0] for row in factors]
        self.register_table(
            "repeat_out", torch.block_diag(*map(torch.from_numpy, repeat_out)).numpy()
        )
        self.weight_out = element_weights(
            num_elements, max(copies, 1), channels, len(self.repeat_out), std=1 / GAIN_OUT
        )

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        # Not one condition: TorchScript compiles the right-hand side of `and`.
        if self.kernel_in_programs:  # noqa: SIM102 (a constant: TorchScript leaves out the rest)
            if calls_kernel(x):
                return torch.ops.gaunt.fused(
                    "powers",
                    self.program,
                    [x.shape[0], self.channels, max(self.copies, 1)],
                    [x.shape[0], self.channels, self.from_grid.shape[2]],
                    None,
                    [x] + self._weights(node_attrs),
                )
        if not torch.jit.is_scripting():  # noqa: SIM102
            if self.problem is not None and has_kernel(x, self.weight_out):
                return self._fused(x, node_attrs)
        weight_in = self.weight_in
        u: Optional[torch.Tensor] = None
        if weight_in is not None:
            u = (node_attrs @ weight_in).view(
                x.shape[0], self.copies, self.channels, self.repeat_in.shape[0]
            )
        w = (node_attrs @ self.weight_out).view(
            x.shape[0], max(self.copies, 1), self.channels, self.repeat_out.shape[0]
        )
        return self._plain(x, w, u)

    def _plain(
        self, x: torch.Tensor, w: torch.Tensor, u: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """With w and u as ``[nodes, views, channels, numbers]``."""
        x = x.unsqueeze(1)
        if u is not None:
            x = x * (u @ self.repeat_in)  # zci,zvcl,li->zvci
        # zvci,ig->zvcg, powers, zvcg,gj->zvcnj
        rows = x.reshape(x.shape[0] * x.shape[1] * self.channels, x.shape[3])
        powers = self._projected(rows)
        powers = powers.view(
            x.shape[0], x.shape[1], self.channels, powers.shape[1], powers.shape[2]
        )
        spread = (w @ self.repeat_out).view_as(powers)  # one weight per reached degree
        return (powers * spread).sum([1, 3])

    def _weights(self, node_attrs: torch.Tensor) -> List[torch.Tensor]:
        """Of nodes, w and u, ``[nodes, views, count, channels]``: kernels' vectors are channels."""
        of_elements, counts = [self.weight_out], [self.repeat_out.shape[0]]
        weight_in = self.weight_in
        if weight_in is not None:
            of_elements.append(weight_in)
            counts.append(self.repeat_in.shape[0])
        weights: List[torch.Tensor] = []
        for weight, count in zip(of_elements, counts):
            shape = [-1, max(self.copies, 1), count, self.channels]
            weight = weight.view(-1, shape[1], self.channels, count).transpose(2, 3).flatten(1)
            weights.append((node_attrs @ weight).view(shape))
        return weights

    @torch.jit.unused
    def _fused(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        def plain(x, *weights):
            return self._plain(x, *(t.transpose(2, 3) for t in weights))

        weights = self._weights(node_attrs)
        if not has_kernel(x, *weights):  # autocast makes weights of another dtype
            return plain(x, *weights)
        return fused(plain, self.make_kernel(), x, *weights)

    @torch.jit.unused
    def make_kernel(self) -> Optional[PowersKernel]:
        """Of :mod:`gaunt_plugin.kernels`; None for transforms that have none."""
        return None if self.problem is None else _kernel(*self.problem)


class _FourierPowers(FourierPowers, _Powers):
    """The same by fast Fourier transforms."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.problem = None


def _factors(degrees_in, degrees_out, correlation, copies, share) -> np.ndarray:
    """t, ``[orders, degrees_out]``; 0 where an order doesn't reach a degree."""
    table = np.zeros((correlation - 1, len(degrees_out)))
    for n in range(2, correlation + 1):
        for k, L in enumerate(degrees_out):
            own = power_rms(degrees_in, n, L, random_weights=copies > 0)
            if own > 0:
                target = share * coupling_rms(degrees_in, n, L) / math.sqrt(max(copies, 1))
                table[n - 2, k] = target / own
    return table


@functools.cache
def _kernel(degrees_in, degrees_out, correlation, copies, share) -> PowersKernel:
    rule = quadrature(correlation * max(degrees_in) + max(degrees_out))
    # Node G/2 + i is the antipode of node i.
    half = slice(len(rule.nodes) // 2)
    gain = GAIN_IN if copies else 1.0
    scale = repeat_matrix(degrees_in, [gain / math.sqrt(2 * l + 1) for l in degrees_in]).sum(0)
    return PowersKernel(
        degrees_in,
        degrees_out,
        copies > 0,
        real_harmonics(degrees_in, rule.nodes[half]) * scale,
        real_harmonics(degrees_out, rule.nodes[half]) * 2 * rule.weights[half, None],
        GAIN_OUT * _factors(degrees_in, degrees_out, correlation, copies, share),
    )
