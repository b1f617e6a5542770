"""The page and the plots of all measurements in a folder; no host is needed.

python benchmarks/report.py [docs/benchmarks]
"""

import csv
import itertools
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
INTRODUCTION = """# Benchmarks

Written by `python benchmarks/report.py` from the CSV files in `{folder}/`, which
`python benchmarks/run.py` writes in the environment of each host. Times are medians in ms of
runs in turns; in brackets how many times faster than the first column, **bold** where slower. A
contender that needs more than the limits, or is not installed, has that as its result, also for
everything beyond. *Forward* is without gradients, *training on forces* a gradient and its
backward pass, as in a training step. *Build* is the construction of the layer or model. *Memory*
is what the process (on a GPU: PyTorch) held at its peak, in MB. *Plain* is without the compiled
kernels of `gaunt build kernels`.

*Floor* is our fastest forward pass as a multiple of what this machine needs at least: to move
inputs, weights and outputs once, or to do the algorithm's matrix products, whichever takes longer,
at the speeds of a large copy and of a large matrix product measured beside it. *Growth* is the
exponent of the last pass's time in the series' variable, over its upper half.
"""


def read(path):
    """Conditions and rows of one CSV file, empty entries left out."""
    lines = path.read_text().splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    words = ("series", "shape", "dtype", "contender", "work", "result")
    return about, [{k: v if k in words else float(v) for k, v in row.items() if v} for row in rows]


def own(contender):
    return contender.startswith("Gaunt")


def speeds(rows):
    """Measured bytes and floating-point operations per ms."""
    first = {r["contender"]: r for r in rows if r["series"] == "ceilings" and "median" in r}
    if set(first) != {"memory", "arithmetic"}:
        return None
    return (
        first["memory"]["bytes"] / first["memory"]["median"],
        first["arithmetic"]["flops"] / first["arithmetic"]["median"],
    )


def table(rows, ceiling):
    """Lines of a Markdown table of one series."""
    contenders = list(dict.fromkeys(r["contender"] for r in rows))
    lines = ["| | pass | " + " | ".join(contenders) + " | memory | build, s | floor |"]
    lines.append("|---" * (len(contenders) + 5) + "|")
    last = None
    for shape, of_shape in itertools.groupby(rows, key=lambda r: r["shape"]):
        of_shape = list(of_shape)
        # A row without a pass holds for all of them.
        whole = {r["contender"]: r["result"] for r in of_shape if not r.get("work")}
        for work in dict.fromkeys(r["work"] for r in of_shape if r.get("work")):
            found = {r["contender"]: r for r in of_shape if r.get("work") == work}
            reference = found.get(contenders[0], {}).get("median")
            cells, memory, build, floor = [], [], [], []
            for name in contenders:
                row = found.get(name, {"result": whole.get(name, "–")})
                memory.append(f"{row['memory_peak']:.0f}" if "median" in row else "–")
                build.append(f"{row['build']:.1f}" if "median" in row else "–")
                cell = row["result"]
                if "median" in row:
                    cell = number(row["median"])
                    if reference and name != contenders[0]:
                        ratio = reference / row["median"]
                        cell += f" ({number(ratio)})" if ratio >= 1 else f" (**{number(ratio)}**)"
                cells.append(cell)
                if own(name) and ceiling and "bytes" in row and row.get("flops"):
                    least = max(row["bytes"] / ceiling[0], row["flops"] / ceiling[1])
                    floor.append(row["median"] / least)
            label = shape if shape != last else ""
            last = shape
            parts = [label, work, *cells, " / ".join(memory), " / ".join(build)]
            lines.append("| " + " | ".join([*parts, number(min(floor)) if floor else ""]) + " |")
    return lines


