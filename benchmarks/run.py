"""Times operations and models, stock and Gaunt, in the environment of one host.

    python benchmarks/run.py [--device cpu] [--dtype float32] [--quick] [--only PATTERN]

Writes a CSV file of all measurements into the folder ``--out`` and, from all CSV files there, the
page ``<folder>.md`` with its plots. The host is the one that is installed.
"""

import argparse
import csv
import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from arguments import positive

from gaunt_plugin.ops import cuda
from gaunt_plugin.ops.cpu.build import is_built

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["torch", "triton", "numpy", "mace-torch", "nequip", "e3nn", "ase"]
PACKAGES += ["cuequivariance-torch", "cuequivariance-ops-torch-cu12", "openequivariance"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", choices=["mace", "nequip"], help="the host, if both would do")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=positive(int), help="default: all cores, quick: 1")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that it runs")
    parser.add_argument(
        "--peers", action="store_true", help="models with other kernels, too; always on a GPU"
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="of the names of series")
    parser.add_argument("--out", type=Path, help="folder; default: docs/benchmarks, quick: runs/")
    parser.add_argument("--seconds", type=positive(float), default=20, help="limit of one call")
    parser.add_argument(
        "--construction", type=positive(float), default=300, help="s; limit of building a contender"
    )
    parser.add_argument(
        "--memory", type=positive(float), help="GB of a process; default: 0.7 of what is free"
    )
    parser.add_argument(
        "--budget", type=positive(float), help="s for the repeats of one pass; default: 0.6"
    )
    parser.add_argument(
        "--minutes", type=positive(float), default=15, help="no case is begun after these"
    )
    args = parser.parse_args()
    threads = args.threads or (1 if args.quick else os.cpu_count())
    budget = args.budget or (0.001 if args.quick else 0.6)
    host = args.env or ("mace" if importlib.util.find_spec("mace") else "nequip")
    # Threads of this process would be lost in its forks.
    torch.set_num_threads(1)
    models = importlib.import_module(f"{host}_speed")  # first: MACE prepares e3nn's import
    import inference
    import operations
    import report
    from structures import available
    from timing import Row, Settings, measure

    limit = args.memory * 1e9 if args.memory else 0.7 * available()
    settings = Settings(
        args.device,
        args.dtype,
        threads,
        args.seconds,
        limit,
        budget,
        construction=args.construction,
    )
    out = args.out or ROOT / ("runs/benchmarks" if args.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    name = "-".join([host, args.device] + [args.dtype] * (args.dtype != "float32"))
    cases = [c for m in (operations, models, inference) for c in m.cases(args.quick)]
    if args.peers or args.device == "cuda":
        models.add_peers(cases)
    cases = [case for case in cases if re.search(args.only, case.series)]
    given_up, start = {}, time.monotonic()
    with (out / f"{name}.csv").open("w", newline="") as file:
        for key, value in conditions(host, settings).items():
            print(f"# {key}: {value}", file=file)
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for number, case in enumerate(cases, 1):
            minutes = (time.monotonic() - start) / 60
            if minutes > args.minutes:
                left = dict.fromkeys(case.series for case in cases[number - 1 :])
                print("# not measured for lack of time:", ", ".join(left), file=file)
                break
            print(f"[{number}/{len(cases)}, {minutes:.1f} min] {case.series}: {case.shape}")
            for row in measure(case, settings, given_up):
                writer.writerow(asdict(row))
                figure = f"{row.median:.2f} ms" if row.result == "ok" else row.result
                print(f"    {row.contender:22} {row.work:22} {figure}", flush=True)
            file.flush()
    print("wrote", *report.write(out))


def conditions(host, settings):
    found = {
        "host": host,
        "device": settings.device,
        "cpu": processor(),
        "threads": settings.threads,
    }
    if settings.device == "cuda":
        # torch would start CUDA in this process, and forks could not use it.
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found["gpu"] = "; ".join(found["gpu"].splitlines())
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["kernels"] = "built" if is_built() else "not built"
    found["gpu kernels"] = cuda.status().removeprefix("GPU kernels: ")
    found["python"] = platform.python_version()
    found["limits"] = f"{settings.seconds:g} s, {settings.memory / 1e9:.1f} GB"
    found["date"] = time.strftime("%Y-%m-%d")
    return found


def processor():
    """Name and clock of the CPU."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    entries = dict(re.findall(r"^(.*?)\s*: (.*)$", text, re.MULTILINE))
    name = entries.get("model name", platform.processor() or platform.machine())
    clock = f", {float(entries['cpu MHz']):.0f} MHz" if "cpu MHz" in entries else ""
    return f"{name}{clock}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
