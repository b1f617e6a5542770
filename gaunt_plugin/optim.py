r"""Muon: an optimizer that makes models of irreps learn in fewer epochs, for both hosts.

Most weights of such a model are matrices between channels. Adam's step of a matrix has one large
singular value, and the model overshoots along it long before the others have moved. Muon (Jordan
et al. 2024, https://kellerjordan.github.io/posts/muon) sets all singular values of the step equal:

.. math::
    M &\leftarrow \mu M + (1 - \mu) G, \qquad \mu = 0.95 \\
    W &\leftarrow W - 0.2\, \eta \sqrt{\max(u, v)}\;
        U V^T, \qquad U S V^T = \mu M + (1 - \mu) G

for the gradient G of a ``u x v`` matrix and the learning rate :math:`\eta`. An iteration of
Newton and Schulz stands in for the decomposition: singular values come out as 0.7 to 1.2. The
factor 0.2 (Liu et al. 2025, arXiv 2502.16982) gives a step the usual size of Adam's, so that both
share a learning rate.

Weights of many-body products belong to one channel each, as those of embeddings do; these are left
to Adam.

The hosts keep all matrices of a linear layer in one flat tensor, which :class:`torch.optim.Muon`
can't take; here it is taken apart. Matrices with more than 64 rows and 64 columns are cut into
parts of at most so many, each with a step of its own: whole ones would take several times as long.
"""

from __future__ import annotations

import inspect

import torch

from gaunt_plugin.layers import ElementLinear, LayoutLinear

__all__ = ["Muon", "grouped", "matrices_of", "orthogonal", "param_groups"]

# Matrices that lie one after another in a parameter: rows, elements, columns. Weights of different
# elements lie between rows and columns.
Matrices = list[tuple[int, int, int]]

_MOMENTUM = 0.95
_STEP = 0.2
_LARGEST = 64  # rows or columns of a matrix that isn't cut

# Without the wrapper that runs hooks, which torch puts around a class's step: they would run twice.
_adam_step = inspect.unwrap(torch.optim.Adam.step)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Matrices ``[..., u, v]`` with their singular values set to about 1 (0.7 to 1.2).

    Singular values below 1/1000 of the norm stay smaller; zero stays zero.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT).mT
    shape, x = x.shape, x.reshape(-1, *x.shape[-2:])
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-20)
    for _ in range(5):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.view(shape)


def matrices_of(model: torch.nn.Module) -> dict[torch.nn.Parameter, Matrices]:
    """The parameters of a model that are matrices between channels, and which these are.

    Those of linear layers and of radial networks, stock or Gaunt. Not those of embeddings, nor
    weights of many-body products, which belong to one channel each.
    """
    found: dict[torch.nn.Parameter, Matrices] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.nn.Parameter):
            continue
        if isinstance(module, LayoutLinear):
            shapes = [(path[2], 1, path[3]) for path in module.mixing.paths]
        elif isinstance(module, ElementLinear):
            shapes = [(pair[1], module.num_attrs, pair[4]) for pair in module.pairs]
        elif isinstance(module, torch.nn.Linear) or type(module).__name__ in _DENSE:
            shapes = [(weight.shape[0], 1, weight.shape[1])]
        else:
            paths = getattr(module, "instructions", [])
            shapes = [_of_e3nn(path) for path in paths if len(path.path_shape) > 1]  # no biases
        shapes = [shape for shape in shapes if min(shape) > 0]
        if shapes and all(min(u, v) > 1 for u, _, v in shapes):
            found[weight] = shapes
    return found


def _of_e3nn(path) -> tuple[int, int, int]:
    """A path of e3nn's linear layer or fully connected tensor product; of another one no matrix."""
    shape = tuple(path.path_shape)
    if len(shape) == 2:
        return (shape[0], 1, shape[1])
    return shape if getattr(path, "connection_mode", None) == "uvw" else (1, 1, 1)


# Layers of radial networks: e3nn's, NequIP's, and their last ones in Gaunt convolutions.
_DENSE = ("_Layer", "ScalarLinearLayer", "RadialConvolution", "AffineRadialConvolution")


def grouped(model: torch.nn.Module, groups: list[dict], factor: float = 1.0) -> list[dict]:
    """Groups of a model's parameters, each with its matrices.

    Weights of ``full`` products and of MACE's contraction become groups of their own, whose step
    is ``factor`` times as large.
    """
    matrices = matrices_of(model)
    products = {
        parameter
        for module in model.modules()
        if getattr(module, "parametrization", None) == "full"
        or type(module).__name__ == "SymmetricContraction"
        for parameter in module.parameters()
    }
    found = []
    for group in groups:
        parameters = list(group["params"])
        # Those of MACE's embeddings belong to elements, not to channels.
        known = {} if "embedding" in group.get("name", "") else matrices
        for of_products, step in ((False, 1.0), (True, factor)):
            part = [p for p in parameters if (p in products) == of_products]
            if part:
                entries = [known.get(parameter) for parameter in part]
                found.append({**group, "params": part, "matrices": entries, "factor": step})
    return found


