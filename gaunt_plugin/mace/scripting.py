"""Parts of MACE's models in another form: gates for TorchScript, linear layers for speed."""

from typing import List, Tuple

from mace.modules.gate import GatedEquivariantBlock

import torch
from e3nn import o3
from e3nn.util.jit import compile_mode

from gaunt_plugin.layers import Linear


@compile_mode("script")
class Gate(GatedEquivariantBlock):
    """MACE's gated non-linearity, written so that TorchScript compiles it.

    Args:
        gate: the block whose results it has.

    Shapes:
        ``[nodes, irreps_in.dim] -> [nodes, irreps_out.dim]``.
    """

    __jit_unused_properties__ = ("irreps_in", "irreps_out")
    _gated_info: List[Tuple[int, int, int, int, int]]

    def __init__(self, gate: GatedEquivariantBlock) -> None:
        super().__init__(
            gate.irreps_scalars,
            [gate._act_scalar] * len(gate.irreps_scalars),
            gate.irreps_gates,
            [gate._act_gate] * len(gate.irreps_gates),
            gate.irreps_gated,
        )
        self.act_scalar = self._act_scalar or torch.nn.Identity()
        self.act_gate = self._act_gate or torch.nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scalars = features[:, self._s_start : self._s_start + self._s_len]
        gates = features[:, self._g_start : self._g_start + self._g_len]
        gates = self.act_gate(gates) * self._gate_cst
        parts = [self.act_scalar(scalars) * self._scalar_cst]
        for start, length, dim, mul, gate in self._gated_info:
            gated = features[:, start : start + length].view(-1, mul, dim)
            parts.append((gated * gates[:, gate : gate + mul].unsqueeze(2)).flatten(1))
        return torch.cat(parts, dim=1)


def replace_gates(model: torch.nn.Module) -> None:
    """Put a :class:`Gate` in the place of each of MACE's gates; results stay the same."""
    for module in list(model.modules()):
        for name, gate in module.named_children():
            if type(gate) is GatedEquivariantBlock:
                setattr(module, name, Gate(gate))


def replace_linears(model: torch.nn.Module) -> None:
    """Put our :class:`~gaunt_plugin.layers.Linear` in the place of each of e3nn's without bias.

    Small operations are most of the time of a small step, and most of those are of linear layers.
    """
    for module in list(model.modules()):
        for name, linear in module.named_children():
            if type(linear) is o3.Linear and linear.bias.numel() == 0:
                replaced = Linear(linear.irreps_in, linear.irreps_out)
                if replaced.instructions == linear.instructions:
                    replaced.weight = linear.weight
                    setattr(module, name, replaced)
