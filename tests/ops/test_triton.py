"""Triton kernels against the plain forms: in Triton's interpreter, and on a GPU if there is one.

Both ways go through the same operators and the same Python; only what runs a kernel differs.
"""

import gc

import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution
from gaunt_plugin.layers.many_body.full import Full
from gaunt_plugin.ops import EdgeFrames, Polynomials, cuda, edge_sum
from gaunt_plugin.ops.cuda import (
    channelwise_convolution,
    edge_sums,
    groups,
    launch,
    polynomials,
    tuning,
)
from gaunt_plugin.ops.tables import unpack

from ..layers import cases
from ..tolerances import assert_close
from .passes import assert_same, derivatives, passes
from .test_kernels import POWERS, many_body, of_all
from .test_operators import (
    SAMPLES,
    assert_only_what_is_needed,
    samples,
    three_operators,
    wrong,
)

pytest.importorskip("triton", reason="triton is not installed")

# What the two convolutions share is tested for one of them.
SAMPLES = [name for name in SAMPLES if name != "channelwise_convolution, mixing"]
KIND = {torch.float64: "program", torch.float32: "program32"}


def convolution_of(irreps_in, irreps_out, channels, dtype, way, nodes=4):
    """A layer, its floating-point inputs and the edges; nothing arrives at one of the nodes."""
    edges = 2 if "3o" in irreps_out and "1o" in irreps_in else 7  # the interpreter is slow
    many = lambda irreps: "+".join(f"{channels}x{ir}" for ir in irreps.split("+"))  # noqa: E731
    layer = AlignedConvolution(many(irreps_in), "0e+1o+2e+3o", many(irreps_out))
    inputs = cases.inputs(layer, nodes=nodes, edges=edges)
    x, attrs, weights, index = cases.arguments(layer, inputs)
    index = index.clone()
    index[1, index[1] == 2] = 3
    layer = layer.to(way.name, dtype)
    return layer, [t.to(way.name, dtype) for t in (x, attrs, weights)], index.to(way.name)


PARITIES = ("0e+1o+1e", "0e+0o+1o+1e+2e", 3)
CONVOLUTIONS = [
    ("0e", "0e+1o+2e+3o", 3),
    ("0e+0o", "0e+1o+1e+2e", 17),
    ("0e+1o", "0e+1o", 1),
    ("0e+1o", "0e+1o", 33),
    ("0e+1o+2e+3o", "0e+1o+2e+3o", 1),
    ("0e+1o+2e", "0e+1o+2e+3o", 3),
    ("1o+2e", "0e+2e", 17),
    PARITIES,
    ("0e+1o", "0e+1o", 70),
]


def in_both(cases, in_float32):
    """Cases with their dtype; the interpreter takes long for large ones."""
    return [
        *((case, torch.float64) for case in cases),
        *((case, torch.float32) for case in in_float32),
    ]


