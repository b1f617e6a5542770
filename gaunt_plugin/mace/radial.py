"""The last layer of MACE's radial networks, as a part of the convolution."""

from __future__ import annotations

from typing import Tuple

from mace.modules.radial import RadialMLP

import torch
from e3nn import nn
from e3nn.util.jit import compile_mode


def radial_convolution(
    network: torch.nn.Module, convolution: torch.nn.Module
) -> Tuple[torch.nn.Module, torch.nn.Module]:
    """MACE's radial network without its last layer, and a convolution that has this layer.

    Args:
        network: one of MACE's two kinds, ``FullyConnectedNet`` or ``RadialMLP``; its last layer
            may have any size.
        convolution: a Gaunt convolution.
    """
    widths = list(network.hs[:-1])
    if isinstance(network, RadialMLP):
        hidden = HiddenMLP(network)
        whole = AffineRadialConvolution(convolution, widths[-1])
    else:
        hidden = nn.FullyConnectedNet(widths, torch.nn.functional.silu, out_act=True)
        whole = RadialConvolution(convolution, widths[-1])
    return hidden, whole


@compile_mode("script")
class RadialConvolution(torch.nn.Module):
    """A Gaunt convolution with weights ``hidden @ weight / sqrt(width)``, e3nn's linear layer.

    Compiled kernels then make the weights of a few edges at a time.

    Args:
        convolution: :class:`~gaunt_plugin.layers.AlignedConvolution` or another one.
        width: of the hidden features.

    Shapes:
        As the convolution, with ``hidden [edges, width]`` in the place of weights.
    """

    def __init__(self, convolution: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.weight = torch.nn.Parameter(torch.randn(width, convolution.weight_numel))

    def mixing(self) -> torch.Tensor:
        """``[width, weights]``, of which the weights are the product with the hidden features."""
        return self.weight / self.weight.shape[0] ** 0.5

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        hidden: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        return self.convolution(node_feats, edge_attrs, hidden, edge_index, self.mixing())


class HiddenMLP(torch.nn.Module):
    """All but the last layer of MACE's ``RadialMLP``, and a column of ones for its bias.

    Factors on the result, such as MACE's cutoff, are then factors on weights and bias.

    Shapes:
        ``[edges, inputs] -> [edges, width + 1]``.
    """

    def __init__(self, network: RadialMLP) -> None:
        super().__init__()
        self.net = network.net[:-1]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.net(inputs)
        return torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)


@compile_mode("script")
class AffineRadialConvolution(torch.nn.Module):
    """A Gaunt convolution with weights ``hidden @ [weight, bias]``, torch's linear layer.

    Arguments and shapes: see :class:`RadialConvolution`; ``hidden [edges, width + 1]`` ends with
    ones.
    """

    def __init__(self, convolution: torch.nn.Module, width: int) -> None:
        super().__init__()
        self.convolution = convolution
        last = torch.nn.Linear(width, convolution.weight_numel)
        self.weight = torch.nn.Parameter(last.weight.detach().T.contiguous())
        self.bias = torch.nn.Parameter(last.bias.detach())

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        hidden: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        mixing = torch.cat([self.weight, self.bias.unsqueeze(0)])
        return self.convolution(node_feats, edge_attrs, hidden, edge_index, mixing)
