"""The convolution with weights that are products of matrices, ``w = hidden @ mixing``.

That is the last layer of a radial network. All weights at once would be most of what a step of
training holds, and writing them takes longer than the product: here a block of edges is made at a
time, again in each pass, and stays in the cache.
"""

from __future__ import annotations

import torch

from gaunt_plugin.kernels import _call
from gaunt_plugin.kernels._call import zeros_like

NAME = "radial_convolution"  # inputs: x, D, hidden [edges, k], mixing [k, paths * channels]
STORED = 1 << 22  # fewer weights than these may be stored: making them again takes longer
_BLOCK = 1 << 19  # weights per block and thread


def _blocks(sizes, index, hidden, mixing, arrays):
    """Per block its edges, sizes and index, and that many arrays for its weights."""
    nodes, edges, channels = sizes
    rows = max(1, torch.get_num_threads() * _BLOCK // max(1, mixing.shape[1]))
    buffers = hidden.new_empty(arrays, min(rows, edges), mixing.shape[1])
    for begin in range(0, edges, rows):
        block = slice(begin, min(begin + rows, edges))
        count = block.stop - begin
        yield block, [nodes, count, channels], index[:, block], buffers[:, :count]


def forward(program, sizes, shape, index, inputs):
    """As :func:`gaunt_plugin.kernels.passes.forward`."""
    x, entries, hidden, mixing = inputs
    out = x.new_zeros(shape)
    for block, *edges, [w] in _blocks(sizes, index, hidden, mixing, 1):
        torch.mm(hidden[block], mixing, out=w)
        _call.call("convolution", program, *edges, [x, entries[block], w], [out])
    return out


def gradient(program, sizes, index, inputs, g, needs_mixing):
    """As :func:`gaunt_plugin.kernels.passes.gradient`."""
    x, entries, hidden, mixing = inputs
    of_x, of_entries, of_hidden, of_mixing = out = zeros_like(inputs)
    for block, *edges, [w, of_w] in _blocks(sizes, index, hidden, mixing, 2):
        torch.mm(hidden[block], mixing, out=w)
        of_block = [of_x, of_entries[block], of_w]
        _call.call("convolution", program, *edges, [x, entries[block], w, g], of_block)
        torch.mm(of_w, mixing.t(), out=of_hidden[block])
        if needs_mixing:
            of_mixing.addmm_(hidden[block].t(), of_w)
    return out


def second(program, sizes, index, inputs, g, v):
    """As :func:`gaunt_plugin.kernels.passes.second`."""
    x, entries, hidden, mixing = inputs
    vx, v_entries, v_hidden, v_mixing = v
    of_g, of_x, of_entries, of_hidden, of_mixing = out = zeros_like([g, *inputs])
    along_mixing = bool(v_mixing.any())
    for block, *edges, [w, vw, of_w, of_vw] in _blocks(sizes, index, hidden, mixing, 4):
        torch.mm(hidden[block], mixing, out=w)
        torch.mm(v_hidden[block], mixing, out=vw)
        if along_mixing:
            vw.addmm_(hidden[block], v_mixing)
        arguments = [x, entries[block], w, g, vx, v_entries[block], vw]
        of_arguments = [of_g, of_x, of_entries[block], of_w, of_vw]
        _call.call("convolution", program, *edges, arguments, of_arguments)
        torch.mm(of_w, mixing.t(), out=of_hidden[block])
        of_mixing.addmm_(hidden[block].t(), of_w).addmm_(v_hidden[block].t(), of_vw)
        if along_mixing:
            of_hidden[block].addmm_(of_vw, v_mixing.t())
    return out