@pytest.mark.parametrize(("case", "dtype"), in_both(CONVOLUTIONS, CONVOLUTIONS[:4]), ids=str)
def test_convolution(case, dtype, way):
    layer, inputs, index = convolution_of(*case, dtype, way)
    way.same(lambda *t: layer(*t, index), inputs, KIND[dtype])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("case", "dtype"), in_both([CONVOLUTIONS[0], PARITIES], [CONVOLUTIONS[2]]), ids=str
)
def test_mixing(case, dtype, parts, way, monkeypatch):
    """Weights that are a product are made for a part of the edges at a time."""
    layer, (x, attrs, weights), index = convolution_of(*case, dtype, way)
    monkeypatch.setattr(edge_sum, "STORED", 0)
    monkeypatch.setattr(edge_sums, "MADE", -(-weights.numel() // parts))
    hidden = torch.randn(len(weights), 3, device=way.name, dtype=dtype)
    mixing = torch.randn(3, weights.shape[1], device=way.name, dtype=dtype)
    run = lambda x, attrs, hidden, mixing: layer(x, attrs, hidden, index, mixing)  # noqa: E731
    way.same(run, [x, attrs, hidden, mixing], KIND[dtype])


# Features, harmonics and results; channels of each irrep.
APART = [
    ("0e", "0e+1o+2e+3o", "0e+1o+2e+3o", [3]),
    ("0e+1o", "0e+1o", "0e+1o", [33, 2]),
    ("0e+0o+1o+1e", "0e+1o", "0e+0o+1o+1e", [1, 2, 17, 5]),
    ("2e+0o", "1o", "1o+2o+1e", [2, 3]),
]


def paths_of(irreps_in, harmonics, irreps_out, channels, dtype, way):
    """A layer, its floating-point inputs and the edges; nothing arrives at one of the nodes."""
    irs = irreps_in.split("+")
    many = "+".join(f"{channels[i % len(channels)]}x{ir}" for i, ir in enumerate(irs))
    layer = cases.channelwise(many, harmonics, irreps_out)
    x, attrs, weights, index = cases.arguments(layer, cases.inputs(layer, nodes=4, edges=7))
    index = index.clone()
    index[1, index[1] == 2] = 3
    layer = layer.to(way.name, dtype)
    return layer, [t.to(way.name, dtype) for t in (x, attrs, weights)], index.to(way.name)


@pytest.mark.parametrize(("case", "dtype"), in_both(APART, APART[:2]), ids=str)
def test_channelwise_convolution(case, dtype, way):
    layer, inputs, index = paths_of(*case, dtype, way)
    way.same(lambda *t: layer(*t, index), inputs, KIND[dtype])


def test_paths_in_several_kernels(way, monkeypatch):
    monkeypatch.setattr(channelwise_convolution, "SUMMED", 4)
    monkeypatch.setattr(edge_sums, "FEW", 6)
    channelwise_convolution.layer_of.cache_clear()
    layer, inputs, index = paths_of("0e+1o", "0e+1o+2e", "0e+1o", [3, 2], torch.float64, way)
    way.same(lambda *t: layer(*t, index), inputs, "program")
    channelwise_convolution.layer_of.cache_clear()


ROWS = {
    "scalars": lambda *a: convolution_of("0e", "0e+1o", 5, *a),
    "parities": lambda *a: convolution_of("0e+1o+1e", "0e+1o+1e", 2, *a),
    "apart": lambda *a: paths_of("0e+1o", "0e+1o", "0e+1o", [3, 2], *a),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("name", "factors"), [("scalars", 4), ("parities", 2), ("apart", 1)])
def test_rows_of_a_table(name, factors, trained, way, monkeypatch):
    """The weights of an edge are a few factors times rows of a table, trained or not."""
    layer, (x, attrs, weights), index = ROWS[name](torch.float64, way)
    monkeypatch.setattr(edge_sums, "MADE", 4 * weights.shape[1])
    rows = torch.randint(0, 9 - factors, (len(weights),), device=way.name)
    hidden = torch.randn(len(weights), factors, device=way.name)
    table = torch.randn(8, weights.shape[1], device=way.name)
    if trained:
        run = lambda x, attrs, hidden, t: layer(x, attrs, hidden, index, t, rows)  # noqa: E731
        way.same(run, [x, attrs, hidden, table], "program")
    else:
        run = lambda *t: layer(*t, index, table, rows)  # noqa: E731
        way.same(run, [x, attrs, hidden], "program")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device would be lost for other tests")
@pytest.mark.parametrize("change", [-1, 1])
def test_rows_out_of_range(change, way):
    x, D, w, mixing, index, rows, *rest = moved(samples()["convolution, rows"], way)
    with pytest.raises(RuntimeError, match="rows has an index out of range for 5 of 8 rows"):
        torch.ops.gaunt.convolution(x, D, w, mixing, index, rows + change, *rest)


# irreps, correlation, channels, nodes
POLYNOMIALS = {
    "order 3": ("0e+1o", "0e+1o", 3, 5, 2),
    "gaps": ("1o", "0e+2e", 2, 33, 3),
    "order 1": ("0e+1o", "1o", 1, 2, 2),
    "one channel": ("0e+2e", "0e", 2, 1, 5),
    "no nodes": ("0e+1o", "0e", 2, 3, 0),
    "40 channels": ("0e+1o", "1o", 2, 40, 2),
}


@pytest.mark.parametrize(("name", "dtype"), in_both(POLYNOMIALS, ["gaps", "one channel"]), ids=str)
def test_polynomials(name, dtype, way):
    layer, x, weights, attrs = cubic(name, dtype, way)
    way.same(lambda *t: layer(*t, attrs), [x, weights], KIND[dtype])


def cubic(name, dtype, way):
    """The operation and its arguments; nodes are mixtures of two elements."""
    irreps_in, irreps_out, correlation, channels, nodes = POLYNOMIALS[name]
    functions = [
        [(int(ir[:-1]), False) for ir in irreps.split("+")] for irreps in (irreps_in, irreps_out)
    ]
    full = Full(*functions, channels, 2, max(2, correlation))
    full.complete(*functions, channels, correlation)
    layer = full.polynomials.to(way.name, dtype)
    terms = Polynomials.arguments(*unpack(layer.constants))[2]
    x = torch.randn(nodes, channels, sum(2 * l + 1 for l, _ in functions[0]))
    arguments = x, torch.randn(2, channels, terms), torch.rand(nodes, 2)
    return layer, *(t.to(way.name, dtype) for t in arguments)


def test_weights_and_nodes_in_several_parts(way, monkeypatch):
    monkeypatch.setattr(polynomials, "ROWS", (20, 10, 5))
    monkeypatch.setattr(polynomials, "MADE", 1)
    layer, x, weights, attrs = cubic("order 3", torch.float64, way)
    polynomials.layer_of.cache_clear()
    assert len(polynomials.layer_of(*map(tuple, unpack(layer.constants))).parts(2)) > 2
    way.same(lambda *t: layer(*t, attrs), [x, weights], "program")
    polynomials.layer_of.cache_clear()


FRAMES = [(0, 0), (1, 0), (1, 1), (2, 1), (3, 2), (3, 3)]


@pytest.mark.parametrize(("degrees", "dtype"), in_both(FRAMES, FRAMES), ids=str)
def test_edge_frames(degrees, dtype, way):
    lmax, mmax = degrees
    frames = EdgeFrames(lmax, mmax).to(way.name, dtype)
    directions = torch.nn.functional.normalize(torch.randn(13, 3), dim=1)
    directions[:3] = torch.tensor([[0.0, 1, 0], [0, -1, 0], [0, 0, 0]])  # poles, no direction
    directions = directions.to(way.name, dtype)
    if lmax > 0:
        way.same(frames, [directions], KIND[dtype])
    else:
        assert_close(frames(directions), torch.ones(13, 1), "exact")
        assert way.calls == [("edge_frames", 0)]


@pytest.mark.parametrize(("name", "dtype"), in_both(POWERS, ["rank 1", "paper"]), ids=str)
def test_powers(name, dtype, way):
    terms, x, node_attrs = (part.to(way.name, dtype) for part in many_body(name))
    way.same(lambda *_: None, (), KIND[dtype], lambda *_: of_all(terms, x, node_attrs))


@pytest.mark.parametrize("channels", [1, 3, 17, 33])
@pytest.mark.parametrize("weighted", [True, False])
def test_powers_of_any_number_of_channels(channels, weighted, way):
    from gaunt_plugin.ops import Powers

    powers = Powers([0, 1, 2], [0, 1], weighted, [1.0, 0.5, 0.3], [[1.0, 0.0], [0.3, 2.0]])
    powers = powers.to(way.name)
    inputs = [torch.randn(2, channels, 9), torch.randn(2, 2, powers.terms, channels)]
    inputs += [torch.randn(2, 2, 3, channels)] * weighted
    run = lambda x, w, u=None: powers(x, w, u)  # noqa: E731
    way.same(run, [t.to(way.name) for t in inputs], "program")


@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 0), (3, 0), (1, 2)])
@pytest.mark.parametrize(
    ("name", "mixed"), [("aligned", True), ("aligned", False), ("channelwise small", True)]
)
def test_few_nodes_and_edges(name, nodes, edges, mixed, way, monkeypatch):
    monkeypatch.setattr(edge_sum, "STORED", 0)
    build = cases.BUILD | {"channelwise small": lambda: cases.channelwise("2x0e+1x1o", "1o", "1o")}
    layer = build[name]().to(way.name)
    inputs = cases.inputs(layer, nodes=max(nodes, 1), edges=edges)
    x, attrs, weights, index = (t.to(way.name) for t in cases.arguments(layer, inputs))
    factors = [weights]
    if mixed:
        factors = [torch.randn(edges, 3), torch.randn(3, weights.shape[1])]
        factors = [t.to(way.name) for t in factors]

    def run(x, attrs, weights, mixing=None):
        return layer(x, attrs, weights, index, mixing)

    way.same(run, [x[:nodes], attrs, *factors], "program")


