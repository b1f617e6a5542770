"""Draw the picture of the README: accuracy against the time of a training step.

    python docs/figures/training.py

Reads training.csv beside it, where the numbers and their conditions stand, and writes training.svg.
Needs matplotlib.
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Read the table and draw a panel for each host."""
    lines = (HERE / "training.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    hosts = list(dict.fromkeys(row["host"] for row in rows))
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9})
    figure, axes = plt.subplots(1, len(hosts), figsize=(7, 3.2), layout="constrained")
    for axis, host in zip(axes, hosts):
        draw(axis, host, [row for row in rows if row["host"] == host])
    path = HERE / "training.svg"
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path.name}")


def draw(axis, host: str, rows: list[dict[str, str]]) -> None:
    """One host: a small point per seed, a large one for their mean."""
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        errors = [float(row["validation"]) for row in of_model]
        time, mean = 1 / float(of_model[0]["faster"]), sum(errors) / len(errors)
        color = "0.35" if model == "stock" else "C0"
        axis.plot([time] * len(errors), errors, ".", color=color, alpha=0.4)
        axis.plot(time, mean, "s" if model == "stock" else "o", color=color, markersize=8)
        axis.annotate(model, (time, mean), (0, -24), textcoords="offset points", ha="center")
    axis.set(
        xlim=(0, 1.1),
        title=host,
        xlabel="time of a training step, stock = 1",
        ylabel="force error, meV/Å (RMSE, validation)",
    )
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
