"""Gaunt counterpart of NequIP's interaction block."""

import sys
from typing import Dict, List, Optional, Sequence, Union

import torch
from e3nn.o3._irreps import Irreps
from nequip.data import AtomicDataDict
from nequip.nn._ghost_exchange_base import NoOpGhostExchangeModule
from nequip.nn._graph_mixin import GraphModuleMixin
from nequip.nn.mlp import ScalarMLPFunction
from nequip.nn.model_modifier_utils import model_modifier
from nequip.nn.norm import AvgNumNeighborsNorm

from gaunt_plugin.layers import (
    ElementLinear,
    GauntManyBody,
    GauntSelfmix,
    GroupedConvolution,
    Linear,
    check_options,
)
from gaunt_plugin.layers.irreps import channels_first, ordered
from gaunt_plugin.ops import operators_in_programs
from gaunt_plugin.ops._operator import kernels
from gaunt_plugin.ops.edge_sum import turned_round

# nequip-package takes up the code of installed extensions. A model that comes from a package brings
# this one along, and it may be packaged again where it isn't installed.
_packaging = sys.modules.get("nequip.scripts._package_utils")
if _packaging is not None:
    _packaging._INTERNAL_MODULES.add("gaunt_plugin")


class GauntInteractionBlock(GraphModuleMixin, torch.nn.Module):
    r""":class:`nequip.nn.InteractionBlock` with a Gaunt convolution and many-body product.

    With messages M = convolution(linear_1(x)) in the frame of each edge, ``product_features``
    channels C = linear(M) of them, their product with themselves S = selfmix(C) if
    ``selfmix_rank`` > 0 (else S = C), and the many-body product B of S if ``correlation`` > 1,

    .. math:: x_i' = \text{linear}_2([M_i, B_i]) + W_{z_i} x_i

    or ``[M, S]`` in place of ``[M, B]`` where there is no B.

    Args:
        convolution_rank: channels in the convolution per channel of the features.
        correlation: number of factors of the many-body product; 1 leaves it out.
        parametrization, product_rank, antisymmetric: ``parametrization``, ``rank`` and
            ``antisymmetric`` of :class:`~gaunt_plugin.layers.GauntManyBody`.
        product_features: channels of the products; default: the smallest multiplicity in
            ``irreps_out``.
        selfmix_rank: of the :class:`~gaunt_plugin.layers.GauntSelfmix`; 0 leaves it out.
        product_parity: the products act on features of both parities, where the messages have
            them, rather than on those of natural parity alone.
        graph_attrs: node attributes also depend on the graph, not on the type alone.
        others: as in the stock block.

    Raises:
        ValueError: options outside of the above.
    """

    def __init__(
        self,
        irreps_in,
        irreps_out,
        radial_mlp_depth: int = 1,
        radial_mlp_width: int = 8,
        use_sc: bool = True,
        is_first_layer: bool = False,
        type_names: Optional[Sequence[str]] = None,
        avg_num_neighbors: Optional[Union[float, Dict[str, float]]] = None,
        convolution_rank: int = 1,
        correlation: int = 1,
        parametrization: str = "power",
        product_rank: int = 4,
        product_features: Optional[int] = None,
        selfmix_rank: int = 0,
        product_parity: bool = False,
        antisymmetric: bool = False,
        graph_attrs: bool = False,
    ) -> None:
        super().__init__()
        if convolution_rank < 1:
            raise ValueError(f"convolution_rank must be at least 1, got {convolution_rank!r}")
        check_options(parametrization, correlation, product_rank, antisymmetric, "product_rank")
        embedding = Irreps([(irreps_in[AtomicDataDict.EDGE_EMBEDDING_KEY].num_irreps, (0, 1))])
        self._init_irreps(
            irreps_in=irreps_in,
            required_irreps_in=[
                AtomicDataDict.EDGE_EMBEDDING_KEY,
                AtomicDataDict.EDGE_ATTRS_KEY,
                AtomicDataDict.NODE_FEATURES_KEY,
                AtomicDataDict.NODE_ATTRS_KEY,
            ],
            my_irreps_in={AtomicDataDict.EDGE_EMBEDDING_KEY: embedding},
            irreps_out={AtomicDataDict.NODE_FEATURES_KEY: irreps_out},
        )
        self.is_first_layer = is_first_layer
        self.num_types = len(type_names)
        self.graph_attrs = graph_attrs
        features = self.irreps_in[AtomicDataDict.NODE_FEATURES_KEY]
        irreps_out = self.irreps_out[AtomicDataDict.NODE_FEATURES_KEY]
        edge_attrs = self.irreps_in[AtomicDataDict.EDGE_ATTRS_KEY]

        self.avg_num_neighbors_norm = AvgNumNeighborsNorm(
            avg_num_neighbors=avg_num_neighbors, type_names=type_names
        )
        channels = Irreps([(convolution_rank * mul, ir) for mul, ir in features])
        self.linear_1 = Linear(features, channels)

        wanted = {ir for _, ir in irreps_out}
        natural = [ir for _, ir in edge_attrs]
        products = correlation != 1 or selfmix_rank > 0
        if products:
            wanted |= set(natural)
        self.convolution = GroupedConvolution(
            self.linear_1.irreps_out, edge_attrs, Irreps([(1, ir) for ir in sorted(wanted)])
        )
        self.edge_mlp = ScalarMLPFunction(
            input_dim=embedding.num_irreps,
            output_dim=self.convolution.weight_numel,
            hidden_layers_depth=radial_mlp_depth,
            hidden_layers_width=radial_mlp_width,
            nonlinearity="silu",
            bias=False,
            forward_weight_init=True,
        )
        messages = self.convolution.irreps_out

        self.linear_product, self.selfmix, self.product = None, None, None
        self.product_dims: List[int] = []
        if products:
            channels = product_features
            if channels is None:
                channels = min(mul for mul, _ in irreps_out if mul > 0)
            reached = {ir for _, ir in messages}
            if not product_parity:
                reached &= set(natural)
            # natural parity first, in increasing degree
            product_in = Irreps([(channels, ir) for ir in ordered(reached)])
            self.linear_product = Linear(messages, product_in)
            product_out = product_in
            if selfmix_rank > 0:
                self.selfmix = GauntSelfmix(product_in, selfmix_rank)
            if correlation != 1:
                outputs = {ir for _, ir in irreps_out} & reached
                product_out = Irreps([(channels, ir) for ir in ordered(outputs)])
                self.product = GauntManyBody(
                    product_in,
                    product_out,
                    correlation,
                    self.num_types,
                    parametrization,
                    rank=product_rank,
                    antisymmetric=antisymmetric,
                )
            self.product_dims = [ir.dim for _, ir in product_in]
            messages = messages + product_out
        self.linear_2 = Linear(messages.simplify(), irreps_out)

        self.sc = None
        if use_sc:
            self.sc = ElementLinear(
                features, self.irreps_in[AtomicDataDict.NODE_ATTRS_KEY], irreps_out
            )
        # What is exchanged are the channels of the convolution.
        exchanged = {AtomicDataDict.NODE_FEATURES_KEY: self.linear_1.irreps_out}
        self.ghost_exchange = NoOpGhostExchangeModule(
            field=AtomicDataDict.NODE_FEATURES_KEY, irreps_in={**self.irreps_in, **exchanged}
        )

    @model_modifier(
        persistent=False,
        private=False,
        supported_compile_modes=["aotinductor"],
    )
    @classmethod
    def enable_GauntKernels(cls, model):  # noqa: N802 (as NequIP names modifiers)
        """Let a model call the kernels of ``gaunt build kernels`` or a GPU's, compiled or not.

        Stock blocks get them, too: see :mod:`gaunt_plugin.nequip.stock`. A compiled file then needs
        gaunt_plugin with kernels for its device wherever it is loaded; NequIP imports what it
        needs.
        """
        on_gpu = torch.cuda.is_available() and kernels(torch.device("cuda")) is not None
        if kernels() is None and not on_gpu:
            raise ValueError(
                "enable_GauntKernels needs gaunt_plugin with its CPU kernels here, or a GPU and "
                "triton: run gaunt build kernels (and leave GAUNT_KERNELS=0 away)"
            )
        from gaunt_plugin.nequip.stock import replace_stock

        replace_stock(model)
        operators_in_programs(model)
        for module in model.modules():
            if isinstance(module, cls):
                module._nequip_custom_ops_libs = ("gaunt_plugin.ops",)
        return model

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """The first linear layer."""
        return self.linear_1(x)

    def after(self, x: torch.Tensor) -> torch.Tensor:
        """The last linear layer, of messages."""
        return self.linear_2(x)

    @torch.jit.unused
    def _get_mliap_num_local(self, data: AtomicDataDict.Type) -> int:
        return data[AtomicDataDict.LMP_MLIAP_DATA_KEY].nlocal

    def forward(self, data: AtomicDataDict.Type) -> AtomicDataDict.Type:
        # Ghosts are handled as in the stock block.
        if AtomicDataDict.LMP_MLIAP_DATA_KEY in data:
            num_local = self._get_mliap_num_local(data)
        else:
            num_local = AtomicDataDict.num_nodes(data)
        x = data[AtomicDataDict.NODE_FEATURES_KEY]
        types = data[AtomicDataDict.ATOM_TYPE_KEY].view(-1)
        attrs = data[AtomicDataDict.NODE_ATTRS_KEY]
        if not self.is_first_layer:
            x = x[:num_local]
        old = x

        # e3nn's Linear takes no other dtype than its weights', under autocast neither.
        dtype = self.linear_1.weight.dtype
        data[AtomicDataDict.NODE_FEATURES_KEY] = self.before(x.to(dtype))
        data = self.avg_num_neighbors_norm(data)
        if not self.is_first_layer:
            data = self.ghost_exchange(data, ghost_included=False)
        x = data[AtomicDataDict.NODE_FEATURES_KEY]

        # The radial network's last layer is the convolution's to apply. TorchScript calls no layer
        # of a slice.
        hidden = data[AtomicDataDict.EDGE_EMBEDDING_KEY]
        for i, layer in enumerate(self.edge_mlp.mlp):
            if i + 1 < len(self.edge_mlp.mlp):
                hidden = layer(hidden)
        last = self.edge_mlp.mlp[-1]
        # NequIP's edges are (receiver, sender).
        x = self.convolution(
            x,
            data[AtomicDataDict.EDGE_ATTRS_KEY],
            hidden,
            turned_round(data[AtomicDataDict.EDGE_INDEX_KEY]),
            last.weight * last.alpha,
        )[:num_local]

        if self.linear_product is not None:
            mixed = self.linear_product(x.to(dtype))
            if self.selfmix is not None:
                mixed = self.selfmix(mixed)
            if self.product is not None:
                one_hot = types[:num_local].unsqueeze(1) == torch.arange(
                    self.num_types, device=types.device
                )
                stacked = channels_first(mixed, self.product.channels, self.product_dims)
                mixed = self.product(stacked, one_hot.to(stacked.dtype))
            x = torch.cat([x, mixed], dim=1)
        x = self.after(x.to(dtype))

        if self.sc is not None:
            num_types = self.num_types
            if self.graph_attrs and AtomicDataDict.BATCH_KEY in data:
                types = types + self.num_types * data[AtomicDataDict.BATCH_KEY].view(-1)
                num_types = 0  # as many as graphs times these
            rows = old.shape[0]
            x = x + self.sc(old, attrs[:rows], types[:rows], num_types)[:num_local]
        data[AtomicDataDict.NODE_FEATURES_KEY] = x.to(dtype)
        return data
