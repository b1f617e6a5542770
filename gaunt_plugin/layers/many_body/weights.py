"""Weights of many-body products, per element."""

from __future__ import annotations

import math

import torch

# Output weights are stored small and used times this gain, so that Adam's step, which has a fixed
# size, moves them as fast as it moves the 1/paths-sized weights of MACE's contraction. 23 is MACE's
# number of paths at lmax 3, correlation 3, l_out 0.
GAIN_OUT = 23.0
GAIN_IN = 10.0  # the same for the weights of the copies in powers; measured


def element_weights(num_elements: int, *shape: int, std: float = 1.0) -> torch.nn.Parameter:
    """Normal weights, one row per element."""
    return torch.nn.Parameter(torch.randn(num_elements, math.prod(shape)) * std)
