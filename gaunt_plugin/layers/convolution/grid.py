"""Convolution over edges as products of functions on the sphere."""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch

from gaunt_plugin.layers.convolution.edges import Convolution, edge_degrees
from gaunt_plugin.layers.irreps import Irreps, channels_last, check_channels, degrees_of, flat
from gaunt_plugin.layers.product.sphere_product import input_scales
from gaunt_plugin.ops.tables import TableModule, repeat_matrix
from gaunt_plugin.sphere import gaunt, quadrature, real_harmonics


class GauntConvolution(Convolution, TableModule):
    r"""Node features times harmonics of the edges, summed over the neighbours on the grid.

    Per channel c and receiving node i, with sender features ``A_j`` as a function on the sphere,

    .. math:: M_{i,LM} = n_L \Big\langle Y_{LM}(s) \sum_{j} A_j(s)\, g_{ij}(s) \Big\rangle, \quad
       A_j(s) = \sum_{lm} \frac{A_{j,lm} Y_{lm}(s)}{\sqrt{2l+1}}, \quad
       g_{ij}(s) = \sum_l \frac{R_{ij,l}}{\sqrt{2l+1}} \sum_m Y_{lm}(\hat r_{ij}) Y_{lm}(s)

    with one radial weight R per edge, edge degree l and channel. Node features go to the grid once
    per node and the sum is projected once per node; the grid is exact for
    ``lmax_in + lmax_edge + lmax_out``. ``n_L`` makes a message of one edge have unit variance for
    unit normal features and weights. Reaches every coupling with ``l1 + l2 + l3`` even, with
    weights that factorise over the degrees.

    Args:
        irreps_in: node features, one multiplicity, natural parity.
        irreps_edge: harmonics of the edges, multiplicity 1, natural parity.
        irreps_out: same multiplicity as ``irreps_in``, natural parity.

    Attributes:
        weight_numel: weights per edge, ``edge degrees * channels``, ordered ``[degree, channel]``.

    Shapes:
        node features ``[nodes, irreps_in.dim]``, ``edge_attrs [edges, irreps_edge.dim]``
        (component-normalised), ``weights [edges, weight_numel]``, ``edge_index [2, edges]``
        (senders, receivers) -> ``[nodes, irreps_out.dim]``, e3nn's flat layout. With
        ``mixing [k, weight_numel]``, ``weights [edges, k]`` are the hidden features of a radial
        network and ``mixing`` its last layer: ``weights @ mixing`` takes their place.

    Raises:
        ValueError: irreps or shapes that don't fit.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216.
    """

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_edge: Irreps | str,
        irreps_out: Irreps | str,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_edge = Irreps(irreps_edge)
        self.irreps_out = Irreps(irreps_out)
        channels, degrees_in = degrees_of(irreps_in, "irreps_in")
        channels_out, degrees_out = degrees_of(irreps_out, "irreps_out")
        degrees_edge = edge_degrees(irreps_edge)
        check_channels(irreps_in, channels, irreps_out, channels_out)
        reached = {
            L: sum(
                np.sum(gaunt(a, b, L) ** 2) / ((2 * a + 1) * (2 * b + 1) * (2 * L + 1))
                for a in degrees_in
                for b in degrees_edge
            )
            for L in degrees_out
        }
        missing = [L for L, power in reached.items() if power < 1e-12]
        if missing:
            raise ValueError(
                f"no product of {self.irreps_in} and {self.irreps_edge} reaches degree "
                f"{missing[0]} in irreps_out {self.irreps_out}"
            )
        self.channels = channels
        self.dims_in = [2 * l + 1 for l in degrees_in]
        self.dims_out = [2 * L + 1 for L in degrees_out]
        self.dim_edge, self.edge_degrees = self.irreps_edge.dim, len(degrees_edge)
        self.weight_numel = self.edge_degrees * channels

        lmax_in, lmax_edge, lmax_out = max(degrees_in), max(degrees_edge), max(degrees_out)
        norm = repeat_matrix(degrees_out, [reached[L] ** -0.5 for L in degrees_out]).sum(0)
        rule = quadrature(lmax_in + lmax_edge + lmax_out)
        to_grid = real_harmonics(degrees_in, rule.nodes) * input_scales(degrees_in, False)
        # zonal[lm, g, l]: edge harmonics -> the filter of each degree on the grid
        filters = real_harmonics(degrees_edge, rule.nodes) * input_scales(degrees_edge, False)
        zonal = np.einsum("gi,li->igl", filters, repeat_matrix(degrees_edge))
        from_grid = real_harmonics(degrees_out, rule.nodes) * rule.weights[:, None] * norm
        self.register_table("to_grid", to_grid)
        self.register_table("zonal", zonal.reshape(len(zonal), -1))
        self.register_table("from_grid", from_grid.T)

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        self.check_edges(node_feats, edge_attrs, weights, edge_index, mixing)
        if mixing is not None:
            weights = weights @ mixing
        edges = edge_attrs.shape[0]
        x = channels_last(node_feats, self.channels, self.dims_in)
        field = self.to_grid @ x  # gi,zic->zgc
        # ei,igl->egl, then egl,elc->egc
        zonal = (edge_attrs @ self.zonal).view(edges, self.to_grid.shape[0], self.edge_degrees)
        kernel = zonal @ weights.view(edges, self.edge_degrees, self.channels)
        messages = torch.zeros_like(field).index_add(
            0, edge_index[1], kernel * field.index_select(0, edge_index[0])
        )
        return flat(self.from_grid @ messages, self.dims_out)  # jg,zgc->zjc

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} x {self.irreps_edge} -> {self.irreps_out}, "
            f"weights={self.weight_numel}"
        )