@pytest.mark.parametrize("name", ["aligned", "power"])
def test_third_derivatives(name, way):
    layer = cases.BUILD[name]().to(way.name)
    arguments = cases.arguments(layer, cases.inputs(layer, nodes=2, edges=3))
    arguments = [t.to(way.name) for t in arguments]
    inputs = [t.requires_grad_() for t in arguments if t.is_floating_point()]
    rest = [t for t in arguments if not t.is_floating_point()]
    way.same(lambda *t: layer(*t, *rest), inputs, "program", derivatives)


def of_40_channels(name, way):
    """All passes of a layer."""
    if name == "frame":
        layer, inputs, index = convolution_of("0e+1o", "0e+1o", 40, torch.float32, way)
    elif name == "apart":
        irreps = "0e+1o", "0e+1o", "0e+1o"
        layer, inputs, index = paths_of(*irreps, [40], torch.float32, way)
    else:
        layer, *inputs, index = cubic("40 channels", torch.float32, way)  # behind: node_attrs

    def run(*inputs):
        return layer(*inputs, index)

    return lambda: passes(run, inputs)


@pytest.mark.parametrize("name", ["frame", "apart", "cubic"])
def test_the_launch_does_not_matter(name, way, monkeypatch):
    run = of_40_channels(name, way)
    expected = run()
    assert_same(run(), expected, "exact")
    for lanes in (32, 128):
        monkeypatch.setattr(launch, "lanes", lambda channels, lanes=lanes: (lanes,))
        assert_same(run(), expected, "exact")


