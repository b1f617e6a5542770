"""Compile the Triton kernels of usual layers, without a GPU, and model their times.

    python benchmarks/gpu_report.py [--quick] [--only LAYER ...] [--arch 90 ...]

Writes docs/gpu/kernels.csv and the tables of docs/gpu.md; with ``--only`` what was written for
other layers stays. Needs triton. What is compiled is what
the operators would launch: the launches are recorded on the CPU. The model is a calculation, not
a measurement: the longest of

* bytes: every array of a launch moved once at the bandwidth of an H100 (SXM),
* operations: additions and products at its float32 rate outside of tensor cores,
* loads: instructions that load or store, one per clock and multiprocessor,

with 5 us for each launch. Features of neighbours are taken to be in the cache.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gaunt_plugin.layers import ChannelwiseConvolution
from gaunt_plugin.layers.irreps import Irreps
from gaunt_plugin.layers.many_body.full import Full
from gaunt_plugin.ops import EdgeConvolution, EdgeFrames, Powers
from gaunt_plugin.ops.cuda import launch

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "docs/gpu/kernels.csv", ROOT / "docs/gpu.md"
ARCHITECTURES = (80, 90, 100)
BANDWIDTH, RATE = 3.35e12, 66.9e12  # bytes and operations per s
LOADS = 132 * 1.755e9  # instructions of a warp per s
LAUNCH = 5e-6
NODES, EDGES = 135, 2242  # five molecules of 3BPA, cutoff 5 A
PASSES = ("forward", "backward", "double backward")


@dataclass
class Row:
    layer: str
    dtype: str
    number: str
    kernel: str
    arch: int
    registers: int
    spills: int  # bytes of a thread's local memory
    shared: int | None  # bytes


@dataclass
class Launch:
    kernel: object
    grid: tuple
    arguments: tuple
    options: dict


def irreps(lmax):
    return tuple((l, False) for l in range(lmax + 1))


def edges_of(layer, node_feats, entries, numel, table):
    """Operands of a convolution and what follows; weights given, or of a table of 200 rows."""
    weights, mixing, rows = torch.empty(EDGES, numel), None, None
    if table:
        weights, mixing = torch.empty(EDGES, 4), torch.empty(200, numel)
        rows = torch.randint(0, 196, (EDGES,))
    operands = [node_feats, torch.empty(EDGES, entries), weights, mixing]
    return layer, operands, [torch.randint(0, NODES, (2, EDGES)), rows]


def convolution(inputs, outputs, channels, table=False):
    layer = EdgeConvolution(irreps(inputs), irreps(outputs), tuple(range(outputs + 1)))
    entries = (outputs + 1) ** 2 if layer.scalar else EdgeFrames(layer.lmax, layer.mmax).entries
    x = torch.empty(NODES, layer.dim_in, channels)
    return "convolution", *edges_of(layer, x, entries, layer.paths * channels, table)


def channelwise(inputs, outputs, channels):
    """Stock paths of natural parity, as NequIP has them."""
    found = [f"{channels}x{l}{'oe'[l % 2 == 0]}" for l in range(outputs + 1)]
    edge = "+".join(f"{l}{'oe'[l % 2 == 0]}" for l in range(outputs + 1))
    paths = [
        (i, j, l)
        for i in range(inputs + 1)
        for j in range(outputs + 1)
        for l in range(abs(i - j), min(i + j, outputs) + 1, 2)
    ]
    paths.sort(key=lambda path: path[2])
    layer = ChannelwiseConvolution(
        Irreps("+".join(found[: inputs + 1])),
        Irreps(edge),
        Irreps("+".join(found[l] for *_, l in paths)),
        [(i, j, k, "uvu", True) for k, (i, j, _) in enumerate(paths)],
    ).convolution
    x = torch.empty(NODES, layer.dim_in)
    return "channelwise_convolution", *edges_of(layer, x, (outputs + 1) ** 2, layer.numel, False)


def frames(lmax, mmax):
    return "edge_frames", EdgeFrames(lmax, mmax), [torch.empty(EDGES, 3)], []


def powers(weighted, rank, channels):
    layer = Powers([0, 1, 2, 3], [0, 1, 2], weighted, [1.0, 0.6, 0.4, 0.3], [[1.0] * 3, [0.5] * 3])
    operands = [
        torch.empty(NODES, channels, 16),
        torch.empty(NODES, rank, layer.terms, channels),
        torch.empty(NODES, rank, 4, channels) if weighted else None,
    ]
    return "powers", layer, operands, []


def full(inputs, outputs, channels):
    functions = list(irreps(inputs)), list(irreps(outputs))
    layer = Full(*functions, channels, 3, 3).polynomials
    terms = layer.of_terms.shape[1]
    operands = [torch.empty(NODES, channels, (inputs + 1) ** 2), torch.empty(3, channels, terms)]
    return "polynomials", layer, operands, [torch.empty(NODES, 3)]


LAYERS = {
    "MACE 256x, frames": lambda: frames(3, 2),
    "MACE 256x, first convolution (0 → 3)": lambda: convolution(0, 3, 256),
    "MACE 256x, convolution (2 → 3)": lambda: convolution(2, 3, 256),
    "MACE 256x, convolution (2 → 3), table": lambda: convolution(2, 3, 256, table=True),
    "MACE 256x, product power, ν = 3 (3 → 2)": lambda: powers(True, 4, 256),
    "MACE 256x, product paper, ν = 3 (3 → 2)": lambda: powers(False, 1, 256),
    "MACE 256x, product full, ν = 3 (1 → 1)": lambda: full(1, 1, 256),
    "MACE 256x, product full, ν = 3 (3 → 1)": lambda: full(3, 1, 256),
    "NequIP 64x, frames, l ≤ 2": lambda: frames(2, 2),
    "NequIP 64x, convolution, l ≤ 2": lambda: convolution(2, 2, 64),
    "NequIP 64x, frames, l ≤ 3": lambda: frames(3, 3),
    "NequIP 64x, convolution, l ≤ 3": lambda: convolution(3, 3, 64),
    "NequIP 64x, stock paths, l ≤ 1": lambda: channelwise(1, 1, 64),
    "NequIP 64x, stock paths, l ≤ 2": lambda: channelwise(2, 2, 64),
    "NequIP 64x, stock paths, l ≤ 3": lambda: channelwise(3, 3, 64),
}


def launches(case, dtype, number):
    """What a pass of a layer starts."""
    name, layer, operands, rest = case()
    cast = lambda t: t.to(dtype) if t is not None and t.is_floating_point() else t  # noqa: E731
    operands, rest = [cast(t) for t in operands], [cast(t) for t in rest]
    found, start = [], launch.start
    out = {
        "edge_frames": lambda: [EDGES, layer.entries],
        "convolution": lambda: [NODES, layer.dim_out, operands[0].shape[2]],
        "channelwise_convolution": lambda: [NODES, layer.dim_out],
        "powers": lambda: [*operands[0].shape[:2], layer.dim_out],
        "polynomials": lambda: [*operands[0].shape[:2], layer.outputs],
    }[name]()
    arrays = [layer.constants, *operands, *rest]
    # Nothing is asked of a table.
    like = [None if t is None or k == 3 else torch.empty_like(t) for k, t in enumerate(operands)]
    if number > 0:
        arrays.append(torch.empty(out, dtype=dtype))
    if number == 2:
        arrays += like
    if number != 1:
        arrays.append(torch.empty(out, dtype=dtype))
    if number > 0:
        arrays += like
    launch.start = lambda kernel, grid, *a, **o: found.append(Launch(kernel, grid, a, o))
    try:
        launch.call(name, number, arrays)
    finally:
        launch.start = start
    return found


def compiled(this, arch):
    """Registers, bytes of spills and shared memory."""
    names = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
    options = {k: v for k, v in this.options.items() if k.isupper()}
    signature, constants, attributes = {}, dict(options), {}
    plain = [p.name for p in this.kernel.params if p.do_not_specialize]
    for k, (name, value) in enumerate(zip(this.kernel.arg_names, this.arguments)):
        if value is None:
            signature[name], constants[name] = "constexpr", None
            continue
        signature[name] = "i32" if isinstance(value, int) else names[value.dtype]
        if name not in plain and (not isinstance(value, int) or value % 16 == 0):
            attributes[k,] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(options, "constexpr")
    source = ASTSource(this.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", arch, 32)
    chosen = {"enable_fp_fusion": True, **{k: v for k, v in this.options.items() if k.islower()}}
    kernel = triton.compile(source, target=target, options=chosen)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    registers, stack, shared, local = map(int, found.groups())
    return registers, stack + local, shared


def report(name, dtype, archs):
    """Rows of a layer."""
    text = str(dtype).split(".")[1]
    for number in range(3):
        seen = set()
        for this in launches(LAYERS[name], dtype, number):
            label = this.kernel.__name__
            if "FIRST" in this.options:
                label += f", {this.options['FIRST']} to {this.options['LAST'] - 1}"
            elif label.startswith("double_backward"):
                results = zip(this.kernel.arg_names, this.arguments)
                written = [n for n, v in results if v is not None and n.startswith(("of_", "to_"))]
                label += f": {' '.join(n.removeprefix('to_') for n in written)}"
            if label in seen:
                continue
            seen.add(label)
            for arch in archs:
                yield Row(name, text, PASSES[number], label, arch, *compiled(this, arch))


def modelled(name, number, dtype=torch.float32):
    """Bytes, operations, load instructions and seconds of a pass."""
    total = [0, 0, 0, 0.0]
    for this in launches(LAYERS[name], dtype, number):
        arrays = [a for a in this.arguments if isinstance(a, torch.Tensor)]
        moved = sum(a.numel() * a.element_size() for a in arrays)
        body = executed(this)
        channels = this.options["BLOCK"]
        module = this.kernel.fn.__module__
        if "edge_frames" in module:
            times = this.grid[0]
        elif "polynomials" in module:
            times = this.grid[0] * this.grid[1]
        elif "powers" in module:
            pairs = int(re.search(r"for pair in range\((\d+)\)", body)[1])
            rank, views = map(int, re.search(r"range\(0, (\d+), (\d+)\)", body).groups())
            times, body = this.grid[0] * this.grid[1] * pairs * rank // views, loop(body, "pair")
        elif "FIRST" in this.options:
            blocks = -(-this.options["C"] // channels)
            times, body = this.grid[0] * blocks, loop(body, "block")
        else:
            times, body = EDGES * this.grid[1], loop(body, "k")
        per_thread = times * channels
        arithmetic = re.sub(r"tl\.(load|store)\([^()]*(\([^()]*\))*[^()]*\)", "", body)
        operations = len(re.findall(r" [-+*/] |\+= ", arithmetic)) * per_thread
        loads = len(re.findall(r"tl\.(?:load|store)\(", body)) * per_thread / 32
        seconds = max(moved / BANDWIDTH, operations / RATE, loads / LOADS) + LAUNCH
        total = [a + b for a, b in zip(total, (moved, operations, loads, seconds))]
    return total


def executed(this):
    """Source of a launch, without the results that it leaves out."""
    given = dict(zip(this.kernel.arg_names, this.arguments))
    lines = []
    for line in this.kernel.src.splitlines():
        result = re.match(r"\s*if (\w+) is not None:", line)
        number = re.match(r"\s*if \(FIRST <= (\d+)\)", line)
        if result and given.get(result[1]) is None:
            continue
        if number and not this.options["FIRST"] <= int(number[1]) < this.options["LAST"]:
            continue
        lines.append(line)
    return "\n".join(lines)


def loop(text, variable):
    """The body of a kernel's loop."""
    lines = text.splitlines()
    begin = next(
        k for k, line in enumerate(lines) if line.lstrip().startswith(f"for {variable} in")
    )
    depth = len(lines[begin]) - len(lines[begin].lstrip())
    body = []
    for line in lines[begin + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        body.append(line)
    return "\n".join(body)


def registers(rows):
    """Markdown: the most of a pass over its kernels."""
    lines = ["| layer | dtype | pass | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |"]
    lines += ["|---|---|---|" + "---|" * len(ARCHITECTURES)]
    for layer, dtype, number in dict.fromkeys((r.layer, r.dtype, r.number) for r in rows):
        cells = []
        for arch in ARCHITECTURES:
            of = [
                r
                for r in rows
                if (r.layer, r.dtype, r.number, r.arch) == (layer, dtype, number, arch)
            ]
            spills = max((r.spills for r in of), default=0)
            cells.append(
                f"{max(r.registers for r in of)}" + (f" (**{spills} B**)" if spills else "")
                if of
                else "–"
            )
        lines.append(f"| {layer} | {dtype} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def model():
    """Markdown."""
    lines = ["| layer | pass | MB | Mflop | warp loads, 10⁶ | µs |", "|---|---|---|---|---|---|"]
    for name in LAYERS:
        for number, text in enumerate(PASSES):
            moved, operations, loads, seconds = modelled(name, number)
            lines.append(
                f"| {name} | {text} | {moved / 1e6:.1f} | {operations / 1e6:.0f} | "
                f"{loads / 1e6:.1f} | {seconds * 1e6:.0f} |"
            )
    return "\n".join(lines)


def read():
    with TABLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {k: int(row[k]) for k in ("arch", "registers", "spills")}
        row["shared"] = int(row["shared"]) if row["shared"] else None
    return [Row(**row) for row in rows]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one layer, written nowhere")
    parser.add_argument("--only", nargs="+", choices=LAYERS, metavar="LAYER", default=LAYERS)
    parser.add_argument("--arch", nargs="+", type=int, choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float64"), default=["float32"])
    args = parser.parse_args()
    if args.quick:
        for row in report("NequIP 64x, frames, l ≤ 2", torch.float32, (90,)):
            print(row)
        return
    for name in args.only:
        for dtype in args.dtype:
            keep(list(report(name, getattr(torch, dtype), args.arch)))
            print(name, dtype, flush=True)
    write_tables(read())


def keep(new):
    """Put rows into the table, in the place of older ones."""
    key = lambda row: (row.layer, row.dtype, row.number, row.kernel, row.arch)  # noqa: E731
    replaced = {(row.layer, row.dtype, row.arch) for row in new}
    old = read() if TABLE.is_file() else []
    rows = [row for row in old if (row.layer, row.dtype, row.arch) not in replaced] + new
    order = lambda row: (list(LAYERS).index(row.layer), row.dtype, PASSES.index(row.number))  # noqa: E731
    rows = list({key(row): row for row in sorted(rows, key=order)}.values())
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Row)])
        writer.writerows([getattr(row, f.name) for f in fields(Row)] for row in rows)


def write_tables(rows):
    text = PAGE.read_text(encoding="utf-8")
    for name, table in {"registers": registers(rows), "model": model()}.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
