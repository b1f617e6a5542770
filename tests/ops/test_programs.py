"""Programs: TorchScript, torch.compile and make_fx, with the plain form or with the operators."""

import copy
import io

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gaunt_plugin.layers import AlignedConvolution
from gaunt_plugin.ops import edge_sum, operators_in_programs

from ..layers import cases
from ..tolerances import assert_close
from .passes import assert_same, passes
from .test_kernels import CONVOLUTIONS

NAMES = [*CONVOLUTIONS, "power", "paper", "gaps", "nested", "full"]
OPERATORS = ["convolution", "channelwise_convolution", "edge_frames", "polynomials", "powers"]

FORWARD = {f"gaunt.{name}.default" for name in OPERATORS if name != "edge_frames"}


def with_operators(layer):
    layer = copy.deepcopy(layer)
    assert operators_in_programs(layer) > 0
    return layer


def of_floats(module, arguments):
    """The module as a function of the floating-point arguments that it is differentiated in."""

    def function(*floats):
        floats = iter(floats)
        return module(*(next(floats) if varies(a) else a for a in arguments))

    return function


def varies(argument):
    return argument.is_floating_point() and not hasattr(argument, "fixed")


def reloaded(program):
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def calls_of(program):
    """Calls of the operators in a TorchScript program."""
    code = [module.code for module in program.modules() if hasattr(module, "code")]
    return sum(text.count(f"ops.gaunt.{name}(") for text in code for name in OPERATORS)


def case(name):
    layer = cases.BUILD[name]()
    arguments = cases.arguments(layer, cases.inputs(layer))
    if name == "full":  # whose kernel has no gradient of node_attrs
        arguments[1].fixed = True
    return layer, arguments, [a for a in arguments if varies(a)]


@pytest.mark.parametrize("name", NAMES)
def test_torchscript(name, kernels, calls):
    layer, arguments, floats = case(name)
    program = reloaded(torch.jit.script(with_operators(layer)))
    assert calls_of(program) >= 1
    found = passes(of_floats(program, arguments), floats)
    assert {number for _, number in calls} == {0, 1, 2}
    calls.clear()
    plain = reloaded(torch.jit.script(layer))
    assert calls_of(plain) == 0
    assert_same(found, passes(of_floats(plain, arguments), floats))
    assert not calls
    assert_same(found, passes(of_floats(layer, arguments), floats))