def summary(rows):
    """Lines of a Markdown table: our default against the first contender, one row per series."""
    lines = ["| | largest that both manage | passes: times faster | memory, ours / theirs |"]
    lines.append("|---|---|---|---|")
    for series, of_series in itertools.groupby(rows, key=lambda r: r["series"]):
        of_series = [r for r in of_series if "median" in r and series != "ceilings"]
        names = list(dict.fromkeys(r["contender"] for r in of_series))
        ours = next((name for name in names if own(name)), None)
        found = {(r["shape"], r["work"], r["contender"]): r for r in of_series}
        pairs = [
            (found[shape, work, names[0]], row)
            for (shape, work, name), row in found.items()
            if name == ours and (shape, work, names[0]) in found
        ]
        if not pairs or own(names[0]):
            continue
        shape = pairs[-1][0]["shape"]
        pairs = [pair for pair in pairs if pair[0]["shape"] == shape]
        ratios = [f"{b['work']} {number(a['median'] / b['median'])}" for a, b in pairs]
        peaks = [max(pair[side]["memory_peak"] for pair in pairs) for side in (1, 0)]
        lines.append(
            f"| {series}: {ours} / {names[0]} | {shape} | {', '.join(ratios)} "
            f"| {peaks[0] / peaks[1]:.2f} |"
        )
    return lines


def number(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.2g}" if x < 10 else f"{x:.1f}"


def growth(rows):
    """Exponents of the last pass's time over the upper half of the series."""
    found = []
    for name, work, points in curves(rows):
        points = points[len(points) // 2 - 1 if len(points) > 2 else 0 :]
        if work == last_pass(rows) and len(points) > 1:
            (x0, y0), (x1, y1) = points[0], points[-1]
            found.append(f"{name} {math.log(y1 / y0) / math.log(x1 / x0):.1f}")
    return f"\nGrowth of {last_pass(rows)}: {', '.join(found)}." if found else ""


def last_pass(rows):
    return [r["work"] for r in rows if r.get("work")][-1]


def curves(rows):
    """Contender, pass and points of each line with two points or more."""
    for name, work in dict.fromkeys((r["contender"], r.get("work")) for r in rows):
        chosen = [r for r in rows if (r["contender"], r.get("work")) == (name, work)]
        points = [(r["x"], r["median"]) for r in chosen if "median" in r]
        if len(points) > 1:
            yield name, work, points


def plot(rows, title, path):
    """Time against the series' variable, one panel per pass; False if there is nothing to see."""
    lines = list(curves(rows))
    works = list(dict.fromkeys(work for _, work, _ in lines))
    names = list(dict.fromkeys(name for name, _, _ in lines))
    if not lines:
        return False
    width = 3.2 * len(works)
    figure, axes = plt.subplots(1, len(works), figsize=(max(width, 4), 3), squeeze=False)
    for axis, work in zip(axes[0], works):
        for name, of_work, points in lines:
            if of_work == work:
                style = "o-" if own(name) else "s--"
                axis.loglog(*zip(*points), style, color=f"C{names.index(name)}", label=name)
        ticks = sorted({x for _, _, points in lines for x, _ in points})
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axis.minorticks_off()
        axis.set(title=work, xlabel=title, ylabel="ms")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def write(folder):
    """Write the page beside the folder and the plots into it; returns their paths."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 8})
    lines, paths = [INTRODUCTION.format(folder=folder.name)], []
    for path in sorted(folder.glob("*.csv")):
        about, rows = read(path)
        ceiling = speeds(rows)
        lines.append(f"## {path.stem}\n\n" + ", ".join(f"{k} {v}" for k, v in about.items()))
        if ceiling:
            text = (
                f"copy {ceiling[0] / 1e6:.1f} GB/s, matrix product {ceiling[1] / 1e6:.0f} GFlop/s"
            )
            lines.append(f"\nMeasured: {text}.")
        lines += ["", *summary(rows)]
        for series, of_series in itertools.groupby(rows, key=lambda r: r["series"]):
            of_series = list(of_series)
            if series == "ceilings":
                continue
            lines += [f"\n### {series} ({of_series[0]['dtype']})\n"]
            name = "".join(c if c.isalnum() and c.isascii() else "_" for c in series)
            picture = folder / f"{path.stem}-{name}.svg"
            if plot(of_series, series, picture):
                lines += [f"![{series}]({folder.name}/{picture.name})\n"]
                paths.append(picture)
            lines += [*table(of_series, ceiling), growth(of_series)]
    page = folder.with_name(folder.name + ".md")
    page.write_text("\n".join(lines).rstrip() + "\n")
    return [page, *paths]


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "benchmarks"
    print("wrote", *write(folder.resolve()))
