"""``gaunt-nequip-torchscript``: the file of ``nequip-compile --mode torchscript``.

Environment: nequip. NequIP refuses TorchScript with torch >= 2.10, where it is deprecated but
works; ``pair_nequip`` of LAMMPS reads it. This command runs NequIP's own code without that check:
same arguments, same ``.nequip.pth`` with the same metadata.
"""

from __future__ import annotations

import sys
from unittest import mock


def main(args: list[str] | None = None) -> None:
    """Write a ``.nequip.pth`` file.

    Args:
        args: arguments of ``nequip-compile`` without ``--mode``; default: the command line's.
    """
    from nequip.scripts import compile as nequip_compile

    args = sys.argv[1:] if args is None else args
    if any(arg.split("=")[0] == "--mode" for arg in args):
        sys.exit("leave out --mode: this command writes TorchScript")
    if not any(arg.split("=")[0] == "--device" for arg in args):
        args = [*args, "--device", "cpu"]
    with mock.patch.object(nequip_compile, "_TORCH_GE_2_10", False):
        nequip_compile.main(["--mode", "torchscript", *args])


if __name__ == "__main__":
    main()
