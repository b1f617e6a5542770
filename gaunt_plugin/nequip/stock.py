"""NequIP's own interaction blocks on our kernels, with the same numbers and the same state dict."""

from __future__ import annotations

import torch

from gaunt_plugin.layers import (
    ChannelsLastConvolution,
    ChannelwiseConvolution,
    ElementLinear,
    LayoutMixing,
)
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
        self.mix_before = LayoutMixing(self.linear_1, False, True)
        self.mix_after = LayoutMixing(self.linear_2, True, False)
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