@pytest.mark.parametrize(
    "name", ["aligned", "aligned scalar parities", "channelwise", "power", "paper", "full"]
)
def test_compiled_and_traced(name, kernels, calls):
    """Whole graphs, the gradient's kernels in them; without being told they hold none."""
    torch.compiler.reset()
    layer, arguments, floats = case(name)
    layer_with_operators = with_operators(layer)

    def gradients(module, *floats):
        floats = [a.detach().requires_grad_() for a in floats]
        out = of_floats(module, arguments)(*floats)
        return torch.autograd.grad(out.sin().sum(), floats)

    expected = [*cases.value_and_gradients(layer, arguments, []), *gradients(layer, *floats)]
    for module, there in ((layer_with_operators, True), (layer, False)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
        record = make_fx(
            lambda *floats, module=module: gradients(module, *floats),
            tracing_mode="fake",
            _allow_non_fake_inputs=True,
        )
        graph = record(*floats)
        targets = [str(node.target) for node in graph.graph.nodes]
        forward = [t for t in targets if t in FORWARD]
        backward = [t for t in targets if t.startswith("gaunt.") and "_backward" in t]
        assert bool(forward) == bool(backward) == there
        calls.clear()
        found = [*cases.value_and_gradients(compiled, arguments, []), *graph(*floats)]
        assert bool(calls) == there
        assert_same(found, expected)


class Energy(torch.nn.Module):
    """A small potential: a radial network whose last layer the convolution applies, and powers."""

    def __init__(self, product):
        super().__init__()
        channels = 3
        irreps = f"{channels}x0e+{channels}x1o"
        self.convolution = AlignedConvolution(irreps, "0e+1o", irreps)
        self.hidden = torch.nn.Parameter(torch.randn(1, 4))
        self.weight = torch.nn.Parameter(torch.randn(4, self.convolution.weight_numel))
        self.product = cases.GauntManyBody(irreps, irreps, 3, cases.ELEMENTS)
        self.scaled = product
        self.channels = channels

    def forward(
        self,
        x: torch.Tensor,
        vectors: torch.Tensor,
        node_attrs: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        length = vectors.square().sum(1, keepdim=True).sqrt()
        n = vectors / length
        attrs = torch.cat([torch.ones_like(length), 3**0.5 * n], dim=1)
        hidden = torch.tanh(length * self.hidden)
        mixing = self.weight / 4**0.5 if self.scaled else self.weight
        m = self.convolution(x, attrs, hidden, edge_index, mixing)
        scalars = m[:, : self.channels].unsqueeze(2)
        rest = m[:, self.channels :].view(-1, self.channels, 3)
        out = self.product(torch.cat([scalars, rest], dim=2), node_attrs)
        return out.square().sum()


ROADS = {
    "eager": lambda model: model,
    "aot_eager": lambda model: torch.compile(model, backend="aot_eager", dynamic=True),
    "inductor": lambda model: torch.compile(model, backend="inductor", dynamic=True),
    "torchscript": torch.jit.script,
}


@pytest.mark.parametrize("scaled", [False, True], ids=["parameter", "product"])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("road", ROADS)
def test_every_parameter_trains_on_every_road(road, held, scaled, kernels, monkeypatch):
    """On energies, mixing being a parameter or a product; see the hosts' tests for forces."""
    torch.compiler.reset()
    monkeypatch.setattr(edge_sum, "STORED", 0)
    model = Energy(scaled)
    index = torch.randint(5, (2, 12))
    node_attrs = torch.eye(cases.ELEMENTS)[torch.arange(5) % cases.ELEMENTS]
    arguments = torch.randn(5, 12), torch.randn(12, 3), node_attrs, index

    def gradients(module):
        loss = module(*arguments)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    kernels(False)
    expected = gradients(model)
    assert all(g.abs().max() > 0 for g in expected)
    kernels(True)
    operators_in_programs(model, held)
    assert_same(gradients(ROADS[road](model)), expected)


@pytest.mark.parametrize("held", [True, False])
def test_recorded_training_on_forces(held, kernels, monkeypatch):
    """Forces in the forward graph, as NequIP compiles its models; then every parameter."""
    torch.compiler.reset()
    monkeypatch.setattr(edge_sum, "STORED", 0)
    model = Energy(True)
    operators_in_programs(model, held)
    index = torch.randint(5, (2, 12))
    node_attrs = torch.eye(cases.ELEMENTS)[torch.arange(5) % cases.ELEMENTS]
    x, vectors = torch.randn(5, 12), torch.randn(12, 3)
    names = [name for name, _ in model.named_parameters()]

    def forces(vectors, *parameters):
        vectors = vectors.detach().requires_grad_()
        energy = torch.func.functional_call(
            model, dict(zip(names, parameters, strict=True)), (x, vectors, node_attrs, index)
        )
        return torch.autograd.grad(energy, vectors, create_graph=True)[0]

    parameters = list(model.parameters())

    def gradients(function):
        return torch.autograd.grad(function(vectors, *parameters).square().sum(), parameters)

    expected = gradients(forces)
    graph = make_fx(forces, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        vectors, *parameters
    )
    assert any("gaunt." in str(n.target) for n in graph.graph.nodes) == held
    for node in list(graph.graph.nodes):  # of saved tensors: second derivatives go through them
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    assert_same(gradients(graph), expected)
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(graph, backend=backend, dynamic=True)
        assert_same(gradients(compiled), expected)


def test_tables_survive_changes_of_dtype(kernels):
    layer, arguments, _ = case("power")
    changed = with_operators(layer).float().double()
    program = torch.jit.script(changed)
    assert calls_of(program) == 1
    assert_close(program(*arguments), layer.float().double()(*arguments), "program")
    assert layer.state_dict().keys() == changed.state_dict().keys()


def test_without_built_kernels_there_is_a_clear_error(kernels):
    layer, arguments, _ = case("aligned")
    program = torch.jit.script(with_operators(layer))
    kernels(False)
    with pytest.raises(RuntimeError, match="run gaunt build kernels"):
        program(*arguments)


def test_wrong_index_in_a_program(kernels):
    layer, (x, attrs, weights, index), _ = case("aligned")
    program = torch.jit.script(with_operators(layer))
    with pytest.raises(RuntimeError, match="for 6 nodes"):
        program(x, attrs, weights, index + 100)


@pytest.mark.parametrize("name", ["gaunt", "linear"])
def test_layers_without_a_kernel_stay_as_they_are(name):
    layer = cases.BUILD[name]()
    assert operators_in_programs(layer) == 0
    assert calls_of(torch.jit.script(layer)) == 0
