"""Train the model ``3bpa-small`` and write what lies beside this file.

    python gaunt_plugin/pretrained/make_3bpa_small.py        # in the repository, environment mace

The sizes are those of ``configs/mace/quickstart.yaml``; the data are the sample in
``examples/3bpa_sample``, which is ours under the repository's licence. It takes about 15 minutes on
one core. ``--only-write`` takes the model that a run has left.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SAMPLE = ROOT / "examples" / "3bpa_sample"
RUN = ROOT / "runs" / "3bpa-small"
NAME = "3bpa-small"
TRAIN = ("train_300K.xyz", "train_mixedT.xyz")
EPOCHS, DECAY = 500, 0.992
CARD = """\
# 3bpa-small

A Gaunt model of MACE for one molecule, 3-(benzyloxy)pyridin-2-amine (3BPA, C12H12N2O): for a first
molecular dynamics, and for tests. It knows nothing else: no other molecule, no reaction.

Written by `make_3bpa_small.py`, which stands beside this file.

* Model: the sizes of `configs/mace/quickstart.yaml` (two layers of 16x0e + 16x1o, ℓ 3, three
  factors, cutoff 4 Å), {parameters} parameters, float32.
* Data: `{train}` of `examples/3bpa_sample`, GFN2-xTB, 299 frames, of which MACE's split by
  seed 0 keeps {valid} for validation. This project computed them; they are not the published 3BPA
  data, and errors on them can't be compared with published ones.
* Training: {epochs} epochs with seed 0, batches of 5, Adam from 0.01 times {decay} per epoch,
  averaged weights, on one core of a CPU. MACE keeps the best epoch of the validation: {best}.
* Licence of model and data: MIT, as the repository.

Errors of energies of the molecule and of force components, root mean square, by MACE. Test frames
are of trajectories of their own and were not trained on:

| | energy, meV | force, meV/Å | force, % |
|---|---|---|---|
{errors}

```python
from gaunt_plugin.calculator import GauntCalculator

atoms.calc = GauntCalculator("3bpa-small")
```

For LAMMPS: `gaunt export 3bpa-small model.pt`. To train it further with MACE:
`python -m gaunt_plugin.mace.weights unpack 3bpa-small.weights 3bpa-small.model`, then
`--foundation_model 3bpa-small.model`.
"""


def main() -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only-write", action="store_true", help="of a run that is done")
    if not parser.parse_args().only_write:
        train()
    write()


def train() -> None:
    """MACE's training command; its output goes to a file."""
    RUN.mkdir(parents=True, exist_ok=True)
    frames = "".join((SAMPLE / name).read_text(encoding="utf-8") for name in TRAIN)
    (RUN / "train.xyz").write_text(frames, encoding="utf-8")
    command = [sys.executable, "-m", "gaunt_plugin.mace.run_train", "--plugin", "gaunt"]
    command += ["--config", "configs/mace/quickstart.yaml", "--name", NAME, "--work_dir", str(RUN)]
    command += ["--train_file", str(RUN / "train.xyz"), "--max_num_epochs", str(EPOCHS)]
    command += ["--lr_scheduler_gamma", str(DECAY)]
    start = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            if found := re.search(r"Epoch (\d+)0: .*", line):
                print(f"{time.monotonic() - start:5.0f} s  {found[0]}", flush=True)
    if process.returncode != 0:
        sys.exit(f"training failed; {RUN}/logs has the log")


def write() -> None:
    """The weights, a card with the errors of MACE's last tables, and energies for the test."""
    from mace.calculators import MACECalculator

    import torch
    from ase.io import read

    from gaunt_plugin.mace import weights

    model = torch.load(RUN / f"{NAME}.model", map_location="cpu", weights_only=False)
    weights.save_weights(model, HERE / f"{NAME}.weights")

    log = max((RUN / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime).read_text()
    rows = re.findall(r"\| +(\w+)_Default +\| +([\d.]+) +\| +([\d.]+) +\| +([\d.]+) +\|", log)[-5:]
    (valid,) = RUN.glob("*_valid_indices_*.txt")
    card = CARD.format(
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        train="` and `".join(TRAIN),
        valid=len(valid.read_text().split()),
        epochs=EPOCHS,
        decay=DECAY,
        best=re.findall(r"model from epoch (\d+)", log)[-1],
        errors="\n".join(f"| {' | '.join((row[0].replace('_', ' '), *row[1:]))} |" for row in rows),
    )
    (HERE / f"{NAME}.md").write_text(card, encoding="utf-8")

    # For a test: energies of the first frames of the test sets, eV.
    calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64")
    energies = {}
    for path in sorted(SAMPLE.glob("test_*K.xyz")):
        atoms = read(path, 0)
        atoms.calc = calculator
        energies[path.name] = round(float(atoms.get_potential_energy()), 5)
    (HERE / f"{NAME}.json").write_text(json.dumps(energies, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