@pytest.mark.parametrize("name", ["frame", "cubic"])
def test_a_launch_is_timed_once(name, way, monkeypatch, tmp_path):
    """But not while a CUDA graph is captured; what is found is kept for other processes."""
    run = of_40_channels(name, way)
    expected = run()
    timed, sizes, start = [], [], launch.start

    def milliseconds(call):
        call()
        timed.append(sizes[-1])
        return -sizes[-1]

    def record(kernel, grid, *arguments, **options):
        sizes.append(options["BLOCK"])
        start(kernel, grid, *arguments, **options)

    def again(capturing):
        timed.clear()
        sizes.clear()
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        assert_same(run(), expected, "exact")
        return set(timed), 64 in sizes

    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    monkeypatch.setattr(launch, "start", record)
    monkeypatch.setattr(launch, "lanes", lambda channels: (32, 64))
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "_name", lambda device: "a GPU")
    monkeypatch.setattr(tuning, "switched_on", lambda device: True)
    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    assert again(capturing=True) == (set(), False)
    assert again(capturing=False) == ({32, 64}, True)
    assert again(capturing=True) == (set(), True)
    monkeypatch.setattr(tuning, "_known", {})
    assert again(capturing=False) == (set(), True)


WAITS = ("__bool__", "__float__", "__index__", "__int__", "cpu", "item", "nonzero", "tolist")


