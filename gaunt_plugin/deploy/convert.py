"""Trained models rewritten on Gaunt layers, as files: the command ``gaunt convert``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gaunt_plugin._files import replacing
from gaunt_plugin.deploy.contract import ModelFileError
from gaunt_plugin.deploy.export import adapter_of, host_of


def convert(source: Path, target: Path, report: Callable[[str], None] = print) -> torch.nn.Module:
    """Rewrite a stock model of MACE on Gaunt layers, or such a Gaunt model on MACE's own.

    The numbers stay the same to rounding; blocks are compared before anything is written.

    Args:
        source: a ``.model`` of MACE. Reading it can run code that is stored in it.
        target: the ``.model`` to write.
        report: called with a line before what takes long.

    Returns:
        The model that was written.

    Raises:
        ModelFileError: the model can't be rewritten; the message names the part.
    """
    if not source.is_file():
        raise ModelFileError(f"there is no file {source}")
    if host_of(source) == "nequip":
        raise ModelFileError(
            f"{source} is NequIP's, whose models are not rewritten: they take our kernels with the "
            "modifier enable_GauntKernels (docs/convert.md)"
        )
    try:
        model = adapter_of(source).load(source)
        from gaunt_plugin.mace.convert import ConversionError, to_gaunt, to_stock
        from gaunt_plugin.mace.models import GauntModel

        try:
            new = (to_stock if isinstance(model, GauntModel) else to_gaunt)(model, report)
        except ConversionError as error:
            raise ModelFileError(str(error)) from error
    except ModelFileError as error:
        raise ModelFileError(f"can't convert {source}: {error}") from error
    with replacing(target) as file:
        torch.save(new, file)
    return new
