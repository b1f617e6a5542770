"""Constant tables that stay exact through dtype changes, copies and pickling."""

from __future__ import annotations

import math

import numpy as np
import torch

from gaunt_plugin.sphere import degree_of_component

# Output weights are stored small and used times this gain, so that Adam's step, which has a fixed
# size, moves them as fast as it moves the 1/paths-sized weights of MACE's contraction. 23 is MACE's
# number of paths at lmax 3, correlation 3, l_out 0.
GAIN_OUT = 23.0
GAIN_IN = 10.0  # the same for the weights of the copies in powers; measured


def repeat_matrix(degrees: tuple[int, ...], factors: list[float] | None = None) -> np.ndarray:
    """Matrix ``[degrees, components]``: a number per degree, times a factor, for each of its m."""
    diagonal = np.diag(factors) if factors is not None else np.eye(len(degrees))
    return diagonal[:, degree_of_component(degrees)]


def element_weights(num_elements: int, *shape: int, std: float = 1.0) -> torch.nn.Parameter:
    """Normal weights, one row per element."""
    return torch.nn.Parameter(torch.randn(num_elements, math.prod(shape)) * std)


class TableModule(torch.nn.Module):
    """Module whose constant tables are rebuilt from float64 whenever its tensors are cast.

    ``model.float().double()`` would otherwise leave tables rounded to float32. Tables are
    non-persistent buffers: a state dict holds weights only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[str, np.ndarray] = {}

    def register_table(self, name: str, values: np.ndarray) -> None:
        """Register ``values`` as the buffer ``name``; integers are indices, int64."""
        indices = np.issubdtype(np.asarray(values).dtype, np.integer)
        self._tables[name] = np.ascontiguousarray(values, np.int64 if indices else np.float64)
        dtype = torch.int64 if indices else torch.get_default_dtype()
        table = torch.tensor(self._tables[name], dtype=dtype)
        self.register_buffer(name, table, persistent=False)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        for name, values in self._tables.items():
            table = self._buffers[name]
            # Meta tensors have no values to restore.
            if table.device.type != "meta":
                self._buffers[name] = torch.tensor(values, dtype=table.dtype, device=table.device)
        return self
