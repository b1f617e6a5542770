"""Operations of the layers: a plain form in torch, and operators with compiled kernels.

Layers call an operation; it alone decides what runs.

* :class:`EdgeFrames`, :class:`EdgeConvolution`, :class:`PathConvolution`, :class:`Powers`,
  :class:`Polynomials`: with operators ``gaunt::...`` (``_operator``: schema, shapes, derivatives,
  ``vmap``, autocast), whose kernels lie in ``cpu`` and ``cuda``
* :class:`ProjectedPowers` and others without a kernel: ``checkpointing`` makes their intermediates
  again in every pass

A kernel for another device is one more implementation of the operators
``gaunt::NAME``, ``gaunt::NAME_backward`` and ``gaunt::NAME_double_backward``.
"""

from gaunt_plugin.ops._operator import INTERFACE
from gaunt_plugin.ops.channelwise_convolution import PathConvolution
from gaunt_plugin.ops.convolution import EdgeConvolution
from gaunt_plugin.ops.edge_frames import EdgeFrames
from gaunt_plugin.ops.operation import operators_in_programs
from gaunt_plugin.ops.polynomials import Polynomials
from gaunt_plugin.ops.powers import Powers, ProjectedPowers

__all__ = [
    "INTERFACE",
    "EdgeConvolution",
    "EdgeFrames",
    "PathConvolution",
    "Polynomials",
    "Powers",
    "ProjectedPowers",
    "operators_in_programs",
]

# Saved models name their classes. These names stay, whatever file a class lives in.
for _class in (
    EdgeConvolution,
    EdgeFrames,
    PathConvolution,
    Polynomials,
    Powers,
    ProjectedPowers,
):
    _class.__module__ = __name__
