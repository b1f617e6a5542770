"""Gaunt counterparts of MACE's interaction blocks and of its product block.

MACE's blocks have a path for fused convolutions (``conv_fusion``), which calls
``conv_tp(node_feats, edge_attrs, weights, edge_index)``: exactly a Gaunt convolution. The blocks
here inherit the stock forward pass, ghost handling included, and only build other parts.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

from mace.modules import blocks as stock
from mace.modules.irreps_tools import tp_out_irreps_with_instructions

import torch
from e3nn import o3
from e3nn.util.jit import compile_mode

from gaunt_plugin.layers import (
    AlignedConvolution,
    ChannelsLastConvolution,
    ChannelwiseConvolution,
    ElementLinear,
    GauntConvolution,
    GauntManyBody,
    GauntSelfmix,
    LayoutLinear,
    Linear,
)
from gaunt_plugin.mace.channels_last import ChannelsFirst
from gaunt_plugin.mace.radial import radial_convolution

_CONVOLUTIONS = {"aligned": AlignedConvolution, "grid": GauntConvolution}


class _GauntInteraction:
    """A stock block around a Gaunt convolution of ``convolution_rank`` times the channels."""

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
        edge_irreps, edge_attrs = o3.Irreps(self.edge_irreps), self.edge_attrs_irreps
        irreps_up = o3.Irreps([(self.convolution_rank * mul, ir) for mul, ir in edge_irreps])
        # A stock convolution with scalars costs nothing to build; it holds the Gaunt one's place.
        self.edge_irreps, self.edge_attrs_irreps = irreps_up, o3.Irreps("0e")
        super()._setup()
        self.edge_irreps, self.edge_attrs_irreps = edge_irreps, edge_attrs

        self.conv_fusion = True
        apart = self.convolution == "channelwise"
        if apart:
            irreps_mid, paths = tp_out_irreps_with_instructions(
                irreps_up, edge_attrs, o3.Irreps(self.target_irreps)
            )
            convolution = ChannelsLastConvolution(
                ChannelwiseConvolution(irreps_up, edge_attrs, irreps_mid, paths)
            )
        else:
            irreps_mid = self._irreps_mid(irreps_up)
            convolution = _CONVOLUTIONS[self.convolution](irreps_up, edge_attrs, irreps_mid)
        self.conv_tp_weights, self.conv_tp = radial_convolution(self.conv_tp_weights, convolution)
        # MACE reads there how a model was made, and makes all its layers so.
        self.conv_tp_weights.hs = [0, *self.radial_MLP, convolution.weight_numel]
        self._replace_linears(irreps_up, irreps_mid, apart)
        if isinstance(getattr(self, "skip_tp", None), o3.FullyConnectedTensorProduct):
            skip = self.skip_tp
            self.skip_tp = ElementLinear(skip.irreps_in1, skip.irreps_in2, skip.irreps_out)

    def _irreps_mid(self, irreps_up: o3.Irreps) -> o3.Irreps:
        """Messages, where all irreps have one multiplicity."""
        muls = {mul for mul, _ in irreps_up}
        if len(muls) != 1:
            raise ValueError(
                f"Gaunt interactions with convolution {self.convolution!r} need one multiplicity "
                f"for all edge irreps, got {self.edge_irreps}; 'channelwise' takes any"
            )
        mul = muls.pop()
        return o3.Irreps([(mul, ir) for _, ir in o3.Irreps(self.target_irreps)])

    def _replace_linears(self, irreps_up: o3.Irreps, irreps_mid: o3.Irreps, apart: bool) -> None:
        """The layers before and after the convolution; with paths apart, channels come last."""
        # Of the messages' irreps only this layer knows.
        name = "linear_1" if hasattr(self, "linear_1") else "linear"
        irreps_out = getattr(self, name).irreps_out
        if not apart:
            setattr(self, name, Linear(irreps_mid, irreps_out))
            return
        self.linear_up = LayoutLinear(self.node_feats_irreps, irreps_up, False, True)
        # Whether no other layer acts on the messages before the many-body product.
        last = name == "linear" and "Residual" in type(self).__name__
        setattr(self, name, LayoutLinear(irreps_mid, irreps_out, True, last))
        if last:
            components = sum(ir.dim for _, ir in irreps_out)
            self.reshape = ChannelsFirst(components, irreps_out[0].mul)
        if hasattr(self, "linear_res"):
            self.linear_res = LayoutLinear(irreps_up, self.linear_res.irreps_out, True, False)


@compile_mode("script")
class GauntInteractionBlock(_GauntInteraction, stock.RealAgnosticInteractionBlock):
    """A :class:`mace.modules.RealAgnosticInteractionBlock` with a Gaunt convolution.

    Args:
        convolution: ``"aligned"``, ``"grid"``, or ``"channelwise"``: the stock block's own numbers.
        convolution_rank: channels in the convolution per channel of the model.
        others: as in the stock block.

    Raises:
        ValueError: irreps of unequal multiplicities, pseudo parity in ``"grid"``; another backend's
            options.
    """


@compile_mode("script")
class GauntResidualInteractionBlock(_GauntInteraction, stock.RealAgnosticResidualInteractionBlock):
    """A :class:`mace.modules.RealAgnosticResidualInteractionBlock` with a Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`.
    """


@compile_mode("script")
class GauntDensityInteractionBlock(_GauntInteraction, stock.RealAgnosticDensityInteractionBlock):
    """A :class:`mace.modules.RealAgnosticDensityInteractionBlock` with a Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`.
    """


@compile_mode("script")
class GauntDensityResidualInteractionBlock(
    _GauntInteraction, stock.RealAgnosticDensityResidualInteractionBlock
):
    """A :class:`mace.modules.RealAgnosticDensityResidualInteractionBlock` with a Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`.
    """


@compile_mode("script")
class GauntAttResidualInteractionBlock(
    _GauntInteraction, stock.RealAgnosticAttResidualInteractionBlock
):
    """A :class:`mace.modules.RealAgnosticAttResidualInteractionBlock` with a Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`.
    """

    # The stock method says that its second result is None, which TorchScript doesn't compile.
    def forward(
        self,
        node_attrs: torch.Tensor,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        edge_feats: torch.Tensor,
        edge_index: torch.Tensor,
        cutoff: Optional[torch.Tensor] = None,
        lammps_class: Optional[Any] = None,
        lammps_natoms: Tuple[int, int] = (0, 0),
        first_layer: bool = False,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        up, down = self.linear_up(node_feats), self.linear_down(node_feats)
        split = up.shape[-1]
        both = self.handle_lammps(  # one exchange of ghosts
            torch.cat([up, down], dim=-1), lammps_class, lammps_natoms, first_layer
        )
        up, down = both[:, :split], both[:, split:]
        ends = [edge_feats, down[edge_index[0]], down[edge_index[1]]]
        weights = self.conv_tp_weights(torch.cat(ends, dim=-1))
        if cutoff is not None:
            weights = weights * cutoff
        messages = self.conv_tp(up, edge_attrs, weights, edge_index)
        n_real = lammps_natoms[0] if lammps_class is not None else None
        messages = self.linear(self.truncate_ghosts(messages, n_real)) / self.avg_num_neighbors
        return self.reshape(messages), self.truncate_ghosts(self.skip_linear(node_feats), n_real)


@compile_mode("script")
class GauntResidualNonLinearInteractionBlock(
    _GauntInteraction, stock.RealAgnosticResidualNonLinearInteractionBlock
):
    """A :class:`mace.modules.RealAgnosticResidualNonLinearInteractionBlock`, Gaunt convolution.

    Arguments and errors: see :class:`GauntInteractionBlock`. Messages with 0o raise, too: the
    non-linearity of scalars keeps no odd ones.
    """

    def _setup(self) -> None:
        if o3.Irrep("0o") in o3.Irreps(self.target_irreps):
            raise ValueError(
                f"{type(self).__name__} takes no 0o, got messages {self.target_irreps}"
            )
        super()._setup()


INTERACTIONS = {
    cls.__name__: cls
    for cls in (
        GauntInteractionBlock,
        GauntResidualInteractionBlock,
        GauntDensityInteractionBlock,
        GauntDensityResidualInteractionBlock,
        GauntAttResidualInteractionBlock,
        GauntResidualNonLinearInteractionBlock,
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
        self.linear = Linear(target_irreps, target_irreps)

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
