"""Calls the kernel of :class:`gaunt_plugin.layers.AlignedConvolution`, see convolution.cpp."""

from __future__ import annotations

import numpy as np
import torch

from gaunt_plugin.kernels._call import make_program
from gaunt_plugin.kernels.passes import Kernel
from gaunt_plugin.kernels.radial import NAME


class Part:
    """Irreps of the features or of the output.

    Args:
        dims: ``2l+1`` per irrep.
        entries: where the rows of D of each begin among the entries of an edge; -1: the identity.
        columns: of D, per irrep: orders 0, 1, -1, ... up to the highest.
    """

    # Not dataclasses: they can't be made inside of a package of NequIP.
    def __init__(self, dims: list[int], entries: list[int], columns: list[int]) -> None:
        self.dims, self.entries, self.columns = dims, entries, columns

    def frame(self) -> list[int]:
        """Where the rows of each irrep begin in the frame."""
        return np.cumsum([0, *self.columns]).tolist()

    def program(self) -> list[int]:
        rows = np.cumsum([0, *self.dims]).tolist()
        numbers = [len(self.dims)]
        for irrep in zip(self.dims, rows, self.entries, self.columns, self.frame()):
            numbers += irrep
        return numbers


class ConvolutionKernel:
    """The convolution and its derivatives, float32 or float64 on the CPU.

    Args:
        inputs, outputs: irreps.
        norm: factor of each output.
        entries: numbers of all D of an edge.
        paths: ``(order, output, sources)`` for each order of each output; a source is
            ``(weight, input, turned)``.
    """

    def __init__(
        self,
        inputs: Part,
        outputs: Part,
        norm: list[float],
        entries: int,
        paths: list[tuple[int, int, list[tuple[int, int, bool]]]],
    ) -> None:
        self.dim_out = sum(outputs.dims)
        frame_in, frame_out = inputs.frame(), outputs.frame()
        numbers = [sum(inputs.dims), self.dim_out, frame_in[-1], frame_out[-1], entries]
        numbers.append(sum(len(sources) for *_, sources in paths))
        numbers += inputs.program() + outputs.program() + [len(paths)]
        for m, output, sources in paths:
            column = max(2 * m - 1, 0)
            numbers += [frame_out[output] + column, int(m > 0), len(sources)]
            for weight, source, turned in sources:
                numbers += [weight, frame_in[source] + column, int(turned)]
        self.program = make_program(numbers, norm)

    def on(self, index: torch.Tensor, radial: bool) -> Convolution:
        """With the edges ``[2, edges]``, senders and receivers; radial: with two matrices."""
        return Convolution(self, index, radial)


class Convolution(Kernel):
    """A kernel with its edges."""

    def __init__(self, kernel: ConvolutionKernel, index: torch.Tensor, radial: bool) -> None:
        self.name = NAME if radial else "convolution"
        self.program, self.dim_out, self.index = kernel.program, kernel.dim_out, index

    def shapes(self, x, entries, *weights):
        """``[nodes, dim_out, channels]``.

        Args:
            x: ``[nodes, dim_in, channels]``.
            entries: of D, ``[edges, entries]``.
            weights: ``[edges, paths, channels]``, or two matrices, see radial.py.
        """
        nodes, _, channels = x.shape
        return [nodes, self.index.shape[1], channels], [nodes, self.dim_out, channels]
