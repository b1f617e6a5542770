"""The kernels as operators of torch, for programs: TorchScript, torch.compile, AOTInductor.

:func:`put_into_programs` prepares a model; a program made of it needs the operators ``gaunt::...``
wherever it is loaded. Importing this module registers them in Python; lammps/src/gaunt_ops.cpp does
so in C++.
"""

from __future__ import annotations

import torch

from gaunt_plugin.kernels._call import zeros_like
from gaunt_plugin.kernels.passes import forward, gradient, second


def put_into_programs(model: torch.nn.Module) -> int:
    """Make programs of a model call the kernels on the CPU; returns how many layers do.

    For float32 and float64; elsewhere, and on other devices, they take the plain path as before.
    The model itself is changed only in that.
    """
    count = 0
    for layer in model.modules():
        kernel = layer.make_kernel() if hasattr(layer, "make_kernel") else None
        if kernel is not None:
            device = next(iter(layer.buffers())).device
            layer.register_table("program", kernel.program.numpy())
            layer.to(device)
            layer.kernel_in_programs = True
            count += 1
    return count


def _save(ctx, inputs, output):
    ctx.kernel, program, ctx.sizes, *_, index, arrays = inputs
    ctx.save_for_backward(program, index, *arrays)


def _backward(ctx, g):
    program, index, *arrays = ctx.saved_tensors
    gradients = torch.ops.gaunt.fused_gradient(ctx.kernel, program, ctx.sizes, index, arrays, g)
    return None, None, None, None, None, gradients


def _save_gradient(ctx, inputs, output):
    ctx.kernel, program, ctx.sizes, index, arrays, g = inputs
    ctx.save_for_backward(program, index, g, *arrays)


def _backward_gradient(ctx, v):
    program, index, g, *arrays = ctx.saved_tensors
    v = [torch.zeros_like(a) if t is None else t for t, a in zip(v, arrays)]
    of_g, *gradients = torch.ops.gaunt.fused_second(
        ctx.kernel, program, ctx.sizes, index, arrays, g, v
    )
    return None, None, None, None, gradients, of_g


def _register() -> None:
    common = "str kernel, Tensor program, SymInt[] sizes"

    def op(name, schema, function, fake):
        made = torch.library.custom_op(
            f"gaunt::{name}", function, mutates_args=(), device_types="cpu", schema=schema
        )
        made.register_fake(fake)
        return made

    op(
        "fused",
        f"({common}, SymInt[] shape, Tensor? index, Tensor[] inputs) -> Tensor",
        forward,
        lambda kernel, program, sizes, shape, index, inputs: inputs[0].new_empty(shape),
    ).register_autograd(_backward, setup_context=_save)
    op(
        "fused_gradient",
        f"({common}, Tensor? index, Tensor[] inputs, Tensor g) -> Tensor[]",
        gradient,
        lambda kernel, program, sizes, index, inputs, g: zeros_like(inputs),
    ).register_autograd(_backward_gradient, setup_context=_save_gradient)
    op(
        "fused_second",
        f"({common}, Tensor? index, Tensor[] inputs, Tensor g, Tensor[] v) -> Tensor[]",
        second,
        lambda kernel, program, sizes, index, inputs, g, v: zeros_like([g, *inputs]),
    )


# They may be there: of pair_style gaunt in this process, or of the package around a NequIP package.
if not hasattr(torch.ops.gaunt, "fused"):
    _register()
