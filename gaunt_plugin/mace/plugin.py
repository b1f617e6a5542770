"""The plugin that ``mace_run_train --plugin gaunt`` loads.

Importing this module registers the Gaunt interaction blocks in ``mace.modules.interaction_classes``
and puts the Gaunt model builder in front of MACE's own: the registrations that MACE's planned
plugin interface offers, for the rest of the process. Nothing else imports it.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import fields

from mace import modules
from mace.modules import extensions
from mace.tools import model_script_utils, scripts_utils

import torch

from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import CONVOLUTIONS, PARAMETRIZATIONS, GauntConfig
from gaunt_plugin.mace.convert import gaunt_config
from gaunt_plugin.mace.finetuning import load_foundations_elements
from gaunt_plugin.mace.models import MODELS
from gaunt_plugin.ops import cuda
from gaunt_plugin.ops.cpu import build as kernels
from gaunt_plugin.optim import Muon, grouped

_DEFAULTS = GauntConfig()
_WITHOUT_FOUNDATION = ("AtomicDipolesMACE", "AtomicDielectricMACE", "EnergyDipolesMACE")
# Of Muon's steps. MACE divides messages by the number of neighbours, NequIP by its root: in MACE
# products of messages are small, and learn late without this. On acetylacetone the force RMSE
# after 12 epochs is 27 meV/Å with 1, 22 with 20 and 21 with 30.
_FACTOR_OF_PRODUCTS = 20.0
# Models whose first layer has no self-connection in MACE, whatever --interaction_first says.
_PLAIN_FIRST = ("MACE", *_WITHOUT_FOUNDATION)


def _register() -> None:
    taken = sorted(set(INTERACTIONS) & set(modules.interaction_classes))
    if taken:
        raise RuntimeError(f"interaction blocks of these names exist already: {', '.join(taken)}")
    modules.interaction_classes.update(INTERACTIONS)
    model_script_utils._build_model = _build_model
    model_script_utils.load_foundations_elements = load_foundations_elements
    # The training command has names of its own for these, and may be the main module.
    for name in ("mace.tools.scripts_utils", "mace.cli.run_train", "__main__"):
        module = sys.modules.get(name)
        if getattr(module, "get_optimizer", None) is _stock_get_optimizer:
            module.get_optimizer = _get_optimizer
            module.get_params_options = _get_params_options


class _JoinWords(argparse.Action):
    """Stores one tuple: MACE's parser hands on a list of a YAML file as one word per entry."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(entry for word in values for entry in word))


def _entries_of(kind: Callable, expected: str) -> Callable[[str], list]:
    def parse(word: str) -> list:
        try:
            return [kind(entry.strip(" '\"")) for entry in word.strip("[](), ").split(",")]
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(
                f"expected {expected} or a list of one per interaction, got {word!r}"
            ) from None

    return parse


