"""Convolution with the Clebsch-Gordan product of the hosts' stock models, path by path."""

from __future__ import annotations

import itertools
from typing import List, Optional, Sequence

import torch

from gaunt_plugin.layers.convolution.edges import Convolution
from gaunt_plugin.layers.irreps import Irreps, wigner_3j
from gaunt_plugin.ops import PathConvolution


class ChannelwiseConvolution(Convolution):
    r"""e3nn's ``TensorProduct`` ("uvu") of senders' features with harmonics, summed at receivers.

    Every path ``p = (l1, l2) -> l3`` has a block of its own in the result, for the receiving node i
    and channel u

    .. math:: M_{i, p, m_3, u} = a_p \sum_j w_{ij, p, u} \sum_{m_1 m_2}
       C^{l_1 l_2 l_3}_{m_1 m_2 m_3}\, Y_{l_2 m_2}(\hat r_{ij})\, x_{j, l_1 m_1, u},
       \qquad a_p = \sqrt{2 l_3 + 1}

    with e3nn's ``wigner_3j`` C, whose signs are those of the installed release. These are the
    numbers of ``TensorProduct(irreps_in, irreps_edge, irreps_out, instructions,
    shared_weights=False)``, summed over the edges of a receiver.

    Args:
        irreps_in: node features; multiplicities may differ.
        irreps_edge: harmonics of the edges, each multiplicity 1; any parity.
        irreps_out: of the result, an irrep per path with the multiplicity of its features.
        instructions: per path its irrep in ``irreps_in``, ``irreps_edge`` and ``irreps_out``; what
            follows in e3nn's instructions ("uvu", True) may be there, too. Each irrep of
            ``irreps_out`` has one path.
        path_weights: ``a_p``, if they are others: e3nn's ``path_weight`` of the instructions of a
            finished ``TensorProduct``.

    Attributes:
        weight_numel: weights per edge, ordered ``[path, channel]`` as the instructions.
        irreps_mixed: ``irreps_out.simplify()``, of :meth:`channels_last`.

    Shapes:
        node features ``[nodes, irreps_in.dim]``, ``edge_attrs [edges, irreps_edge.dim]``,
        ``weights [edges, weight_numel]``, ``edge_index [2, edges]`` (senders, receivers) ->
        ``[nodes, irreps_out.dim]``, e3nn's flat layout. With ``mixing [k, weight_numel]``,
        ``weights [edges, k]`` are the hidden features of a radial network and ``mixing`` its last
        layer: ``weights @ mixing`` takes their place, and compiled kernels never hold a large one
        for all edges. With ``rows [edges]`` (int64) ``mixing`` may have more rows than ``weights``
        has columns: an edge takes as many of them as there are columns, from ``rows[edge]`` on.

    Raises:
        ValueError: irreps, instructions or shapes that don't fit.
    """

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_edge: Irreps | str,
        irreps_out: Irreps | str,
        instructions: Sequence[tuple],
        path_weights: Optional[Sequence[float]] = None,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_edge = Irreps(irreps_in), Irreps(irreps_edge)
        self.irreps_out = Irreps(irreps_out)
        self.irreps_mixed = self.irreps_out.simplify()
        if any(mul != 1 for mul, _ in self.irreps_edge):
            raise ValueError(f"irreps_edge must have multiplicity 1, got {self.irreps_edge}")
        instructions = [tuple(instruction) for instruction in instructions]
        self._check(instructions)
        self.instructions = [instruction[:3] for instruction in instructions]
        if path_weights is None:
            path_weights = [self.irreps_out[k].ir.dim ** 0.5 for _, _, k in self.instructions]
        if len(path_weights) != len(self.instructions):
            raise ValueError(
                f"path_weights must be one for each of the {len(self.instructions)} instructions, "
                f"got {len(path_weights)}"
            )
        edge_starts = [s.start for s in self.irreps_edge.slices()]
        places = _places(self.irreps_out)
        paths, terms = [], []
        for (i, j, k), factor in zip(self.instructions, path_weights):
            irs = self.irreps_in[i].ir, self.irreps_edge[j].ir, self.irreps_out[k].ir
            coupling = float(factor) * wigner_3j(*(ir.l for ir in irs), dtype=torch.float64)
            paths.append((i, *places[k], irs[2].dim))
            terms.append(
                tuple(
                    (m1, edge_starts[j] + m2, m3, coupling[m1, m2, m3].item())
                    for m1, m2, m3 in (coupling.abs() > 1e-12).nonzero().tolist()
                )
            )
        blocks = tuple((ir.dim, mul) for mul, ir in self.irreps_in)
        self.convolution = PathConvolution(
            blocks, self.irreps_edge.dim, self.irreps_out.dim, tuple(paths), tuple(terms)
        )
        # One channel with all numbers of a node: multiplicities may differ.
        self.channels, self.dims_in = 1, [self.irreps_in.dim]
        self.dim_edge = self.irreps_edge.dim
        self.weight_numel = self.convolution.numel
        # Blocks that are read, and written: channels and components.
        self.blocks_in = [[mul, ir.dim] for mul, ir in self.irreps_in]
        self.blocks_out = [[mul, ir.dim] for mul, ir in self.irreps_mixed]

    @classmethod
    def from_tensor_product(cls, product: torch.nn.Module) -> ChannelwiseConvolution:
        """The convolution with the numbers of an e3nn ``TensorProduct``.

        Raises:
            ValueError: a product that isn't made of "uvu" paths with weights of each edge.
        """
        if product.shared_weights or product.internal_weights:
            raise ValueError("the tensor product has weights of its own, not of each edge")
        return cls(
            product.irreps_in1,
            product.irreps_in2,
            product.irreps_out,
            product.instructions,
            [instruction.path_weight for instruction in product.instructions],
        )

    def _check(self, instructions: List[tuple]) -> None:
        outputs = []
        for instruction in instructions:
            i, j, k = instruction[:3]
            if instruction[3:4] not in ((), ("uvu",)) or instruction[4:5] not in ((), (True,)):
                raise ValueError(f"instructions must be 'uvu' with weights, got {instruction}")
            for place, irreps in zip(
                (i, j, k), (self.irreps_in, self.irreps_edge, self.irreps_out)
            ):
                if place not in range(len(irreps)):
                    raise ValueError(f"no irrep {place} of {irreps} for instruction {(i, j, k)}")
            (mul, one), (_, two) = self.irreps_in[i], self.irreps_edge[j]
            mul_out, three = self.irreps_out[k]
            if three not in one * two:
                raise ValueError(f"{one} x {two} doesn't couple to {three}")
            if mul != mul_out or mul < 1:
                raise ValueError(
                    f"irrep {k} of irreps_out must be {mul}x{three} as its features are "
                    f"{mul}x{one}, got {mul_out}x{three}"
                )
            outputs.append(k)
        if sorted(outputs) != list(range(len(self.irreps_out))) or not outputs:
            raise ValueError(
                f"each irrep of irreps_out {self.irreps_out} must have one instruction, "
                f"got instructions for {sorted(outputs)}"
            )

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        self.check_edges(node_feats, edge_attrs, weights, edge_index, mixing, rows)
        x = _turned(node_feats, self.blocks_in, False)
        out = self.convolution(x, edge_attrs, weights, mixing, edge_index, rows)
        return _turned(out, self.blocks_out, True)

    def channels_last(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """The same of features whose channels come last, per irrep ``[2l+1, channels]``.

        So does the result, of ``irreps_mixed``: adjacent irreps that are equal share their
        components, and a matrix that mixes their channels acts from the right.
        """
        self.check_edges(node_feats, edge_attrs, weights, edge_index, mixing, rows)
        return self.convolution(node_feats, edge_attrs, weights, mixing, edge_index, rows)

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} x {self.irreps_edge} -> {self.irreps_out}, "
            f"weights={self.weight_numel}"
        )


