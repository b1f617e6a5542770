"""What MACE's blocks need where the channels of features come last."""

from __future__ import annotations

from typing import List

import torch

from gaunt_plugin.layers import LayoutLinear


class FixedLinear(torch.nn.Module):
    """A :class:`LayoutLinear` that isn't trained any more.

    Args:
        linear: the layer; both share no tensors.
    """

    def __init__(self, linear: LayoutLinear) -> None:
        super().__init__()
        self.mixing = linear.mixing
        matrices = [
            torch.nn.Parameter(m.detach(), False) for m in linear.mixing.matrices(linear.weight)
        ]
        self.matrices = torch.nn.ParameterList(matrices)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrices: List[torch.Tensor] = []
        for matrix in self.matrices:
            matrices.append(matrix)
        return self.mixing.mix(x, matrices)


class ChannelsFirst(torch.nn.Module):
    """In place of MACE's reshaping of messages whose channels come last.

    Shapes:
        ``[nodes, components * channels] -> [nodes, channels, components]``.
    """

    def __init__(self, components: int, channels: int) -> None:
        super().__init__()
        self.components, self.channels = components, channels

    def forward(self, messages: torch.Tensor) -> torch.Tensor:
        return messages.view(-1, self.components, self.channels).transpose(1, 2)
