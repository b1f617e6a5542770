"""NequIP's own interaction blocks on our kernels, with the same numbers and the same state dict."""

from __future__ import annotations

from typing import List

import torch

from gaunt_plugin.layers import (
    ChannelsLastConvolution,
    ChannelwiseConvolution,
    ElementLinear,
)
from gaunt_plugin.layers.irreps import mix_channels
from gaunt_plugin.nequip.interaction import GauntInteractionBlock


class StockInteractionBlock(GauntInteractionBlock):
    """What an :class:`nequip.nn.InteractionBlock` computes, with the convolution of its paths.

    Args:
        block: the stock block, of any copy of NequIP's code; this one takes over its modules.
        num_types: of atoms.
        graph_attrs: node attributes also depend on the graph, not on the type alone.

    Raises:
        ValueError: a block whose tensor product isn't NequIP's.
    """

    # The one of the base class itself: NequIP wants one function of a name.
    enable_GauntKernels = GauntInteractionBlock.enable_GauntKernels  # noqa: N815

    def __init__(self, block: torch.nn.Module, num_types: int, graph_attrs: bool) -> None:
        torch.nn.Module.__init__(self)
        self._init_irreps(irreps_in=block.irreps_in, irreps_out=block.irreps_out)
        self.is_first_layer = block.is_first_layer
        self.num_types, self.graph_attrs = num_types, graph_attrs
        for name, child in block.named_children():
            self.add_module(name, child)
        weight = self.linear_1.weight
        convolution = ChannelwiseConvolution.from_tensor_product(self.tp_scatter.tp)
        self.convolution = ChannelsLastConvolution(convolution.to(weight.device, weight.dtype))
        self.mix_before = ChannelsLastLinear(self.linear_1, False, True)
        self.mix_after = ChannelsLastLinear(self.linear_2, True, False)
        self.linear_product, self.selfmix, self.product = None, None, None
        self.product_dims = []
        if block.sc is None:
            self.sc = None
        else:
            self.sc = _element_linear(block.sc)
        self.train(block.training)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix_before(x, self.linear_1.weight)

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix_after(x, self.linear_2.weight)


class ChannelsLastLinear(torch.nn.Module):
    """What an e3nn ``Linear`` computes, for features whose channels may come last.

    Args:
        linear: the layer; each irrep is in one place before and after it.
        last_in, last_out: whether the numbers of an irrep lie as ``[components, channels]``.

    Shapes:
        ``x [nodes, irreps_in.dim]`` and the layer's weight -> ``[nodes, irreps_out.dim]``.

    Raises:
        ValueError: another layer, or one with a bias.
    """

    def __init__(self, linear: torch.nn.Module, last_in: bool, last_out: bool) -> None:
        super().__init__()
        self.last_in, self.last_out = last_in, last_out
        irreps_out = linear.irreps_out
        self.widths: List[int] = [mul * ir.dim for mul, ir in linear.irreps_in]
        self.muls: List[int] = [mul for mul, _ in irreps_out]
        self.dims: List[int] = [ir.dim for _, ir in irreps_out]
        self.numels: List[int] = [p.path_shape[0] * p.path_shape[1] for p in linear.instructions]
        self.factors: List[float] = [float(path.path_weight) for path in linear.instructions]
        # Per irrep of the result its path, which is a pair of irreps and a factor; or -1.
        places = [path.i_out for path in linear.instructions]
        if len(set(places)) != len(places) or linear.bias.numel() > 0:
            raise ValueError(f"{linear} isn't one of NequIP's: irreps in several places, or a bias")
        self.paths: List[int] = [
            places.index(k) if k in places else -1 for k in range(len(irreps_out))
        ]
        self.sources: List[int] = [
            linear.instructions[path].i_in if path >= 0 else -1 for path in self.paths
        ]

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        weights = weight.split(self.numels)
        matrices: List[torch.Tensor] = []
        for mul, path in zip(self.muls, self.paths):
            if path < 0:
                matrices.append(weight.new_empty([0, mul]))
            else:
                matrices.append(self.factors[path] * weights[path].view(-1, mul))
        return mix_channels(
            x, matrices, self.sources, self.dims, self.widths, self.last_in, self.last_out
        )


def _element_linear(product: torch.nn.Module) -> ElementLinear:
    """A ``FullyConnectedTensorProduct`` with node attributes, with its parameter and its state."""
    linear = ElementLinear(
        str(product.irreps_in1), str(product.irreps_in2), str(product.irreps_out)
    )
    linear.weight = product.weight
    for name, child in product.named_children():
        linear.add_module(name, child)
    for name, buffer in product.named_buffers(recurse=False):
        linear.register_buffer(name, buffer)
    return linear


def is_stock(module: torch.nn.Module) -> bool:
    """Whether it is NequIP's block; models of packages have classes of their own."""
    cls = type(module)
    return cls.__name__ == "InteractionBlock" and cls.__module__.endswith(
        "nequip.nn.interaction_block"
    )


def replace_stock(model: torch.nn.Module) -> None:
    """Put a :class:`StockInteractionBlock` in the place of each stock block."""
    embeddings = [m for m in model.modules() if type(m).__name__ == "NodeTypeEmbed"]
    graph_attrs = any(m.do_categorical_graph_field_embed for m in embeddings)
    num_types = embeddings[0].num_types if embeddings else 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_stock(child):
                parent._modules[name] = StockInteractionBlock(child, num_types, graph_attrs)


def offer(model: torch.nn.Module) -> None:
    """Let NequIP find the modifier ``enable_GauntKernels`` in a model that has stock blocks."""
    stock = {type(module) for module in model.modules() if is_stock(module)}
    # A packaged model may have Gaunt blocks, too: NequIP wants one function of a name.
    found = [m.enable_GauntKernels for m in model.modules() if hasattr(m, "enable_GauntKernels")]
    modifier = found[0] if found else GauntInteractionBlock.enable_GauntKernels
    for cls in stock:
        if not hasattr(cls, "enable_GauntKernels"):
            cls.enable_GauntKernels = modifier