def _places(irreps: Irreps) -> List[List[int]]:
    """Per irrep, where it begins in ``irreps.simplify()`` and the distance of components there."""
    places: List[List[int]] = []
    begin = 0
    for ir, equal in itertools.groupby(irreps, key=lambda entry: entry.ir):
        muls = [mul for mul, _ in equal]
        places += [[begin + sum(muls[:k]), sum(muls)] for k in range(len(muls))]
        begin += sum(muls) * ir.dim
    return places


def _turned(x: torch.Tensor, blocks: List[List[int]], back: bool) -> torch.Tensor:
    """Exchange channels and components of each block ``[channels, components]``."""
    parts: List[torch.Tensor] = []
    for part, (mul, dim) in zip(x.split([mul * dim for mul, dim in blocks], dim=1), blocks):
        if mul > 1 and dim > 1:
            a, b = (dim, mul) if back else (mul, dim)
            part = part.reshape(-1, a, b).transpose(1, 2).flatten(1)
        parts.append(part)
    return torch.cat(parts, dim=1)


class ChannelsLastConvolution(torch.nn.Module):
    """A convolution that takes and returns features whose channels come last.

    Args:
        convolution: a :class:`ChannelwiseConvolution`.

    Shapes:
        As its method ``channels_last``.
    """

    def __init__(self, convolution: ChannelwiseConvolution) -> None:
        super().__init__()
        self.convolution = convolution
        self.weight_numel = convolution.weight_numel

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        return self.convolution.channels_last(
            node_feats, edge_attrs, weights, edge_index, mixing, rows
        )
