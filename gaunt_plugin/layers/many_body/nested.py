"""Products with a projection after each factor: the parametrisation ``nested``."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import numpy as np
import torch

from gaunt_plugin.layers.irreps import (
    Function,
    Irrep,
    Irreps,
    Path,
    irrep_of,
    is_pseudo,
    paths_with_itself,
    reachable_paths,
)
from gaunt_plugin.layers.many_body.parametrization import Parametrization
from gaunt_plugin.layers.many_body.power import Power, coupling_size, power_size
from gaunt_plugin.layers.many_body.weights import GAIN_IN, GAIN_OUT, element_weights
from gaunt_plugin.layers.product.sphere_product import SphereProduct
from gaunt_plugin.ops.tables import TableModule, repeat_matrix


class Nested(Parametrization):
    """``nested`` of :class:`~gaunt_plugin.layers.GauntManyBody`: powers and nested products.

    Arguments and shapes: see :class:`~gaunt_plugin.layers.many_body.power.Power`.
    """

    @classmethod
    def check(cls, correlation: int, antisymmetric: bool) -> None:
        """All options are possible."""

    @staticmethod
    def outputs(
        functions_in: List[Function],
        functions_out: List[Function],
        correlation: int,
        antisymmetric: bool,
    ) -> List[Function]:
        """Those of ``functions_out`` that products of two or more factors reach."""
        arguments = (functions_in, functions_out, correlation, antisymmetric)
        reached = {ir for irs in nested_outputs(*arguments) for ir in irs}
        powers = Power.outputs(*arguments)
        return [f for f in functions_out if irrep_of(*f) in reached or f in powers]

    def __init__(
        self,
        functions_in: List[Function],
        functions_out: List[Function],
        channels: int,
        num_elements: int,
        correlation: int,
        rank: int,
        antisymmetric: bool = False,
    ) -> None:
        super().__init__()
        options = (functions_in, functions_out, correlation, antisymmetric)
        sizes = (functions_in, functions_out, channels, num_elements, correlation, rank)
        self.powers, self.nested = None, None
        if Power.outputs(*options):
            self.powers = Power(*sizes, share=math.sqrt(0.5))
        if any(nested_outputs(*options)):
            self.nested = NestedTerms(*sizes, antisymmetric)

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        parts: List[torch.Tensor] = []
        if self.powers is not None:
            parts.append(self.powers(x, node_attrs))
        if self.nested is not None:
            parts.append(self.nested(x, node_attrs))
        return parts[0] + parts[1] if len(parts) > 1 else parts[0]


def nested_outputs(
    functions_in: List[Function],
    functions_out: List[Function],
    correlation: int,
    antisymmetric: bool,
) -> List[List[Irrep]]:
    """Irreps of the output that nested products of 2, 3, ... ``correlation`` factors give."""
    out = []
    states = _states(functions_in, functions_out, correlation, antisymmetric)
    for n, state in enumerate(states[1:], 2):
        irs = [ir for _, ir in state]
        out.append(
            [
                irrep_of(*f)
                for f in functions_out
                if irrep_of(*f) in irs
                # Couplings that vanish because all factors are equal are zero in both.
                and coupling_size(functions_in, n, f)[1] > 0
                and (antisymmetric or power_size(functions_in, n, f, True) > 0)
            ]
        )
    return out


def _states(
    functions_in: List[Function],
    functions_out: List[Function],
    correlation: int,
    antisymmetric: bool,
) -> List[Irreps]:
    """Irreps that 1, 2, ... ``correlation`` factors can give."""
    one = _single(irrep_of(*f) for f in functions_in)
    lmax = max(l for l, _ in functions_in + functions_out)
    every = _single(irrep_of(l, pseudo) for l in range(lmax + 1) for pseudo in (False, True))
    states = [one]
    for n in range(2, correlation + 1):
        paths = _paths(states[-1], one, every, antisymmetric, first=n == 2)
        states.append(_single(path.irreps[2] for path in paths))
    return states


class NestedTerms(torch.nn.Module):
    r"""Products of n differently weighted copies, projected and weighted anew after each factor.

    Per element z, channel c and v = 1 ... V, with ``F_k`` weighted copies of the input,

    .. math:: T^{(1)} = F_{v1}, \qquad T^{(n)} = P\Big[\sum_l w_{zvcnl}\, P_l T^{(n-1)},\; F_{vn}
       \Big], \qquad B_{LM} = \sum_{n=2}^{N} \frac{t_{nL}}{\sqrt V} \sum_v w_{znvcL}\,
       T^{(n)}_{vLM}

    P is the product of :class:`~gaunt_plugin.layers.GauntTensorProduct`, on degrees up to the
    highest of input and output; with ``antisymmetric`` it holds ``s . (grad A x grad B)``. One free
    weight per degree between any two factors is what plain powers lack: sums of such products span
    all nested couplings of these degrees. Costs grow linearly in N, on a grid that doesn't grow.

    For unit normal input the first product has unit variance exactly; later ones have it for
    independent factors, which is how MACE normalises a path, and ``t_nL`` is MACE's scale of
    order n, ``P^(-1/2)`` with P the number of its paths. Where powers reach the output too, each
    of both has half of the variance.

    Args:
        functions_in, functions_out: irreps of a channel as (degree, pseudo), in order.
        channels, num_elements: one weight per element, channel and term.
        correlation: N, at least 2.
        rank: V.
        antisymmetric: whether brackets are made.

    Shapes:
        ``x [nodes, channels, sum(2l+1)]``, ``node_attrs [nodes, elements]`` ->
        ``[nodes, channels, sum(2L+1)]``.
    """

    def __init__(
        self,
        functions_in: List[Function],
        functions_out: List[Function],
        channels: int,
        num_elements: int,
        correlation: int,
        rank: int,
        antisymmetric: bool,
    ) -> None:
        super().__init__()
        outputs = nested_outputs(functions_in, functions_out, correlation, antisymmetric)
        while not outputs[-1]:
            outputs.pop()
        states = _states(functions_in, functions_out, correlation, antisymmetric)
        one = states[0]
        # Backward: what of each product is needed later.
        needed: List[Irrep] = []
        paths_of: List[List[Path]] = []
        for i in reversed(range(len(outputs))):
            wanted = _single([*needed, *outputs[i]])
            paths_of.insert(0, _paths(states[i], one, wanted, antisymmetric, first=i == 0))
            needed = [path.irreps[0] for path in paths_of[0]]

        irs_in, irs_out = ([irrep_of(*f) for f in fs] for fs in (functions_in, functions_out))
        self.steps = torch.nn.ModuleList()
        state = irs_in
        for i, paths in enumerate(paths_of):
            scales = {}
            for ir in outputs[i]:
                function = (ir.l, is_pseudo(ir))
                count, rms = coupling_size(functions_in, i + 2, function)
                shared = power_size(functions_in, i + 2, function, True) > 0
                scale = rms if i == 0 else count**-0.5
                scales[ir] = scale * math.sqrt((0.5 if shared else 1.0) / rank)
            sizes = (channels, num_elements, rank)
            step = NestedStep(paths, i == 0, state, irs_in, irs_out, scales, *sizes)
            self.steps.append(step)
            state = step.product.irreps3

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(1)
        state = x
        out: Optional[torch.Tensor] = None
        for step in self.steps:
            state, part = step(state, x, node_attrs)
            if part is not None:
                out = part if out is None else out + part
        assert out is not None
        return out


class NestedStep(TableModule):
    """One factor more, and the terms of this order."""

    def __init__(
        self, paths, same, state, irs_in, irs_out, scales, channels, num_elements, rank
    ) -> None:
        super().__init__()
        self.channels, self.rank = channels, rank
        self.product = SphereProduct(paths, same)
        used = (self.product.irreps1, self.product.irreps2)
        for name, have, want in zip("12", (state, irs_in), used):
            self.register_table(f"take{name}", _components(have, want))
            repeat = GAIN_IN * repeat_matrix([ir.l for ir in want])
            self.register_table(f"repeat{name}", repeat)
        self.numels = [len(irs) for irs in used]
        self.weight_in = element_weights(
            num_elements, rank, channels, sum(self.numels), std=1 / GAIN_IN
        )
        # Terms: their weights on the product's components, and where those are in the output.
        made = self.product.irreps3
        rows = repeat_matrix([ir.l for ir in made])[[made.index(ir) for ir in scales]]
        scale = GAIN_OUT * np.array(list(scales.values()))
        self.register_table("repeat_out", rows * scale[:, None])
        place = np.zeros((sum(ir.dim for ir in made), sum(ir.dim for ir in irs_out)))
        if scales:
            place[_components(made, list(scales)), _components(irs_out, list(scales))] = 1.0
            self.weight_out = element_weights(
                num_elements, rank, channels, len(scales), std=1 / GAIN_OUT
            )
        else:
            self.register_parameter("weight_out", None)
        self.register_table("place", place)

    def forward(
        self, state: torch.Tensor, x: torch.Tensor, node_attrs: torch.Tensor
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        shape = [x.shape[0], self.rank, self.channels]
        weight_in = (node_attrs @ self.weight_in).view(shape + [sum(self.numels)])
        w1, w2 = weight_in.split(self.numels, dim=-1)
        # zvci,zvcl,li->zvci
        a = state.index_select(-1, self.take1) * (w1 @ self.repeat1)
        b = x.index_select(-1, self.take2) * (w2 @ self.repeat2)
        c = self.product(a.flatten(0, 2), b.flatten(0, 2))
        c = c.view(shape + [c.shape[1]])
        weight_out = self.weight_out
        if weight_out is None:
            return c, None
        w3 = (node_attrs @ weight_out).view(shape + [self.repeat_out.shape[0]])
        # zvck,zvcl,lk->zck, zck,kj->zcj
        return c, (c * (w3 @ self.repeat_out)).sum(1) @ self.place


def _single(irreps) -> Irreps:
    return Irreps([(1, ir) for ir in sorted(set(irreps))])


def _paths(state, one, wanted, antisymmetric: bool, first: bool) -> List[Path]:
    """Paths of one product; the first is that of the input with itself."""
    if first:
        return paths_with_itself(one, wanted, antisymmetric)
    return reachable_paths(state, one, wanted, antisymmetric)


def _components(have: List[Irrep], want: List[Irrep]) -> np.ndarray:
    """Indices of the components of ``want`` among those of ``have``."""
    starts = np.cumsum([0] + [ir.dim for ir in have])
    parts = [starts[have.index(ir)] + np.arange(ir.dim) for ir in want]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
