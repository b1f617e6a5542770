"""Energy and forces through ASE: the host's model, its best compiled form, and ours as exported.

    python benchmarks/inference.py [--threads 1] [--dtype float32] [--only PATTERN]

Prints a Markdown table. The host is the one that is installed; of MACE the peer is Symmetrix-XL on
the stock model (``pip install symmetrix-xl``, and a C++20 compiler), and beside it stands that
model as ``gaunt convert`` rewrites it; of NequIP the peer is its own AOTInductor. Both compile for
minutes; what Symmetrix-XL has compiled it keeps, so that a second run begins at once. ``run.py``
has the same cases.
"""

import argparse
import importlib.util
import math
import os
import re
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

if importlib.util.find_spec("mace"):
    import mace_speed  # first: MACE prepares e3nn's import
else:
    import nequip_speed

import numpy as np
import torch
from arguments import positive
from structures import available, molecules, water
from timing import Case, Settings, Work, device, measure, model_dtype, require

from gaunt_plugin.deploy.export import export

MACE = importlib.util.find_spec("mace") is not None
MACE_SIZES = ("128x0e", "128x0e+128x1o", "64x0e+64x1o+64x2e")
L_MAX = (1, 2, 3)  # of NequIP, 64 features, 4 layers
STRUCTURES = {"molecule": partial(molecules, 1), "box": lambda: [water(6, 6, 6)]}


def through_ase(calculator, frames):
    """One call of a calculator after another, with atoms that move a little."""
    atoms = frames()[0]
    atoms.calc = calculator
    step = 1e-5 * np.random.default_rng(0).standard_normal(atoms.positions.shape)

    def call():
        atoms.positions += step
        return atoms.get_potential_energy(), atoms.get_forces()

    return Work({"energy + forces, ASE": call})


def gaunt(model, frames):
    from gaunt_plugin.calculator import GauntCalculator

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        export(model(), path)
        return through_ase(GauntCalculator(path, device=device()), frames)


def mace_model(is_gaunt, hidden):
    """Both twins with residual blocks only: Symmetrix-XL knows no other first block."""
    return mace_speed.model(is_gaunt, hidden, residual_first=True)


def converted(hidden):
    from gaunt_plugin.mace.convert import to_gaunt

    return to_gaunt(mace_model(False, hidden))


def mace_stock(hidden, frames):
    from mace.calculators import MACECalculator

    model = mace_model(False, hidden)
    calculator = MACECalculator(models=model, device=device(), default_dtype=model_dtype())
    return through_ase(calculator, frames)


def symmetrix(hidden, frames):
    require("symmetrix")
    # Its OpenMP, unlike torch's, is not loaded yet in this process; it asks for the last two.
    threads = str(torch.get_num_threads())
    os.environ.update(OMP_NUM_THREADS=threads, OMP_PROC_BIND="spread", OMP_PLACES="threads")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        source, target = Path(folder, "stock.model"), Path(folder, "stock.json")
        torch.save(mace_model(False, hidden), source)
        with redirect_stdout(nothing), redirect_stderr(nothing):
            from symmetrix import Symmetrix
            from symmetrix.cli.extract_mace import main as extract

            extract(["--model", str(source), "--output", str(target)])
            return through_ase(Symmetrix(str(target), dtype=model_dtype()), frames)


def nequip_model(is_gaunt, lmax):
    return nequip_speed.model(int(is_gaunt), lmax).eval()


def nequip_stock(lmax, frames):
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms

    model, types = nequip_model(False, lmax), nequip_speed.TYPES
    transforms = basic_transforms(model.metadata, 5.0, types, {t: t for t in types})
    return through_ase(NequIPCalculator(model, device=device(), transforms=transforms), frames)


def aotinductor(lmax, frames):
    """``nequip-compile`` of the stock model; the command reads a file, here it gets the model."""
    from nequip.integrations.ase import NequIPCalculator
    from nequip.scripts import compile as nequip_compile

    example = nequip_speed.batch(molecules(1))
    example = {k: v.double() if v.is_floating_point() else v for k, v in example.items()}
    loaded = nequip_model(False, lmax), example
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.nequip.pt2")
        arguments = ["a model.ckpt", str(path), "--mode", "aotinductor", "--target", "ase"]
        with mock.patch.object(nequip_compile, "load_saved_model", return_value=loaded):
            nequip_compile.main([*arguments, "--device", device()])
        calculator = NequIPCalculator.from_compiled_model(str(path), device=device())
    return through_ase(calculator, frames)


def cases(quick):
    """The cases of the installed host; their first contender is stock."""
    host = "MACE" if MACE else "NequIP"
    if MACE:
        peers = {"MACE": mace_stock, "Symmetrix-XL": symmetrix}
        ours, sizes, shape = mace_model, MACE_SIZES, "{}, ℓ 3, ν 3"
    else:
        peers = {"NequIP": nequip_stock, "NequIP, AOTInductor": aotinductor}
        ours, sizes, shape = nequip_model, L_MAX, "l_max {}, 64 features, 4 layers"
    if quick:
        peers, sizes = {host: peers[host]}, ["2x0e" if MACE else 1]
    found = []
    for name, frames in STRUCTURES.items():
        if quick and name == "box":
            continue
        for number, size in enumerate(sizes, 1):
            contenders = {peer: partial(build, size, frames) for peer, build in peers.items()}
            contenders["Gaunt"] = partial(gaunt, partial(ours, True, size), frames)
            if MACE:
                contenders["MACE, converted"] = partial(gaunt, partial(converted, size), frames)
            title = shape.format(size)
            found.append(Case(f"{host}, ASE, {name}", number, title, contenders))
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=positive(int), default=1)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="of names like 'box, 128x0e,'"
    )
    parser.add_argument("--without", nargs="+", default=[], metavar="CONTENDER")
    parser.add_argument("--seconds", type=positive(float), default=60, help="limit of one call")
    parser.add_argument(
        "--construction", type=positive(float), default=600, help="limit of building, s"
    )
    parser.add_argument(
        "--budget", type=positive(float), default=6, help="s for the repeats of a case"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # of this process: its forks have their own
    settings = Settings(
        args.device,
        args.dtype,
        args.threads,
        args.seconds,
        0.7 * available(),
        args.budget,
        construction=args.construction,
    )
    print(f"{args.dtype}, {args.threads} threads, ms per call; in brackets times Gaunt's\n")
    header = None
    for case in cases(quick=False):
        structure = case.series.split(", ")[-1]
        name = f"{structure}, {case.shape}"
        if not re.search(args.only, name):
            continue
        for contender in args.without:
            case.contenders.pop(contender, None)
        rows = measure(case, settings, {})
        if header is None:
            header = ["", "atoms", *case.contenders, "Gaunt, µs per atom"]
            print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
        atoms = len(STRUCTURES[structure]()[0])
        own = next((row.median for row in rows if row.contender == "Gaunt"), "") or math.nan
        cells = [name, str(atoms)]
        for row in rows:
            good = row.result == "ok"
            cells.append(f"{row.median:.4g} ({row.median / own:.2f})" if good else row.result)
        print("| " + " | ".join([*cells, f"{1e3 * own / atoms:.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
