"""The plugin that ``mace_run_train --plugin gaunt`` loads.

Importing this module registers the Gaunt interaction blocks in ``mace.modules.interaction_classes``
and puts the Gaunt model builder in front of MACE's own: the registrations that MACE's planned
plugin interface offers, for the rest of the process. Nothing else imports it.
"""

from __future__ import annotations

import argparse
import logging

from mace import modules
from mace.tools import model_script_utils

from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import CONVOLUTIONS, PRODUCTS, GauntConfig
from gaunt_plugin.mace.finetuning import load_foundations_elements
from gaunt_plugin.mace.models import ScaleShiftMACE
from gaunt_plugin.ops.cpu import build as kernels

_MODELS = ("MACE", "ScaleShiftMACE")
_DEFAULTS = GauntConfig()
_NO_LORA = "--lora wraps stock layers only and is not available for Gaunt models"


def _register() -> None:
    taken = sorted(set(INTERACTIONS) & set(modules.interaction_classes))
    if taken:
        raise RuntimeError(f"interaction blocks of these names exist already: {', '.join(taken)}")
    modules.interaction_classes.update(INTERACTIONS)
    model_script_utils._build_model = _build_model
    model_script_utils.load_foundations_elements = load_foundations_elements


def _entries(kind):
    def parse(text: str) -> tuple:
        return tuple(kind(entry.strip()) for entry in str(text).strip("[]() ").split(","))

    parse.__name__ = f"list of {kind.__name__}"  # argparse shows it
    return parse


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError  # argparse says which option it was
    return text.lower() == "true"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the Gaunt blocks; defaults become Gaunt blocks throughout."""
    group = parser.add_argument_group(
        "gaunt",
        "Gaunt blocks. Each option takes one entry, or one per interaction separated by commas. "
        f"--interaction and --interaction_first also take {', '.join(INTERACTIONS)}, and are "
        "Gaunt blocks by default.",
    )
    group.add_argument(
        "--gaunt_product",
        type=_entries(str),
        default=_DEFAULTS.product,
        help=f"many-body product: {', '.join(PRODUCTS)} (stock: MACE's symmetric contraction)",
    )
    group.add_argument(
        "--gaunt_views",
        type=_entries(int),
        default=_DEFAULTS.views,
        help="copies of the features in the products 'power' and 'nested'",
    )
    group.add_argument(
        "--gaunt_correlation",
        type=_entries(int),
        default=_DEFAULTS.correlation,
        help="factors per product; default: --correlation everywhere",
    )
    group.add_argument(
        "--gaunt_convolution",
        type=_entries(str),
        default=_DEFAULTS.convolution,
        help=f"convolution of Gaunt interactions: {', '.join(CONVOLUTIONS)}",
    )
    group.add_argument(
        "--gaunt_rank",
        type=_entries(int),
        default=_DEFAULTS.rank,
        help="channels in Gaunt convolutions per channel of the model",
    )
    group.add_argument(
        "--gaunt_selfmix",
        type=_entries(int),
        default=_DEFAULTS.selfmix,
        help="rank of a product of the messages with themselves before the many-body product; 0: "
        "none",
    )
    group.add_argument(
        "--gaunt_antisymmetric",
        type=_entries(_true_or_false),
        default=_DEFAULTS.antisymmetric,
        help="antisymmetric couplings in the product 'nested': they make pseudo parity (0o, 1e, "
        "...), which --hidden_irreps may have then",
    )
    parser.set_defaults(
        interaction="GauntResidualInteractionBlock",
        interaction_first="GauntResidualInteractionBlock",
    )


def _config(args: argparse.Namespace) -> GauntConfig:
    return GauntConfig(
        product=args.gaunt_product,
        views=args.gaunt_views,
        correlation=args.gaunt_correlation,
        convolution=args.gaunt_convolution,
        rank=args.gaunt_rank,
        selfmix=args.gaunt_selfmix,
        antisymmetric=args.gaunt_antisymmetric,
    )


def _is_stock(args: argparse.Namespace) -> bool:
    blocks = {args.interaction, args.interaction_first}
    return not blocks & set(INTERACTIONS) and set(args.gaunt_product) == {"stock"}


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Say before any training what can't work."""
    config = _config(args).resolve(args.num_interactions, args.correlation)
    if args.foundation_model is not None or _is_stock(args):
        return  # the model decides, see _build_model
    if args.model not in _MODELS:
        parser.error(f"--plugin gaunt builds --model {' or '.join(_MODELS)}, not {args.model}")
    for flag in ("enable_cueq", "only_cueq", "enable_oeq"):
        if getattr(args, flag):
            parser.error(
                f"--{flag} can't convert Gaunt layers (they need no such backend); leave it out"
            )
    if args.use_so3:
        parser.error("--use_so3 gives up parity, which Gaunt layers need; leave it out")
    if args.lora:
        parser.error(_NO_LORA)
    args.gaunt_correlation = config.correlation


def _build_model(args, model_config, model_config_foundation, heads):
    """MACE's builder, with the Gaunt model in place of ScaleShiftMACE where it is asked for."""
    if model_config_foundation is not None:
        if isinstance(model_config_foundation.get("cueq_config"), GauntConfig):
            if args.lora:
                raise ValueError(_NO_LORA)
            logging.info(f"Gaunt foundation model: {model_config_foundation['cueq_config']}")
            return ScaleShiftMACE(**model_config_foundation)
        if _is_stock(args):
            return _stock_build_model(args, model_config, model_config_foundation, heads)
        raise ValueError(
            "the foundation model has stock layers, whose weights don't fit Gaunt layers; "
            "fine-tune it without --plugin gaunt, or start from a Gaunt model"
        )
    if _is_stock(args):
        return _stock_build_model(args, model_config, model_config_foundation, heads)

    config = _config(args).resolve(args.num_interactions, args.correlation)
    if args.model == "MACE" and "Residual" in args.interaction_first:
        # --model MACE has no self-connection in its first layer (MACE replaces the block, too).
        args.interaction_first = args.interaction_first.replace("Residual", "", 1)
    logging.info(f"First interaction {args.interaction_first}, then {args.interaction}")
    for name, entries in config.to_dict().items():
        logging.info(f"Gaunt {name}: {', '.join(map(str, entries))}")
    logging.info(kernels.status())
    first = modules.interaction_classes[args.interaction_first]

    def build(**kwargs):
        kwargs.update(cueq_config=config, interaction_cls_first=first)
        return ScaleShiftMACE(**kwargs)

    stock = modules.ScaleShiftMACE
    modules.ScaleShiftMACE = build
    try:
        return _stock_build_model(args, model_config, model_config_foundation, heads)
    finally:
        modules.ScaleShiftMACE = stock


_stock_build_model = model_script_utils._build_model
_register()
