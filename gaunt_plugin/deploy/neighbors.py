"""Edges of moving atoms, from a list of neighbours that is made again only when it must be."""

from __future__ import annotations

import numpy as np
import torch
from vesin import NeighborList


class Edges:
    """All pairs of atoms that are closer than the cutoff, both directions, images included.

    The list reaches a skin further than the cutoff. While no atom has moved more than half the
    skin since it was made, in the same cell, it holds every pair within the cutoff.

    Args:
        cutoff: Å.
        skin: Å; 0 makes a new list whenever an atom moves.
        device: where the edges are wanted.

    Attributes:
        builds: how many lists were made.
    """

    def __init__(self, cutoff: float, skin: float, device: torch.device) -> None:
        if not 0.0 <= skin < float("inf"):
            raise ValueError(f"skin is {skin!r}; it is a length of at least 0 Å")
        self.cutoff, self.skin, self.device = cutoff, skin, device
        self.builds = 0
        self._made_for: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __call__(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Edge vectors [E, 3] in Å and edge index [2, E] of ``contract``, sorted by receiver.

        Args:
            positions: [N, 3], Å, inside of the cell or not.
            cell: [3, 3], a vector per row, Å; those that aren't periodic may be zero.
            pbc: [3], the directions that are periodic.

        Raises:
            ValueError: positions aren't finite, or the cell has no volume along ``pbc``.
        """
        if not self._is_good_for(positions, cell, pbc):
            self._make(positions, cell, pbc)
        points = torch.from_numpy(positions).to(self.device)
        sender, receiver = self._index
        vectors = points.index_select(0, receiver) - points.index_select(0, sender)
        if self._shifts is not None:
            vectors += self._shifts
        near = torch.einsum("ei,ei->e", vectors, vectors) < self.cutoff**2
        kept = near.nonzero().squeeze(1)
        return vectors.index_select(0, kept), self._index.index_select(1, kept)

    def _is_good_for(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if self._made_for is None:
            return False
        before, old_cell, old_pbc = self._made_for
        if before.shape != positions.shape or (cell != old_cell).any() or (pbc != old_pbc).any():
            return False
        moved = positions - before
        farthest = np.einsum("ni,ni->n", moved, moved).max(initial=0.0)
        return bool(farthest <= (self.skin / 2) ** 2)

    def _make(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        self._made_for = None
        if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
            raise ValueError("positions or cell hold values that are not finite")
        if pbc.any() and np.linalg.matrix_rank(cell[pbc]) < pbc.sum():
            raise ValueError(f"periodic along {pbc.tolist()}, but the cell is {cell.tolist()}")
        search = NeighborList(
            cutoff=self.cutoff + self.skin,
            full_list=True,
            sorted=True,
            n_threads=torch.get_num_threads(),
        )
        pairs, shifts = search.compute(positions, cell, pbc, "PS", copy=False)
        # vesin: sorted by the first, and D = r[second] - r[first] + shift · cell
        index = np.array(pairs.T[::-1], dtype=np.int64)
        self._index = torch.from_numpy(index).to(self.device)
        self._shifts = None
        if pbc.any():
            self._shifts = torch.from_numpy(-(shifts @ cell)).to(self.device)
        self._made_for = positions.copy(), cell.copy(), pbc.copy()
        self.builds += 1
