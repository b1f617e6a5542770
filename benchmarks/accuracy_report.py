"""The page and the plots of the finished trainings in a folder; no host is needed.

python benchmarks/accuracy_report.py [docs/accuracy]
"""

import csv
import itertools
import math
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

ROOT = Path(__file__).resolve().parents[1]
INTRODUCTION = """# Accuracy at equal cost

Written by `python benchmarks/accuracy_report.py` from the CSV files in `{folder}/`, to which
`python benchmarks/accuracy.py` adds each training that it finishes. It has nothing else: what is
missing here hasn't been run.

Every model of a table is trained by its host's own command for the same CPU time, on one thread, in
float32 with the kernels of `gaunt build kernels`; under "Longer trainings" for a number of epochs
that was given. The budget counts the CPU time of the process, from its
start to its last epoch, not the time on the clock: other processes ran beside it, and trainings
were stopped and resumed. The learning rate falls by a constant factor per epoch, chosen with the
number of epochs from the time of an epoch; CPU times more than 10 % off the budget are **bold**.
Of 500 published frames at 300 K, 450 (or fewer, where a title says so) are for training and 50 for
choosing the epoch; a seed is one split, the same for all models, and one start of the weights.
Batches of 5, cutoff 5 Å if nothing else is said; all other settings are in
`benchmarks/accuracy.yaml`.

Errors are root mean squares over the published test sets, without frames that are in the training
file, too (31 of train_mixedT of 3BPA are): forces in meV/Å, in brackets energies of whole
molecules in meV. Means of seeds, ± half of their range.
"""
# Force and energy errors of models trained to convergence on the same frames, from the papers.
PUBLISHED = {
    ("acac", "mace", "450"): {"300K": (5.1, 0.9), "600K": (22.4, 4.6)},
    ("acac", "nequip", "450"): {"300K": (5.9, 0.81), "600K": (27.8, 6.04)},
}
TITLES = {"acac": "Acetylacetone", "3bpa": "3BPA"}
HOSTS = {"mace": "MACE", "nequip": "NequIP"}


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def tests(rows):
    """Names of the test sets of these rows."""
    names = [key.removesuffix("_energy") for row in rows for key in row if key.endswith("_energy")]
    return [name for name in dict.fromkeys(names) if any(row[f"{name}_energy"] for row in rows)]


def number(values):
    """Mean of the seeds and half of their range."""
    values = [float(value) for value in values]
    digits = 1 if statistics.mean(values) < 100 else 0
    text = f"{statistics.mean(values):.{digits}f}"
    spread = (max(values) - min(values)) / 2
    return text if len(values) == 1 else f"{text} ± {spread:.{digits}f}"


def table(rows):
    """Lines of a Markdown table: models of one data set, host and budget, the best first."""
    names = tests(rows)
    columns = ["model", "learning rate", "seeds", "parameters", "epochs", "threads", "CPU, s"]
    columns += names
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    models = models_of(rows)
    first = next((f"{n}_forces" for n in names if rows[0].get(f"{n}_forces")), f"{names[0]}_energy")
    order = sorted(models, key=lambda m: statistics.mean(float(row[first]) for row in models[m]))
    for model in order:
        runs = models[model]
        cells = [*model, str(len(runs)), runs[0]["parameters"]]
        cells += [spread(runs, "epochs"), spread(runs, "threads")]
        planned = 60 * (minutes(runs[0]) or math.nan)
        off = any(abs(float(run["cpu"]) / planned - 1) > 0.1 for run in runs)
        cells.append(f"**{spread(runs, 'cpu')}**" if off else spread(runs, "cpu"))
        for name in names:
            energy = number(run[f"{name}_energy"] for run in runs)
            forces = [run[f"{name}_forces"] for run in runs if run.get(f"{name}_forces")]
            cells.append(f"{number(forces)} ({energy})" if forces else f"({energy})")
        lines.append("| " + " | ".join(cells) + " |")
    host = rows[0]["host"]
    if errors := PUBLISHED.get((rows[0]["set"], host, rows[0]["frames"])):
        found = ["{} ({})".format(*errors[n]) if n in errors else "" for n in names]
        model = f"*{HOSTS[host]}, converged (published)*"
        lines.append("| " + " | ".join([model, *[""] * 6, *found]) + " |")
    return lines


def minutes(row):
    """The budget of CPU time; None where a number of epochs was given."""
    return float(row["budget"].removesuffix("min")) if row["budget"].endswith("min") else None


def rate(row):
    """The learning rate at the start and at the end."""
    first = float(row["lr"])
    return f"{first:g} to {first * float(row['final']):.2g}"


def spread(runs, key):
    """All values, once each."""
    return ", ".join(sorted({run[key] for run in runs}, key=float))


