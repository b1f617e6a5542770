"""``gaunt nequip-torchscript``: the file of ``nequip-compile --mode torchscript``.

Environment: nequip. NequIP refuses TorchScript with torch >= 2.10, where it is deprecated but
works; ``pair_nequip`` of LAMMPS reads it. This command runs NequIP's own code without that check:
same arguments, same ``.nequip.pth`` with the same metadata. An existing file is replaced only by a
complete one.
"""

from __future__ import annotations

import sys
from unittest import mock

from gaunt_plugin._files import replacing


def main(args: list[str]) -> None:
    """Write a ``.nequip.pth`` file.

    Args:
        args: arguments of ``nequip-compile`` without ``--mode``.
    """
    from nequip.model.inference_models import torchscript
    from nequip.scripts import compile as nequip_compile

    save = torchscript.save_torchscript_model

    def save_beside(model, metadata, output_path, device):
        with replacing(output_path) as new:
            save(model, metadata, str(new), device)

    if any(arg.split("=")[0] == "--mode" for arg in args):
        sys.exit("leave out --mode: this command writes TorchScript")
    if not any(arg.split("=")[0] == "--device" for arg in args):
        args = [*args, "--device", "cpu"]
    with (
        mock.patch.object(nequip_compile, "_TORCH_GE_2_10", False),
        mock.patch.object(torchscript, "save_torchscript_model", save_beside),
    ):
        nequip_compile.main(["--mode", "torchscript", *args])
