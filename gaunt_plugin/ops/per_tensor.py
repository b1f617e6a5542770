"""What is made once from a tensor, such as the order of a graph's edges for all layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.weak import WeakIdKeyDictionary


class PerTensor:
    """What is made from a tensor and hashable arguments, kept while the tensor lives.

    A change of the tensor in place is noticed by its version. Nothing is kept of inference
    tensors, which have none.
    """

    def __init__(self, make: Callable) -> None:
        self.make = make
        self.kept = WeakIdKeyDictionary()

    def __call__(self, tensor: torch.Tensor, *arguments):
        if tensor.is_inference():
            return self.make(tensor, *arguments)
        version, made = self.kept.get(tensor, (None, None))
        if version != tensor._version:
            version, made = tensor._version, {}
            self.kept[tensor] = version, made
        if arguments not in made:
            made[arguments] = self.make(tensor, *arguments)
        return made[arguments]
