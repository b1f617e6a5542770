"""Gaunt counterparts of MACE's interaction blocks and of its product block.

MACE's blocks have a path for fused convolutions (``conv_fusion``), which calls
``conv_tp(node_feats, edge_attrs, weights, edge_index)``: exactly a Gaunt convolution. The blocks
here inherit the stock forward pass, ghost handling included, and only build other parts.
"""

from __future__ import annotations

from typing import Optional

from mace.modules import blocks as stock
from mace.modules.irreps_tools import reshape_irreps
from mace.modules.wrapper_ops import Linear

import torch
from e3nn import nn, o3
from e3nn.util.jit import compile_mode

from gaunt_plugin.layers import (
    AlignedConvolution,
    ElementLinear,
    GauntConvolution,
    GauntManyBody,
    GauntSelfmix,
)
from gaunt_plugin.mace.radial import RadialConvolution, hidden_network

_CONVOLUTIONS = {"aligned": AlignedConvolution, "grid": GauntConvolution}


def _with_multiplicity(irreps: o3.Irreps, mul: int) -> o3.Irreps:
    return o3.Irreps([(mul, ir) for _, ir in irreps])


class _GauntInteraction:
    """A stock block around a Gaunt convolution of ``convolution_rank`` times the channels."""

    residual = False
    density = False

    def __init__(
        self, *args, convolution: str = "aligned", convolution_rank: int = 1, **kwargs
    ) -> None:
        # The stock constructor calls _setup, which needs the options.
        self.convolution = convolution
        self.convolution_rank = convolution_rank
        super().__init__(*args, **kwargs)

    def _setup(self) -> None:
        if self.cueq_config is not None or self.oeq_config is not None:
            raise ValueError(
                f"{type(self).__name__} has no cuEquivariance or OpenEquivariance version; "
                "leave out --enable_cueq, --only_cueq and --enable_oeq"
            )
        self.conv_fusion = True
        muls = {mul for mul, _ in o3.Irreps(self.edge_irreps)}
        if len(muls) != 1:
            raise ValueError(
                "Gaunt interactions need one multiplicity for all edge irreps, got "
                f"{self.edge_irreps}"
            )
        mul = self.convolution_rank * muls.pop()
        irreps_up = _with_multiplicity(o3.Irreps(self.edge_irreps), mul)
        irreps_mid = _with_multiplicity(o3.Irreps(self.target_irreps), mul)
        self.linear_up = Linear(
            self.node_feats_irreps, irreps_up, internal_weights=True, shared_weights=True
        )
        convolution = _CONVOLUTIONS[self.convolution](irreps_up, self.edge_attrs_irreps, irreps_mid)
        input_dim = self.edge_feats_irreps.num_irreps
        widths = [input_dim, *self.radial_MLP]
        self.conv_tp_weights = hidden_network(widths, convolution.weight_numel)
        self.conv_tp = RadialConvolution(convolution, widths[-1])
        self.irreps_out = self.target_irreps
        self.linear = Linear(
            irreps_mid, self.irreps_out, internal_weights=True, shared_weights=True
        )
        skip_in, skip_out = (
            (self.node_feats_irreps, self.hidden_irreps)
            if self.residual
            else (self.irreps_out, self.irreps_out)
        )
        self.skip_tp = ElementLinear(skip_in, self.node_attrs_irreps, skip_out)
        if self.density:
            self.density_fn = nn.FullyConnectedNet([input_dim, 1], torch.nn.functional.silu)
        self.reshape = reshape_irreps(self.irreps_out)


@compile_mode("script")
class GauntInteractionBlock(_GauntInteraction, stock.RealAgnosticInteractionBlock):
    """:class:`mace.modules.RealAgnosticInteractionBlock` with a Gaunt convolution.

    Args:
        convolution: ``"aligned"`` or ``"grid"``.
        convolution_rank: channels in the convolution per channel of the model.
        others: as in the stock block.

    Raises:
        ValueError: irreps of unequal multiplicities, pseudo parity in ``"grid"``; another backend's
            options.
    """


@compile_mode("script")
class GauntResidualInteractionBlock(_GauntInteraction, stock.RealAgnosticResidualInteractionBlock):
    """:class:`mace.modules.RealAgnosticResidualInteractionBlock` with a Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`.
    """

    residual = True


@compile_mode("script")
class GauntDensityInteractionBlock(_GauntInteraction, stock.RealAgnosticDensityInteractionBlock):
    """:class:`mace.modules.RealAgnosticDensityInteractionBlock` with a Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`.
    """

    density = True


@compile_mode("script")
class GauntDensityResidualInteractionBlock(
    _GauntInteraction, stock.RealAgnosticDensityResidualInteractionBlock
):
    """:class:`mace.modules.RealAgnosticDensityResidualInteractionBlock`, Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`.
    """

    residual = True
    density = True


INTERACTIONS = {
    cls.__name__: cls
    for cls in (
        GauntInteractionBlock,
        GauntResidualInteractionBlock,
        GauntDensityInteractionBlock,
        GauntDensityResidualInteractionBlock,
    )
}


@compile_mode("script")
class GauntProductBasisBlock(torch.nn.Module):
    """:class:`mace.modules.EquivariantProductBasisBlock` with a Gaunt many-body product.

    Args:
        node_feats_irreps: irreps of the messages.
        target_irreps: irreps of the new node features.
        correlation: number of factors.
        num_elements: size of the one-hot ``node_attrs``.
        use_sc: add the self-connection.
        use_agnostic_product: one set of weights for all elements.
        parametrization, antisymmetric: see :class:`~gaunt_plugin.layers.GauntManyBody`.
        product_rank: copies of the messages in ``power`` and ``nested``.
        selfmix_rank: rank of a :class:`~gaunt_plugin.layers.GauntSelfmix` that the messages pass
            first; 0 leaves it out.

    Shapes:
        ``node_feats [nodes, channels, (lmax+1)^2]``, ``sc [nodes, target dim]`` or None,
        ``node_attrs [nodes, elements]`` -> ``[nodes, target dim]``.
    """

    def __init__(
        self,
        node_feats_irreps: o3.Irreps,
        target_irreps: o3.Irreps,
        correlation: int,
        num_elements: int,
        use_sc: bool = True,
        use_agnostic_product: bool = False,
        parametrization: str = "power",
        product_rank: int = 4,
        selfmix_rank: int = 0,
        antisymmetric: bool = False,
    ) -> None:
        super().__init__()
        self.use_sc = use_sc
        self.use_agnostic_product = use_agnostic_product
        target_irreps = o3.Irreps(target_irreps)
        self.selfmix = GauntSelfmix(node_feats_irreps, rank=selfmix_rank) if selfmix_rank else None
        self.symmetric_contractions = GauntManyBody(
            node_feats_irreps,
            target_irreps,
            correlation,
            1 if use_agnostic_product else num_elements,
            parametrization,
            rank=product_rank,
            antisymmetric=antisymmetric,
        )
        self.linear = Linear(
            target_irreps, target_irreps, internal_weights=True, shared_weights=True
        )

    def forward(
        self,
        node_feats: torch.Tensor,
        sc: Optional[torch.Tensor],
        node_attrs: torch.Tensor,
    ) -> torch.Tensor:
        if self.use_agnostic_product:
            node_attrs = torch.ones_like(node_attrs[:, :1])
        if self.selfmix is not None:
            node_feats = self.selfmix(node_feats.transpose(1, 2)).transpose(1, 2)
        node_feats = self.linear(self.symmetric_contractions(node_feats, node_attrs))
        if self.use_sc and sc is not None:
            return node_feats + sc
        return node_feats