def _true_or_false(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


_NAME = _entries_of(str, "a name")
_NUMBER = _entries_of(int, "a whole number")
_BOOLEAN = _entries_of(_true_or_false, "true or false")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the Gaunt blocks; defaults become Gaunt blocks throughout."""
    group = parser.add_argument_group(
        "gaunt",
        "Gaunt blocks. Each option takes one entry, or one per interaction: 1,2 here, "
        "also [1, 2] in YAML. "
        f"--interaction and --interaction_first also take {', '.join(INTERACTIONS)}, and are "
        "Gaunt blocks by default.",
    )

    def add(name: str, entries: Callable, text: str) -> None:
        group.add_argument(
            f"--gaunt_{name}",
            nargs="+",
            type=entries,
            action=_JoinWords,
            default=getattr(_DEFAULTS, name),
            metavar="ENTRY",
            help=text,
        )

    add(
        "parametrization",
        _NAME,
        f"many-body product: {', '.join(PARAMETRIZATIONS)} (stock: MACE's own)",
    )
    add(
        "product_rank",
        _NUMBER,
        "copies of the features in the products 'power' and 'nested'",
    )
    add(
        "correlation",
        _NUMBER,
        "factors per product; default: --correlation everywhere",
    )
    add(
        "convolution",
        _NAME,
        f"convolution of Gaunt interactions: {', '.join(CONVOLUTIONS)}",
    )
    add(
        "convolution_rank",
        _NUMBER,
        "channels in Gaunt convolutions per channel of the model",
    )
    add(
        "selfmix_rank",
        _NUMBER,
        "rank of a product of the messages with themselves before the many-body product; 0: none",
    )
    add(
        "antisymmetric",
        _BOOLEAN,
        "antisymmetric couplings in the product 'nested': they make pseudo parity (0o, 1e, "
        "...), which --hidden_irreps may have then",
    )
    (optimizer,) = (action for action in parser._actions if action.dest == "optimizer")
    optimizer.choices = [*optimizer.choices, "muon"]
    parser.set_defaults(
        interaction="GauntResidualInteractionBlock",
        interaction_first="GauntResidualInteractionBlock",
    )


def _longrange_fits() -> bool:
    """Whether graph_longrange is there, in a release that has what MACE calls."""
    if not extensions.GRAPH_LONGRANGE_AVAILABLE:
        return False
    method = extensions.GTOElectrostaticFeatures.precompute_geometry
    return "force_pbc_evaluator" in inspect.signature(method).parameters


def _config(args: argparse.Namespace) -> GauntConfig:
    return GauntConfig(
        **{field.name: getattr(args, f"gaunt_{field.name}") for field in fields(GauntConfig)}
    )


def _is_stock(args: argparse.Namespace) -> bool:
    blocks = {args.interaction, args.interaction_first}
    return not blocks & set(INTERACTIONS) and set(args.gaunt_parametrization) == {"stock"}


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Say before any training what can't work."""
    config = _config(args).resolve(args.num_interactions, args.correlation)
    if _is_stock(args):
        return
    if args.foundation_model is not None:
        if args.model in _WITHOUT_FOUNDATION:
            parser.error(f"--model {args.model} can't start from a --foundation_model in MACE")
        return  # the foundation model decides, see _build_model
    if args.model == "MACELES":
        parser.error("--model MACELES needs the package les, which is not on PyPI: not supported")
    if args.model not in ("MACE", *MODELS):
        parser.error(f"--plugin gaunt builds --model MACE, {', '.join(MODELS)}, not {args.model}")
    if args.model == "PolarMACE" and not _longrange_fits():
        parser.error('--model PolarMACE needs another package: pip install "gaunt-plugin[polar]"')
    for flag in ("enable_cueq", "only_cueq", "enable_oeq"):
        if getattr(args, flag):
            parser.error(
                f"--{flag} can't convert Gaunt layers (they need no such backend); leave it out"
            )
    if args.radial_type == "chebyshev":
        parser.error("--radial_type chebyshev has no derivative in MACE: forces would be wrong")
    if args.use_so3:
        parser.error("--use_so3 gives up parity, which Gaunt layers need; leave it out")
    args.gaunt_correlation = config.correlation


def _build_model(args, model_config, model_config_foundation, heads):
    """MACE's builder, with the Gaunt model in place of the stock one where it is asked for."""
    if model_config_foundation is not None:
        if isinstance(model_config_foundation.get("cueq_config"), GauntConfig):
            logging.info(f"Gaunt foundation model: {model_config_foundation['cueq_config']}")
            name = "ScaleShiftMACE" if args.model == "FoundationMACE" else args.model
            return MODELS[name](**model_config_foundation)
        if _is_stock(args):
            return _stock_build_model(args, model_config, model_config_foundation, heads)
        if args.model != "FoundationMACE":
            raise ValueError(
                f"the foundation model has stock layers, and --model {args.model} can't be "
                "rewritten on Gaunt layers; possible are MACE and ScaleShiftMACE"
            )
        config = gaunt_config(model_config_foundation)
        logging.info(f"Stock foundation model, rewritten on layers {config['cueq_config']}")
        return MODELS["ScaleShiftMACE"](**config)
    if _is_stock(args):
        return _stock_build_model(args, model_config, model_config_foundation, heads)

    config = _config(args).resolve(args.num_interactions, args.correlation)
    first = args.interaction_first
    if args.model in _PLAIN_FIRST:
        plain = first.replace("Residual", "", 1)
        if plain not in modules.interaction_classes:  # MACE, too, takes the plainest then
            kind = "Gaunt" if first in INTERACTIONS else "RealAgnostic"
            plain = f"{kind}InteractionBlock"
        first = plain
    logging.info(f"First interaction {first}, then {args.interaction}")
    for name, entries in config.to_dict().items():
        logging.info(f"Gaunt {name}: {', '.join(map(str, entries))}")
    logging.info(kernels.status())
    if torch.cuda.is_available():
        logging.info(cuda.status())
    name = "ScaleShiftMACE" if args.model == "MACE" else args.model

    def build(**kwargs):
        kwargs.update(cueq_config=config, interaction_cls_first=modules.interaction_classes[first])
        return MODELS[name](**kwargs)

    stock = getattr(modules, name)
    setattr(modules, name, build)
    try:
        return _stock_build_model(args, model_config, model_config_foundation, heads)
    finally:
        setattr(modules, name, stock)


def _get_params_options(args, model):
    options = _stock_get_params_options(args, model)
    if args.optimizer == "muon":
        options["params"] = grouped(model, options["params"], _FACTOR_OF_PRODUCTS)
    return options


def _get_optimizer(args, param_options):
    if args.optimizer == "muon":
        optimizer = Muon(**param_options)
        logging.info(optimizer.summary())
        return optimizer
    return _stock_get_optimizer(args, param_options)


_stock_get_optimizer = scripts_utils.get_optimizer
_stock_get_params_options = scripts_utils.get_params_options
_stock_build_model = model_script_utils._build_model
_register()