@pytest.mark.parametrize("name", ["aligned", "channelwise", "power", "full", "frames"])
def test_a_step_waits_for_nothing(name, way, monkeypatch):
    """After the first one Python reads no number of the device: it can be captured as a graph."""
    if name == "frames":
        layer, inputs = EdgeFrames(2, 2).to(way.name), [torch.randn(5, 3, device=way.name)]
    else:
        layer = cases.BUILD[name]().to(way.name)
        inputs = cases.arguments(layer, cases.inputs(layer, nodes=3, edges=5))
        inputs = [t.to(way.name) for t in inputs]

    def step():
        x, *rest = inputs
        out = layer(x.requires_grad_(), *rest)
        (of_x,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        of_x.square().sum().backward()

    step()
    way.calls.clear()

    def wait(*_):
        raise AssertionError("this waits for the device")

    monkeypatch.setattr(launch, "start", lambda *_, **__: None)  # Triton's interpreter does
    for method in WAITS:
        monkeypatch.setattr(torch.Tensor, method, wait)
    step()
    monkeypatch.undo()
    assert {number for _, number in way.calls} == {0, 1, 2}


def test_when_launches_are_timed(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("GAUNT_TUNE", raising=False)
    assert not tuning.switched_on(gpu)
    monkeypatch.setenv("GAUNT_TUNE", "1")
    assert tuning.switched_on(gpu)
    assert not tuning.switched_on(cpu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["aligned", "channelwise", "power", "full", "frames"])
def test_short_numbers_have_long_sums(name, dtype, way):
    """As good as the plain form in float32, with rounded inputs and results."""
    if name == "frames":
        layer, inputs = EdgeFrames(2, 2), [torch.nn.functional.normalize(torch.randn(9, 3), dim=1)]
    else:
        layer = cases.BUILD[name]()
        inputs = cases.arguments(layer, cases.inputs(layer, nodes=3, edges=30))
    layer = layer.to(way.name, dtype)
    inputs = [t.to(way.name, dtype if t.is_floating_point() else t.dtype) for t in inputs]
    found = layer(*inputs)
    assert found.dtype == dtype
    assert way.calls
    way.switch(False)
    expected = layer.float()(*(t.float() if t.is_floating_point() else t for t in inputs))
    assert (found.float() - expected).abs().max() < 8 * torch.finfo(
        dtype
    ).eps * expected.abs().max()


# Edges are sorted once per graph.


def test_sorted_once_for_all_layers_and_passes(way):
    layer, inputs, index = convolution_of("0e+1o", "0e+1o", 2, torch.float64, way)
    sorted_rows = way.sorted_rows()
    edges = [index]
    for _ in range(2):
        passes(lambda x, *t: layer(layer(x, *t, *edges), *t, *edges), inputs)
    assert sorted(sorted_rows) == [0, 1]
    before = len(groups._groups.kept)
    edges.clear()
    del index
    gc.collect()
    assert len(groups._groups.kept) < before


def test_a_change_of_the_edges_is_noticed(way):
    layer, inputs, index = convolution_of("0e+1o", "0e+1o", 2, torch.float64, way)
    layer(*inputs, index)
    index.copy_(index.flip(0).flip(1))
    found = layer(*inputs, index)
    way.switch(False)
    assert_close(found, layer(*inputs, index), "program")


def test_edges_of_inference_mode(way):
    with torch.inference_mode():
        layer, inputs, index = convolution_of("0e+1o", "0e+1o", 2, torch.float64, way)
        found = layer(*inputs, index)
        index.copy_(index.flip(1))
        changed = layer(*inputs, index)
        way.switch(False)
        assert_close(changed, layer(*inputs, index), "program")
        assert not torch.equal(found, changed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device would be lost for other tests")
@pytest.mark.parametrize("change", [-1, 4])
def test_edges_out_of_range(change, way):
    layer, inputs, index = convolution_of("0e+1o", "0e+1o", 2, torch.float64, way)
    with pytest.raises(RuntimeError, match="edge_index has an index out of range for 4 nodes"):
        layer(*inputs, index + change)


# What torch asks of operators.


def moved(arguments, way):
    return [a.to(way.name) if isinstance(a, torch.Tensor) else a for a in arguments]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", SAMPLES)
def test_are_registered_as_torch_wants_them(name, number, way):
    operator, arguments = three_operators(name)[number]
    arguments = moved(arguments, way)
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(operator, arguments, test_utils=utils)


@pytest.mark.parametrize("name", SAMPLES)
def test_only_what_is_needed(name, way):
    """Each gradient alone is the same as with all others.

    To rounding where a table is read by other kernels if it has no gradient.
    """
    kind = "program" if "rows" in name else "exact"
    for operator, arguments in three_operators(name)[1:]:
        assert_only_what_is_needed(operator, moved(arguments, way), kind)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", SAMPLES)
def test_wrong_calls_name_the_operand(name, number, way):
    """Before any kernel starts. What happens to fit (as many edges, nodes) is computed."""
    operator, arguments = three_operators(name)[number]
    arguments = moved(arguments, way)
    names = [a.name for a in operator._schema.arguments]
    silent = []
    with torch.no_grad():
        for k, argument in enumerate(arguments):
            for change, other in wrong(argument).items():
                if names[k] == "node_feats" and "edge_index" in names and "axis 0" in change:
                    continue  # fewer nodes: test_edges_out_of_range
                if (names[k], change) == ("mixing", "axis 0 short") and "rows" in name:
                    continue  # fewer rows: test_rows_out_of_range
                try:
                    operator(*arguments[:k], other, *arguments[k + 1 :])
                except ValueError as error:
                    if f"gaunt::{name.split(',')[0]}" not in str(error):
                        silent.append(f"{names[k]}: {change}: {error}")
                else:
                    silent.append(f"{names[k]}: {change}")
    # Sizes that are free where nothing else has them.
    free = {"edge_frames": "directions: ", "powers, no weights_in": "weights_out: axis 1"}
    if "rows" in name:
        free[name] = "node_feats: axis 0 long", "weights: axis 1", "mixing: axis 0 long"
    free = free.get(name, "node_feats: axis 0 long")
    assert [s for s in silent if not s.startswith(free)] == []


@pytest.mark.parametrize("name", ["channelwise_convolution", "polynomials"])
def test_wrong_constants(name, way):
    """Kernels are made for constants of a layer alone, and read nothing outside of the arrays."""
    generator = torch.Generator().manual_seed(0)
    *rest, constants, width = moved(samples()[name], way)
    given = constants.tolist()
    refused = 0
    for place in range(1, 1 + given[0]):
        for _ in range(2):
            other = list(given)
            other[place] = torch.randint(-3, 70, (1,), generator=generator).item()
            try:
                getattr(torch.ops.gaunt, name)(*rest, constants.new_tensor(other), width)
            except ValueError as error:
                assert f"gaunt::{name}" in str(error)  # noqa: PT017
                refused += 1
    assert refused > given[0] / 2


def test_switched_off(way, monkeypatch):
    layer = EdgeFrames(1, 1).to(way.name)
    monkeypatch.setenv("GAUNT_KERNELS", "0")
    layer(torch.randn(3, 3, device=way.name))
    assert not way.calls
    assert "switched off" in cuda.status()


def test_status_names_triton(way):
    import triton

    assert cuda.status() == f"GPU kernels: triton {triton.__version__}"
