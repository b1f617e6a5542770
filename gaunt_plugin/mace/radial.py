"""The last layer of MACE's radial network, as a part of the convolution."""

from __future__ import annotations

import torch
from e3nn import nn
from e3nn.util.jit import compile_mode


def hidden_network(widths: list[int], numel: int) -> nn.FullyConnectedNet:
    """MACE's radial network without its last layer, which :class:`RadialConvolution` has."""
    network = nn.FullyConnectedNet(widths, torch.nn.functional.silu, out_act=True)
    network.hs.append(numel)  # MACE reads there how models were made
    return network


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

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        hidden: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        mixing = self.weight / self.weight.shape[0] ** 0.5
        return self.convolution(node_feats, edge_attrs, hidden, edge_index, mixing)