def param_groups(model: torch.nn.Module) -> list[dict]:
    """What :class:`Muon` takes as parameters; NequIP calls it if a config names it."""
    return grouped(model, [{"params": model.parameters()}])


class Muon(torch.optim.Adam):
    """Muon for matrices between channels, Adam for all other parameters.

    Args:
        params: groups of parameters with an entry ``matrices``, see :func:`param_groups`.
        lr: learning rate, for both.
        betas, eps, amsgrad: of Adam.
        weight_decay: of Adam; of matrices decoupled, ``W <- (1 - lr weight_decay) W``.

    Raises:
        ValueError: groups that don't say which matrices there are.
    """

    def __init__(
        self,
        params,
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        params = list(params)
        if not all(isinstance(group, dict) and "matrices" in group for group in params):
            raise ValueError(
                "Muon has to know which matrices the parameters hold: give it "
                "gaunt_plugin.optim.param_groups(model); in a config of NequIP, "
                "param_groups: {_target_: gaunt_plugin.optim.param_groups}"
            )
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad
        )

    def summary(self) -> str:
        """How many weights are in matrices, for logs."""
        weights = [
            (parameter.numel(), shapes is not None)
            for group in self.param_groups
            for parameter, shapes in zip(group["params"], group["matrices"])
        ]
        matrices = sum(number for number, is_matrix in weights if is_matrix)
        total = sum(number for number, _ in weights)
        return f"Muon for the {matrices} weights in matrices, Adam for {total - matrices} others"

    @torch.no_grad()
    def step(self, closure=None):
        """One step; ``closure`` computes the loss and its gradients, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = [
            (group, parameter, shapes)
            for group in self.param_groups
            for parameter, shapes in zip(group["params"], group["matrices"])
            if shapes is not None and parameter.grad is not None
        ]
        self._step_matrices(matrices)
        gradients = [parameter.grad for _, parameter, _ in matrices]
        for _, parameter, _ in matrices:
            parameter.grad = None  # Adam leaves them alone
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates):
            group["lr"] = rate * group["factor"]
        _adam_step(self)
        for group, rate in zip(self.param_groups, rates):
            group["lr"] = rate
        for (_, parameter, _), gradient in zip(matrices, gradients):
            parameter.grad = gradient
        return loss

    def _step_matrices(self, matrices: list[tuple[dict, torch.nn.Parameter, Matrices]]) -> None:
        # Parts of one size are one stack: small products by themselves would be slow.
        stacks: dict[tuple, list[tuple[float, torch.Tensor, torch.Tensor]]] = {}
        for group, parameter, shapes in matrices:
            state = self.state[parameter]
            if "momentum" not in state:
                state["step"] = torch.tensor(0.0)  # Adam expects one in each state
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
            update = parameter.grad.lerp(state["momentum"], _MOMENTUM)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            for target, part in zip(_parts(parameter, shapes), _parts(update, shapes)):
                key = (*target.shape[-2:], target.dtype, target.device)
                stacks.setdefault(key, []).append((group["lr"], target, part))
        for (u, v, *_), entries in stacks.items():
            parts = torch.cat([part.reshape(-1, u, v).float() for _, _, part in entries])
            steps = orthogonal(parts).split([part[..., 0, 0].numel() for _, _, part in entries])
            for (lr, target, _), step in zip(entries, steps):
                scale = _STEP * lr * max(u, v) ** 0.5
                target.sub_(scale * step.view(target.shape).to(target.dtype))


def _parts(flat: torch.Tensor, shapes: Matrices) -> list[torch.Tensor]:
    """Views ``[elements, parts, parts, u, v]`` of the matrices, cut where they are large."""
    sizes = [u * elements * v for u, elements, v in shapes]
    views = []
    for part, (u, elements, v) in zip(flat.view(-1).split(sizes), shapes):
        small = min(u, v) <= _LARGEST
        rows, columns = (u, v) if small else (_part(u), _part(v))
        part = part.view(u // rows, rows, elements, v // columns, columns)
        views.append(part.permute(2, 0, 3, 1, 4))
    return views


def _part(size: int) -> int:
    """The largest part that divides a size, or all of it if that would be small."""
    part = next(n for n in range(min(size, _LARGEST), 0, -1) if size % n == 0)
    return part if part >= _LARGEST // 4 else size
