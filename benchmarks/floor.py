"""How far an exported MACE model is from what the processor could do.

    python benchmarks/floor.py [--size 64x0e+64x1o+64x2e] [--box 6]

Environment: mace, kernels built. Energy and forces of a box of water, one thread, float32, radial
tables. Counts the multiplications with additions of each operator's formula, and the time that
they would take at the speed of this processor's matrix products; beside it the time that torch's
profiler gives the operator. Prints a Markdown table.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import mace_speed  # first: MACE prepares e3nn's import
import torch
from arguments import positive
from e3nn import o3
from inference import MACE_SIZES, mace_model
from structures import water
from torch.profiler import ProfilerActivity, profile

from gaunt_plugin.calculator import GauntCalculator
from gaunt_plugin.deploy.export import export
from gaunt_plugin.layers import ElementLinear
from gaunt_plugin.layers.many_body.power import PowerTerms
from gaunt_plugin.ops.convolution import EdgeConvolution
from gaunt_plugin.ops.tables import unpack

SPLINE = 4  # rows of a table that make an edge's weights
# Operators of the profile by what they begin with; the rest is "other".
PARTS = {
    # Backward passes of all kernels have one name.
    "convolution and product": ("gaunt::", "_PassBackward"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::"),
}


def of_convolution(convolution):
    """Multiply-adds per edge and channel, forward and backward."""
    inputs, outputs, _ = convolution.arguments(*unpack(convolution.constants))

    def rotation(irreps):
        columns = [1 if convolution.scalar else 2 * min(l, convolution.mmax) + 1 for l, _ in irreps]
        return sum((2 * l + 1) * count for (l, _), count in zip(irreps, columns))

    into = 0 if convolution.scalar else rotation(inputs)
    out = rotation(outputs)
    paths = [
        sum(map(int.__mul__, s, r)) for s, r in zip(convolution.senders, convolution.receivers)
    ]
    mixing = paths[0] + 2 * sum(paths[1:])
    table = SPLINE * convolution.paths
    forward = into + mixing + out + table
    # The frame's features and gradients again; gradients of features, weights, frames and table.
    backward = (into + out) + 2 * mixing + (mixing + into) + (into + out) + 2 * table
    return forward + backward


def of_powers(terms):
    """Multiply-adds per node and channel, forward and backward."""
    powers = terms.powers
    degrees_in, degrees_out, _, _, factors = powers.arguments(*unpack(powers.constants))
    dim_in, dim_out = (sum(2 * l + 1 for l in degrees) for degrees in (degrees_in, degrees_out))
    orders, results = len(factors), len(degrees_out)
    # Per view: its weights of the degrees, then per order the next power and its results.
    forward = dim_in + dim_out + terms.rank * (terms.count_in + orders * (4 + results))
    backward = 2 * dim_in + dim_out
    backward += terms.rank * (3 * terms.count_in + orders * (8 + 2 * results))
    return powers.grid.to_grid.shape[1] // 2 * (forward + backward)


def of_linear(layer):
    """Multiply-adds per node, forward and backward to the features."""
    return 2 * sum(
        mul_in * mul_out * ir.dim
        for mul_in, ir in layer.irreps_in
        for mul_out, ir_out in layer.irreps_out
        if ir == ir_out
    )


def counted(model, channels, nodes, edges):
    """Multiply-adds of each part."""
    total = dict.fromkeys(PARTS, 0)
    for module in model.modules():
        if isinstance(module, EdgeConvolution):
            total["convolution and product"] += of_convolution(module) * channels * edges
        elif isinstance(module, PowerTerms):
            total["convolution and product"] += of_powers(module) * channels * nodes
        elif isinstance(module, (o3.Linear, ElementLinear)):
            total["matrix products"] += of_linear(module) * nodes
    return total


def speed():
    """Multiply-adds per second of a large matrix product, the best of ten and of two libraries."""
    a, b = torch.randn(2, 1536, 1536)
    products = [
        lambda: a @ b,
        lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""),
    ]
    times = []
    for product in 10 * products:
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return 1536**3 / min(times)


def measured(model, atoms, repeats=5):
    """Seconds of a call and of its parts, by the profiler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        export(model, path)
        atoms.calc = GauntCalculator(path)
    times, parts = [], {name: [] for name in PARTS}
    for repeat in range(repeats + 2):
        atoms.positions += 1e-5
        start = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            atoms.get_forces()
            seconds = time.perf_counter() - start
        if repeat < 2:  # TorchScript specialises
            continue
        times.append(seconds)
        events = profiled.key_averages()
        for name, beginnings in PARTS.items():
            own = [e.self_cpu_time_total for e in events if e.key.startswith(beginnings)]
            parts[name].append(sum(own) / 1e6)
    return statistics.median(times), {k: statistics.median(v) for k, v in parts.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=MACE_SIZES)
    parser.add_argument(
        "--box", type=positive(int), default=6, help="molecules along an edge of the box"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    peak = speed()
    print(f"Peak: {2 * peak / 1e9:.0f} GFLOP/s\n")
    print("| | part | million multiply-adds | ms at the peak | ms | times |\n" + "|---" * 6 + "|")
    for size in args.sizes:
        atoms = water(args.box, args.box, args.box)
        model = mace_model(True, size)
        edges = mace_speed.batch([atoms]).edge_index.shape[1]
        total, parts = measured(model, atoms)
        counts = counted(model, o3.Irreps(size)[0].mul, len(atoms), edges)
        counts["other"], parts["other"] = 0, total - sum(parts.values())
        counts["all"], parts["all"] = sum(counts.values()), total
        name = f"{size}, {len(atoms)} atoms, {edges} edges"
        for part, seconds in parts.items():
            least = counts[part] / peak
            times = f"{seconds / least:.1f}" if least else ""
            cells = [name, part, f"{counts[part] / 1e6:.0f}", f"{1e3 * least:.1f}"]
            print("| " + " | ".join([*cells, f"{1e3 * seconds:.1f}", times]) + " |", flush=True)


if __name__ == "__main__":
    main()
