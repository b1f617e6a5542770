"""Models as weights and a JSON configuration: a file that runs no code when it is loaded.

MACE's own ``.model`` files are pickles, which can execute anything. This form holds a JSON string
(irreps, blocks, parametrisation, normalisation, dtype) and a state dict; ``torch.load`` reads it
with ``weights_only=True``. From the shell::

    python -m gaunt_plugin.mace.weights pack MODEL.model MODEL.weights
    python -m gaunt_plugin.mace.weights unpack MODEL.weights MODEL.model
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mace import modules
from mace.tools.scripts_utils import extract_config_mace_model
from mace.tools.torch_tools import default_dtype

import numpy as np
import torch
from e3nn import o3

from gaunt_plugin._files import replacing
from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.models import MODELS, GauntModel

FORMAT = 1
_BLOCKS = {**modules.interaction_classes, **modules.readout_classes, **INTERACTIONS}
_CLASSES = ("interaction_cls", "interaction_cls_first", "readout_cls")
_IRREPS = ("hidden_irreps", "edge_irreps", "MLP_irreps")
_ARRAYS = ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift")


def model_config(model: GauntModel) -> dict:
    """Everything needed to build ``model`` again, as JSON types.

    Raises:
        ValueError: not a Gaunt model, or one with parts that JSON can't name.
    """
    if not isinstance(model, GauntModel):
        raise ValueError(
            f"expected a Gaunt MACE model, got {type(model).__module__}.{type(model).__name__}"
        )
    config = extract_config_mace_model(model)
    if "error" in config:
        raise ValueError(f"MACE can't describe a {type(model).__name__}; pass on its .model")
    config["model"] = type(model).__name__
    config["gaunt"] = config.pop("cueq_config").to_dict()
    config["gate"] = _gate_name(config["gate"])
    for name in _CLASSES:
        if config[name].__name__ not in _BLOCKS:
            raise ValueError(f"{name} {config[name]} is neither one of MACE's nor a Gaunt block")
        config[name] = config[name].__name__
    for name in _IRREPS:
        config[name] = None if config[name] is None else str(config[name])
    for name in (*_ARRAYS, "atomic_numbers"):
        config[name] = np.asarray(config[name]).tolist()
    return config


def save_weights(model: GauntModel, path: str | Path) -> None:
    """Write configuration and state dict of a Gaunt model to one file.

    Raises:
        ValueError: see :func:`model_config`.
    """
    dtype = next(model.parameters()).dtype
    content = {
        "format": FORMAT,
        "config": json.dumps({"dtype": str(dtype).removeprefix("torch."), **model_config(model)}),
        "state_dict": model.state_dict(),
    }
    with replacing(path) as new:
        torch.save(content, new)


def load_weights(path: str | Path, map_location: str = "cpu") -> GauntModel:
    """Build the model of a file written by :func:`save_weights`; no code in it is run.

    Raises:
        ValueError: not such a file, or one of a newer format.
        FileNotFoundError: no such file.
    """
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a weights file of gaunt_plugin: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError(f"{path} is not a weights file of gaunt_plugin")
    if content["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {content['format']}, this version reads up to {FORMAT}: "
            "update gaunt_plugin"
        )
    try:
        return _build(json.loads(content["config"]), content["state_dict"]).to(map_location)
    except Exception as error:  # whatever is missing or of the wrong kind
        raise ValueError(
            f"{path} is not a weights file of gaunt_plugin: {type(error).__name__}: {error}"
        ) from error


def _build(config: dict, state_dict: dict) -> GauntModel:
    dtype = config.pop("dtype")
    config["cueq_config"] = GauntConfig.from_dict(config.pop("gaunt"))
    config["gate"] = modules.gate_dict[config["gate"]]
    for name in _CLASSES:
        config[name] = _BLOCKS[config[name]]
    for name in _IRREPS:
        config[name] = None if config[name] is None else o3.Irreps(config[name])
    for name in _ARRAYS:
        config[name] = np.asarray(config[name])
    with default_dtype(dtype):
        model = MODELS[config.pop("model", "ScaleShiftMACE")](**config)
    model.load_state_dict(state_dict)
    return model


def _gate_name(gate) -> str:
    for name, function in modules.gate_dict.items():
        if gate is function:
            return name
    raise ValueError(f"the readout's gate {gate} is none of {', '.join(modules.gate_dict)}")


def main(argv: list[str] | None = None) -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m gaunt_plugin.mace.weights",
        description="Convert Gaunt MACE models between MACE's pickle and weights + JSON.",
    )
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.action == "pack":
            save_weights(
                torch.load(args.source, map_location="cpu", weights_only=False), args.target
            )
        else:
            model = load_weights(args.source)
            with replacing(args.target) as new:
                torch.save(model, new)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
