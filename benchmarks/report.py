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

How fast the layers and models are beside those of MACE, NequIP, e3nn and others. A table for each
question comes first; every measurement is folded below it. [What is faster, what is
not](speed.md) is a shorter page, with comparisons that are not made by this suite.

`python benchmarks/run.py` measures in the environment of each host and writes CSV files into
`{folder}/`. `python benchmarks/report.py` writes this page from them.

- Times are medians of runs in turns. Ratios are the other one's time divided by ours: how many
  times faster we are. **Bold** is slower.
- *Plain* is without the compiled kernels of `gaunt build kernels`.
- A contender that needs more than the limit of time has that as its result, also for everything
  larger.
- `power`, `paper`, `full`, `aligned` and `grid` are options of ours, see [train with
  MACE](train-mace.md). ν is the number of factors, l and ℓ are degrees.
"""
READING = """
In the tables below times are in ms; in brackets how many times faster than the first column.
*Forward* is without gradients. *Training on forces* is a gradient and its backward pass, as in a
training step. *Memory* is what the process (on a GPU: PyTorch) held at its peak, in MB. *Build* is
the construction of the layer or model, in s. *Floor* is our fastest forward pass as a multiple of
what this machine needs at least: to move inputs, weights and outputs once, or to do the algorithm's
matrix products, whichever takes longer, at the speeds of a large copy and of a large matrix product
measured beside it. *Growth* is the exponent of the last pass's time in the series' variable, over
its upper half.
"""
OPERATION = ("forward + backward", "forward")
MODEL = ("energy + forces", "energy + forces, ASE", "MACECalculator", "exported, TorchScript")
MODELS = ("MACE", "NequIP")
# First words of the series' names, and for each question its title and the passes of which the
# first that was measured is shown.
QUESTIONS = {
    MODELS: {
        "Is a training step faster?": ("training step",),
        "Are energies and forces faster?": MODEL,
    },
    ("many-body",): {"Is a product of a feature with itself faster?": OPERATION},
    ("convolution",): {"Is a convolution faster?": OPERATION},
    ("feature interaction",): {"Is a product of two features faster?": OPERATION},
}


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


def failure(result):
    """A few words for a table, and the whole reason for a note if there is more to say."""
    reason = result.removeprefix("construction: ")
    if reason.startswith(">"):
        return f"{reason} to build" if reason != result else reason, ""
    if "not installed" in reason:
        return "–", ""
    return (reason, "") if reason in ("–", "out of memory") else ("fails", reason)


def installed(rows):
    """The contenders that were there."""
    return list(dict.fromkeys(r["contender"] for r in rows if "not installed" not in r["result"]))


def ratio(reference, row):
    """How many times faster, in bold where slower."""
    times = reference / row["median"]
    return number(times) if times >= 1 else f"**{number(times)}**"


def summary(rows, versions, works):
    """Rows of a Markdown table of one series: the first contender against our default."""
    names = installed(rows)
    ours = next((name for name in names if own(name)), None)
    if ours is None or own(names[0]):
        return
    title = f"{names[0]} {versions[names[0]]}" if names[0] in versions else names[0]
    # Shapes of some series don't say what they were measured on.
    place = [w for w in rows[0]["series"].split(", ")[-1:] if w in ("molecule", "box")]
    place = [
        w for w in place if "molecule" not in rows[0]["shape"] and "atoms" not in rows[0]["shape"]
    ]
    for shape, of_shape in itertools.groupby(rows, key=lambda r: r["shape"]):
        of_shape = list(of_shape)
        measured = {(r["contender"], r["work"]): r for r in of_shape if "median" in r}
        work = next((w for w in works if (names[0], w) in measured), None)
        if work is None or (ours, work) not in measured:
            continue
        first, row = measured[names[0], work], measured[ours, work]
        speeds = {
            name: ratio(first["median"], measured[name, work])
            for name in names[1:]
            if (name, work) in measured
        }
        others = [
            f"{name.removeprefix('Gaunt, ')} {times}"
            for name, times in speeds.items()
            if name not in (ours, f"{ours}, plain")
        ]
        cells = [
            ", ".join([shape, *place, *([work] if work != works[0] else [])]),
            speeds[ours],
            speeds.get(f"{ours}, plain", ""),
            *(number(r["median"]) for r in (row, first)),
            title,
            f"{row['memory_peak'] / first['memory_peak']:.2f}",
            ", ".join(others),
        ]
        yield "| " + " | ".join(cells) + " |"


def times_table(rows):
    """Lines of a Markdown table of one series: each pass of each contender."""
    contenders = installed(rows)
    lines = ["| | pass | " + " | ".join(contenders) + " |", "|---" * (len(contenders) + 2) + "|"]
    last, notes = None, {}
    for shape, of_shape in itertools.groupby(rows, key=lambda r: r["shape"]):
        of_shape = list(of_shape)
        # A row without a pass holds for all of them.
        whole = {r["contender"]: r["result"] for r in of_shape if not r.get("work")}
        for work in dict.fromkeys(r["work"] for r in of_shape if r.get("work")):
            found = {r["contender"]: r for r in of_shape if r.get("work") == work}
            reference = found.get(contenders[0], {}).get("median")
            cells = []
            for name in contenders:
                row = found.get(name, {"result": whole.get(name, "–")})
                cell, note = failure(row["result"])
                if note:
                    notes[name] = note
                if "median" in row:
                    cell = number(row["median"])
                    if reference and name != contenders[0]:
                        cell += f" ({ratio(reference, row)})"
                cells.append(cell)
            lines.append("| " + " | ".join([shape if shape != last else "", work, *cells]) + " |")
            last = shape
    for name, note in notes.items():
        lines += ["", f"Where {name} fails, it says: {note}"]
    absent = {r["contender"] for r in rows} - set(contenders)
    if absent:
        lines += ["", f"Not installed for this run: {', '.join(sorted(absent))}."]
    return lines


def memory_table(rows, ceiling):
    """Lines of a Markdown table of one series: memory, building and the floor of each shape."""
    contenders = installed(rows)
    lines = ["| | " + " | ".join(f"{name}: memory, build" for name in contenders) + " | floor |"]
    lines.append("|---" * (len(contenders) + 2) + "|")
    for shape, of_shape in itertools.groupby(rows, key=lambda r: r["shape"]):
        of_shape = [r for r in of_shape if "median" in r]
        cells, floor = [], []
        for name in contenders:
            own_rows = [r for r in of_shape if r["contender"] == name]
            peak = max((r["memory_peak"] for r in own_rows), default=None)
            cells.append(f"{peak:.0f}, {own_rows[0]['build']:.1f}" if own_rows else "–")
        for row in of_shape:
            if own(row["contender"]) and ceiling and "bytes" in row and row.get("flops"):
                least = max(row["bytes"] / ceiling[0], row["flops"] / ceiling[1])
                floor.append(row["median"] / least)
        lines.append("| " + " | ".join([shape, *cells, number(min(floor)) if floor else ""]) + " |")
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
    files = {path.stem: read(path) for path in sorted(folder.glob("*.csv"))}
    lines, paths = [INTRODUCTION.format(folder=folder.name)], []
    folded = {words: [] for words in QUESTIONS}
    for stem, (_, rows) in files.items():
        for series, of_series in itertools.groupby(rows, key=lambda r: r["series"]):
            of_series = list(of_series)
            words = next((w for w in QUESTIONS if series.startswith(w)), None)
            if words is None:  # the machine's ceilings
                continue
            text, picture = measurements(series, of_series, stem, folder, speeds(rows))
            folded[words] += text
            paths += picture
    for words, text in folded.items():
        if not text:
            continue
        for title, works in QUESTIONS[words].items():
            lines.append(
                f"## {title}\n\nThe pass is *{works[0]}*, where nothing else is said. The table "
                "has the smallest and the largest case of each series.\n"
            )
            for dtype in ("float32", "float64"):
                lines += table_of_question(files, words, works, dtype)
        lines += text
    lines.append("## How to read the folded tables\n" + READING)
    lines.append("## Conditions\n")
    for stem, (about, rows) in files.items():
        ceiling = speeds(rows)
        text = ", ".join(f"{key} {value}" for key, value in about.items())
        if ceiling:
            text += f"; copy {ceiling[0] / 1e6:.1f} GB/s"
            text += f", matrix product {ceiling[1] / 1e6:.0f} GFlop/s"
        lines.append(f"- `{stem}.csv`: {text}")
    page = folder.with_name(folder.name + ".md")
    page.write_text("\n".join(lines).rstrip() + "\n")
    return [page, *paths]


def table_of_question(files, words, works, dtype):
    """Lines of a question's table: the ends of each series, and all of it folded."""
    found = []
    for about, rows in files.values():
        for series, of_series in itertools.groupby(rows, key=lambda r: r["series"]):
            of_series = list(of_series)
            if series.startswith(words) and of_series[0]["dtype"] == dtype:
                versions = {**about, "MACE": about.get("mace-torch"), "NequIP": about.get("nequip")}
                found.append(list(summary(of_series, versions, works)))
    every = [row for rows in found for row in rows]
    if not every:
        return []
    header = ["", "times faster", "plain", "our ms", "their ms", "against", "memory, ours / theirs"]
    header.append("others, times faster")
    top = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    if dtype == "float64":
        return fold("The same in float64", [*top, *every])
    ends = [row for rows in found for row in dict.fromkeys(rows[:1] + rows[-1:])]
    return [*top, *ends, "", *fold("All sizes", [*top, *every])]


def measurements(series, rows, stem, folder, ceiling):
    """Everything about a series, folded, and the plot that was drawn for it."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in series)
    picture = folder / f"{stem}-{name}.svg"
    drawn = plot(rows, series, picture)
    lines = [f"![{series}]({folder.name}/{picture.name})\n"] if drawn else []
    lines += [*times_table(rows), "", *memory_table(rows, ceiling), growth(rows)]
    title = f"{series} ({rows[0]['dtype']}, {stem}.csv)"
    return fold(f"Every measurement: {title}", lines), [picture] if drawn else []


def fold(title, lines):
    return [f"<details><summary>{title}</summary>\n", *lines, "\n</details>\n"]


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "benchmarks"
    print("wrote", *write(folder.resolve()))
