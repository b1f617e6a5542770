"""Constant tables that stay exact through dtype changes, copies and pickling."""

from __future__ import annotations

import numpy as np
import torch


class TableModule(torch.nn.Module):
    """Module whose constant tables are made again from float64 whenever its tensors are cast.

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


def repeat_matrix(degrees: tuple[int, ...], factors: list[float] | None = None) -> np.ndarray:
    """Matrix ``[degrees, components]``: a number per degree, times a factor, for each of its m."""
    diagonal = np.diag(factors) if factors is not None else np.eye(len(degrees))
    return diagonal[:, np.repeat(np.arange(len(degrees)), [2 * l + 1 for l in degrees])]


def pack(numbers: list[int], values: list[float]) -> np.ndarray:
    """Integers and float64 values in one array of integers, which no change of dtype touches.

    First how many integers, then these, then the bits of the values: the constants of operators.h.
    """
    bits = np.array(values, dtype=np.float64).view(np.int64)
    return np.concatenate([[len(numbers)], numbers, bits]).astype(np.int64)


def unpack(constants: torch.Tensor) -> tuple[list[int], list[float]]:
    """Inverse of :func:`pack`."""
    array = constants.cpu().numpy()
    split = 1 + int(array[0])
    return array[1:split].tolist(), array[split:].view(np.float64).tolist()