def plot(rows, folder, path):
    """Errors against CPU time: forces on the validation set and on each test that has them."""
    panels = ["forces", *[f"{name}_forces" for name in tests(rows)]]
    panels = panels[:1] + [p for p in panels[1:] if any(row.get(p) for row in rows)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels) + 2.6, 3.4), squeeze=False
    )
    for number, (model, runs) in enumerate(models_of(rows).items()):
        style = "--" if model[0].startswith("stock") else "-"
        for run in runs:
            curve = read(folder / "curves" / f"{stem(run)}.csv")
            label = ", ".join(model) if run is runs[0] else None
            for axis, panel in zip(axes[0], panels):
                points = [(float(c["cpu"]), float(c[panel])) for c in curve if c.get(panel)]
                axis.loglog(*zip(*points), style, color=f"C{number}", label=label, lw=1)
    for axis, panel in zip(axes[0], panels):
        title = "validation" if panel == "forces" else panel.removesuffix("_forces")
        axis.set(title=title, xlabel="CPU time, s", ylabel="forces, meV/Å")
        round_ticks(axis)
    axes[0][-1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def plot_overview(groups, folder, path):
    """Force errors on the validation set against CPU time: stock models and Gaunt models, per host.

    The README's picture. Of each host it has the group with the most models.
    """
    best = {}
    for group in groups:
        host = group[0]["host"]
        if host not in best or len(models_of(group)) > len(models_of(best[host])):
            best[host] = group
    figure, axes = plt.subplots(1, len(best), figsize=(4.2 * len(best), 3.2), squeeze=False)
    for axis, group in zip(axes[0], best.values()):
        for row in group:
            curve = read(folder / "curves" / f"{stem(row)}.csv")
            stock = row["model"].startswith("stock")
            points = [(float(c["cpu"]), float(c["forces"])) for c in curve]
            axis.loglog(*zip(*points), color="0.45" if stock else "C0", alpha=0.8, lw=1)
        for label, color in (("stock", "0.45"), ("Gaunt", "C0")):
            axis.plot([], [], color=color, label=label)
        axis.set(
            title=title_of(group[0]), xlabel="CPU time of training, s", ylabel="force error, meV/Å"
        )
        round_ticks(axis)
        axis.legend()
    save(figure, path)


def title_of(row):
    return f"{TITLES.get(row['set'], row['set'])}, {HOSTS[row['host']]}"


def round_ticks(axis):
    """Ticks of logarithmic axes at 1, 2 and 5, and a grid."""
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def models_of(rows):
    """The runs of each model and learning rate."""
    found = {}
    for row in rows:
        found.setdefault((row["model"], rate(row)), []).append(row)
    return found


def plot_scans(rows, folder, path):
    """Errors of energies along the scans, of the first seed of each model; False without any."""
    models = models_of(rows)
    paths = [folder / "scans" / f"{stem(runs[0])}.csv" for runs in models.values()]
    scans = {", ".join(model): read(p) for model, p in zip(models, paths) if p.exists()}
    names = list(dict.fromkeys(point["test"] for scan in scans.values() for point in scan))
    if not names:
        return False
    figure, axes = plt.subplots(1, len(names), figsize=(5.4 * len(names) + 2.6, 3.4), squeeze=False)
    for number, (model, scan) in enumerate(scans.items()):
        style = "--" if model.startswith("stock") else "-"
        for axis, name in zip(axes[0], names):
            errors = [float(point["error"]) for point in scan if point["test"] == name]
            axis.plot(errors, style, color=f"C{number}", label=model, lw=1)
    for axis, name in zip(axes[0], names):
        axis.set(title=name, xlabel="point of the scan", ylabel="error of the energy, meV")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)
    return True


def stem(row):
    """Name of the file with the curve of a run."""
    model = row["model"].replace(" ", "_")
    rates = f"lr{row['lr']}-final{row['final']}"
    frames = f"{row['frames']}frames-{row['budget']}"
    return f"{row['set']}-{row['host']}-{model}-{frames}-{rates}-{row['seed']}"


def write(folder):
    """Write the page beside the folder and the plots into it; returns their paths."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 8})
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=matplotlib.colormaps["tab20"].colors)
    page = folder.with_suffix(".md")
    lines, paths = [INTRODUCTION.format(folder=folder.name)], [page]
    findings = folder / "findings.md"
    if findings.exists():
        lines.append(findings.read_text())
    rows = read(folder / "runs.csv")
    kind = lambda row: (  # noqa: E731
        row["set"] != "acac",
        row["set"],
        -(minutes(row) or math.inf),
        row["host"],
        -int(row["frames"]),
    )
    rows.sort(key=kind)
    groups = [list(group) for _, group in itertools.groupby(rows, key=kind)]
    paths.append(folder / "overview.svg")
    plot_overview(groups, folder, paths[-1])
    for group in groups:
        row = group[0]
        name, time = "longer", "longer trainings"  # of any number of epochs
        if planned := minutes(row):
            name, time = row["budget"], f"{planned:g} minutes"
        title = f"{title_of(row)}, {time}, {row['frames']} frames"
        lines += [f"## {title}", "", *table(group), ""]
        figures = folder / f"{row['set']}-{row['host']}-{row['frames']}frames-{name}"
        paths.append(figures.with_name(f"{figures.name}.svg"))
        plot(group, folder, paths[-1])
        lines += [f"![errors against CPU time]({folder.name}/{paths[-1].name})", ""]
        scans = figures.with_name(f"{figures.name}-scans.svg")
        if plot_scans(group, folder, scans):
            paths.append(scans)
            lines += [f"![errors of energies along scans]({folder.name}/{scans.name})", ""]
    page.write_text("\n".join(lines).rstrip() + "\n")
    return paths


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "accuracy"
    print("wrote", *write(target))
