"""The command ``gaunt-kernels``."""

from __future__ import annotations

import argparse
import sys

from gaunt_plugin._compiler import BuildError
from gaunt_plugin.ops import cuda
from gaunt_plugin.ops.cpu.build import build, status


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; errors that name their cause are printed without a traceback."""
    parser = argparse.ArgumentParser(
        prog="gaunt-kernels", description="Fused CPU kernels for training and for ASE."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="compile them for this machine")
    command.add_argument("--force", action="store_true", help="compile again")
    commands.add_parser("info", help="say whether layers on this machine use them")
    args = parser.parse_args(arguments)
    try:
        if args.command == "build":
            build(force=args.force)
        else:
            print(status())
            print(cuda.status())
    except (BuildError, OSError, RuntimeError) as error:
        print(f"gaunt-kernels {args.command}: {error}", file=sys.stderr)
        return 1
    return 0
