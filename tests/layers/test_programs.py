"""TorchScript and torch.compile give the eager result, and need nothing of this package."""

import subprocess
import sys

import pytest
import torch

from ..tolerances import assert_close
from . import cases

# e3nn 0.4.4 can be imported once gaunt_plugin.layers is, through cases.
from e3nn.util import jit  # isort: skip

# Reads scripted layers, runs them forward and backward, in a process that knows only torch.
READ = """
import sys, torch

torch.set_default_dtype(torch.float64)
for path in sys.argv[1:]:
    module = torch.jit.load(path + ".pt")
    arguments, mixture = torch.load(path + ".arguments")
    for a in arguments:
        if a.is_floating_point():
            a.requires_grad_()
    out = module(*arguments)
    wanted = [a for a in arguments if a.is_floating_point()] + list(module.parameters())
    gradients = torch.autograd.grad((out * mixture).sum(), wanted)
    torch.save([out.detach(), *gradients], path + ".results")
bad = [m for m in sys.modules if m.split(".")[0] in ("gaunt_plugin", "e3nn", "scipy")]
assert not bad, bad
"""


@jit.compile_mode("script")
class Model(torch.nn.Module):
    """What a host's model looks like to e3nn's compiler."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer


@jit.compile_mode("script")
class ManyBodyModel(Model):
    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        return self.layer(x, node_attrs)


@jit.compile_mode("script")
class ConvolutionModel(Model):
    def forward(
        self,
        x: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        return self.layer(x, edge_attrs, weights, edge_index)


@jit.compile_mode("script")
class ProductModel(Model):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layer(x, y)


@jit.compile_mode("script")
class ExternalProductModel(Model):
    def forward(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.layer(x, y, weight)


@jit.compile_mode("script")
class SelfmixModel(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def with_e3nn(layer, name):
    if name in cases.CONVOLUTIONS:
        model = ConvolutionModel(layer)
    elif name in cases.PRODUCTS:
        model = (ExternalProductModel if "external" in name else ProductModel)(layer)
    elif name in cases.SELFMIX:
        model = SelfmixModel(layer)
    else:
        model = ManyBodyModel(layer)
    return jit.compile(model, in_place=False)


SCRIPT = {"torch": lambda layer, name: torch.jit.script(layer), "e3nn": with_e3nn}


def assert_same_program(module, layer, arguments):
    expected = cases.value_and_gradients(layer, arguments, layer.parameters())
    results = cases.value_and_gradients(module, arguments, module.parameters())
    for result, value in zip(results, expected, strict=True):
        assert_close(result, value, "program")


@pytest.mark.parametrize("compiler", SCRIPT)
@pytest.mark.parametrize("name", cases.NAMES)
def test_torchscript_equals_eager(name, compiler):
    layer = cases.BUILD[name]()
    module = SCRIPT[compiler](layer, name)
    assert isinstance(module, torch.jit.ScriptModule)
    for nodes, edges in ((6, 10), (3, 7), (6, 10)):  # optimised after the first runs
        arguments = cases.arguments(layer, cases.inputs(layer, nodes, edges))
        assert_same_program(module, layer, arguments)
    if name in cases.CONVOLUTIONS:
        assert module(*cases.arguments(layer, cases.inputs(layer, 2, 0))).shape[0] == 2


def test_torchscript_loads_where_only_torch_is_known(tmp_path):
    expected = {}
    for compiler in SCRIPT:
        for name in cases.NAMES:
            layer = cases.BUILD[name]()
            path = str(tmp_path / f"{compiler} {name}")
            SCRIPT[compiler](layer, name).save(path + ".pt")
            arguments = cases.arguments(layer, cases.inputs(layer))
            results = cases.value_and_gradients(layer, arguments, layer.parameters())
            mixture = torch.cos(torch.arange(results[0].numel(), dtype=torch.float64))
            torch.save((arguments, mixture.view_as(results[0])), path + ".arguments")
            expected[path] = results
    command = [sys.executable, "-c", READ, *expected]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path, values in expected.items():
        for result, value in zip(torch.load(path + ".results"), values, strict=True):
            assert_close(result, value, "program")


@pytest.mark.parametrize("name", cases.NAMES)
def test_torch_compile_has_no_graph_break(name):
    torch.compiler.reset()
    layer = cases.BUILD[name]()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
    assert_same_program(compiled, layer, cases.arguments(layer, cases.inputs(layer)))


@pytest.mark.parametrize("name", ["power", "full", "nested", "gaunt", "aligned", "product mixed"])
def test_torch_compile_serves_all_sizes_with_one_graph(name):
    torch.compiler.reset()
    layer = cases.BUILD[name]()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    # No size is that of another axis, which the compiler would take for the same.
    for nodes, edges in ((17, 41), (13, 37), (19, 53)):
        assert_same_program(
            compiled, layer, cases.arguments(layer, cases.inputs(layer, nodes, edges))
        )
    assert len(graphs) == 1
