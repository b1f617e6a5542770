"""Trained MACE models on Gaunt layers, exactly, and back on MACE's own.

A stock convolution becomes a :class:`~gaunt_plugin.layers.ChannelwiseConvolution` with the same
weights, a stock contraction the product ``full``, whose basis spans all couplings: its weights are
a linear function of the stock ones. All other parts and weights stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from mace import modules
from mace.modules.blocks import (
    EquivariantProductBasisBlock,
    RealAgnosticAttResidualInteractionBlock,
    ScaleShiftBlock,
)
from mace.modules.radial import ChebychevBasis, RadialMLP
from mace.tools.scripts_utils import extract_config_mace_model
from mace.tools.torch_tools import default_dtype

import numpy as np
import torch

from gaunt_plugin.layers import GauntManyBody
from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.contraction import ContractionMap
from gaunt_plugin.mace.models import GauntModel, ScaleShiftMACE, count_radial_functions

MAX_CORRELATION = 3
# Names of MACE's blocks and of their counterparts.
_STOCK = {name: name.replace("Gaunt", "RealAgnostic", 1) for name in INTERACTIONS}
_GAUNT = {stock: name for name, stock in _STOCK.items()}
# The largest relative difference of a block and its counterpart.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


class ConversionError(ValueError):
    """A model that can't be rewritten; the message names the part that has no counterpart."""


def to_gaunt(
    model: torch.nn.Module, report: Callable[[str], None] = lambda line: None
) -> ScaleShiftMACE:
    """A stock model on Gaunt layers, with the same energies, forces and stress to rounding.

    Args:
        model: a ``ScaleShiftMACE``, or a ``MACE``, which becomes one with scale 1 and shift 0;
            stays as it is.
        report: called with a line before what takes long.

    Raises:
        ConversionError: a part of the model has no counterpart.
    """
    _check_stock(model)
    model = _with_scale(model)
    config = _description(model)
    config["correlation"] = [_correlation(product) for product in model.products]
    for block in model.interactions:
        if not isinstance(block, RealAgnosticAttResidualInteractionBlock):  # of a fixed size
            config["radial_MLP"] = list(block.conv_tp_weights.hs[1:-1])
    new = _build(ScaleShiftMACE, gaunt_config(config), model)
    _carry(model, new, report)
    return new


def to_stock(
    model: torch.nn.Module, report: Callable[[str], None] = lambda line: None
) -> modules.ScaleShiftMACE:
    """A Gaunt model with the layers of :func:`to_gaunt` on MACE's own, the same to rounding.

    Args:
        model: stays as it is.
        report: called with a line before what takes long.

    Raises:
        ConversionError: a part of the model has no counterpart.
    """
    _check_gaunt(model)
    config = _description(model)
    config["correlation"] = list(config.pop("cueq_config").correlation)
    for name in ("interaction_cls", "interaction_cls_first"):
        own = config[name].__name__
        config[name] = modules.interaction_classes[_STOCK.get(own, own)]
    report("Making the coupling tensors of MACE's contractions")
    new = _build(modules.ScaleShiftMACE, config, model)
    _carry(model, new, report)
    return new


def gaunt_config(config: dict) -> dict:
    """Arguments of the Gaunt model for those of a stock one.

    Raises:
        ConversionError: a part of the model has no counterpart.
    """
    correlation = config["correlation"]
    orders = (correlation,) if isinstance(correlation, int) else tuple(correlation)
    if max(orders) > MAX_CORRELATION:
        raise ConversionError(
            f"its correlation is {max(orders)}, and the product 'full' takes 1 to {MAX_CORRELATION}"
        )
    config = dict(config)
    for name in ("interaction_cls", "interaction_cls_first"):
        stock = config[name].__name__
        if stock not in _GAUNT:
            raise ConversionError(f"its interactions are {stock}; possible are {', '.join(_GAUNT)}")
        config[name] = INTERACTIONS[_GAUNT[stock]]
    config["cueq_config"] = GauntConfig(
        parametrization=("full",), correlation=orders, convolution=("channelwise",)
    )
    return config


def _check_stock(model: torch.nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, GauntModel):
        raise ConversionError("it is a Gaunt model already")
    if name not in ("MACE", "ScaleShiftMACE"):
        raise ConversionError(f"it is a {name}; possible are MACE and ScaleShiftMACE")
    for path, module in model.named_modules():
        home = type(module).__module__
        if home.startswith("cuequivariance") or home.startswith("openequivariance"):
            raise ConversionError(
                f"its {path} is a layer of {home.split('.')[0]}: convert the model to e3nn first, "
                "with mace_cueq_to_e3nn or mace_oeq_to_e3nn"
            )
        if home == "mace.modules.lora":
            raise ConversionError(f"its {path} has LoRA weights: merge them first")
    if isinstance(model.radial_embedding.bessel_fn, ChebychevBasis):
        raise ConversionError(
            "its radial functions are of type chebyshev, which have no derivative in MACE"
        )
    if getattr(model, "use_so3", False):
        raise ConversionError("it has no parity (use_so3), which Gaunt layers need")
    kinds = [type(block).__name__ for block in model.interactions]
    if len(set(kinds[1:])) > 1:
        raise ConversionError(f"its interactions after the first differ: {', '.join(kinds[1:])}")
    hidden = model.products[0].linear.irreps_out
    last = model.products[-1].linear.irreps_out
    if len(kinds) > 1 and str(last) != str(hidden[:1]):
        raise ConversionError(f"its last layer has features {last}; possible are scalars")


def _check_gaunt(model: torch.nn.Module) -> None:
    if type(model) is not ScaleShiftMACE:
        raise ConversionError(f"it is a {type(model).__name__}, not a Gaunt ScaleShiftMACE")
    options = model.cueq_config
    for i, block in enumerate(model.interactions):
        if type(block).__name__ not in INTERACTIONS:
            continue
        if options.convolution[i] != "channelwise" or options.convolution_rank[i] != 1:
            raise ConversionError(
                f"its convolution {i + 1} is {options.convolution[i]!r} of rank "
                f"{options.convolution_rank[i]}; MACE has only 'channelwise' of rank 1"
            )
    for i, name in enumerate(options.parametrization):
        if name not in ("full", "stock"):
            raise ConversionError(
                f"its product {i + 1} is {name!r}; MACE has only what 'full' and 'stock' can be"
            )
        if options.selfmix_rank[i]:
            raise ConversionError(f"its layer {i + 1} has a selfmix, which MACE has not")


def _with_scale(model: torch.nn.Module) -> torch.nn.Module:
    """A ``MACE`` as a ``ScaleShiftMACE``, which alone MACE can describe."""
    if hasattr(model, "scale_shift"):
        return model
    model = copy.deepcopy(model)
    model.__class__ = modules.ScaleShiftMACE
    heads = len(getattr(model, "heads", [""]))
    with default_dtype(_dtype_name(model)):
        model.scale_shift = ScaleShiftBlock(scale=np.ones(heads), shift=np.zeros(heads))
    return model


def _description(model: torch.nn.Module) -> dict:
    """Arguments that build the model, as MACE knows them."""
    count_radial_functions(model)
    config = extract_config_mace_model(model)
    config["atomic_numbers"] = [int(z) for z in config["atomic_numbers"]]
    return config


def _correlation(product: EquivariantProductBasisBlock) -> int:
    return len(product.symmetric_contractions.contractions[0].weights) + 1


def _dtype_name(model: torch.nn.Module) -> str:
    return str(model.r_max.dtype).removeprefix("torch.")


def _build(cls: type, config: dict, like: torch.nn.Module) -> torch.nn.Module:
    with default_dtype(_dtype_name(like)):
        try:
            new = cls(**config)
        except ValueError as error:
            raise ConversionError(str(error)) from error
    return new.to(like.r_max.device).train(like.training)


@torch.no_grad()
def _carry(old: torch.nn.Module, new: torch.nn.Module, report: Callable[[str], None]) -> None:
    """Give the new model the weights of the old one; one of the two has Gaunt layers."""
    given, wanted = _parameters(old), _parameters(new)
    for i, (source, target) in enumerate(zip(old.products, new.products)):
        if type(source) is not type(target):
            report(f"Rewriting product {i + 1} of {len(new.products)}")
            try:
                _carry_contraction(source.symmetric_contractions, target.symmetric_contractions)
            except ValueError as error:
                raise ConversionError(f"its product {i + 1} has no counterpart: {error}") from error
            for names in (given, wanted):
                for name in list(names):
                    if name.startswith(f"products.{i}.symmetric_contractions."):
                        del names[name]
    odd = [
        name
        for name in [*given, *wanted]
        if name not in given or name not in wanted or given[name].shape != wanted[name].shape
    ]
    if odd:
        raise ConversionError(f"its {odd[0]} has no counterpart")
    for name, value in wanted.items():
        value.copy_(given[name])
    buffers = dict(old.named_buffers())
    for name, value in new.named_buffers():
        if name in buffers and buffers[name].shape == value.shape:
            value.copy_(buffers[name])
    for source, target in zip(old.interactions, new.interactions):
        target.avg_num_neighbors = source.avg_num_neighbors
    _compare(old, new)


def _carry_contraction(source: torch.nn.Module, target: torch.nn.Module) -> None:
    weights = {name: value.double() for name, value in source.named_parameters()}
    if isinstance(target, GauntManyBody):
        found = ContractionMap(source, target).to_full(weights)
    else:
        found = ContractionMap(target, source).to_stock(weights)
    for name, value in target.named_parameters():
        # MACE has weights of couplings that are zero, too.
        value.copy_(found.get(name, torch.zeros(())))


def _parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that aren't empty; the last radial layers under one name and in one form."""
    found = {name: value.detach() for name, value in model.named_parameters()}
    for i, block in enumerate(model.interactions):
        network, place = block.conv_tp_weights, "conv_tp"
        if type(block).__name__ in INTERACTIONS:
            last, transposed = block.conv_tp, False
        elif isinstance(network, RadialMLP):
            last, transposed = network.net[-1], True
            place = f"conv_tp_weights.net.{len(network.net) - 1}"
        else:
            last, transposed = network[-1], False
            place = f"conv_tp_weights.layer{len(network) - 1}"
        for name, value in last.named_parameters(recurse=False):
            del found[f"interactions.{i}.{place}.{name}"]
            value = value.detach()
            value = value.T if transposed and value.dim() == 2 else value
            found[f"interactions.{i}.radial.{name}"] = value
    return {name: value for name, value in found.items() if value.numel()}


def _compare(old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Raise ConversionError unless each block computes what its counterpart does."""
    generator = torch.Generator().manual_seed(0)
    options = {"dtype": old.r_max.dtype, "device": old.r_max.device}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(**options)

    elements = len(old.atomic_numbers)
    nodes, edges = max(elements, 6), 24
    node_attrs = torch.eye(elements, **options)[torch.arange(nodes) % elements]
    index = torch.randint(nodes, (2, edges), generator=generator).to(options["device"])
    harmonics = old.spherical_harmonics(normal(edges, 3))
    radial = normal(edges, old.radial_embedding.out_dim)
    for i, (source, target) in enumerate(zip(old.interactions, new.interactions)):
        arguments = (node_attrs, normal(nodes, source.node_feats_irreps.dim), harmonics, radial)
        for expected, found in zip(source(*arguments, index), target(*arguments, index)):
            if expected is not None:
                _check_close(f"interaction {i + 1}", found, expected)
    for i, (source, target) in enumerate(zip(old.products, new.products)):
        irreps = source.symmetric_contractions.irreps_in
        messages = normal(nodes, irreps[0].mul, sum(ir.dim for _, ir in irreps))
        arguments = (messages, None, node_attrs)
        _check_close(f"product {i + 1}", target(*arguments), source(*arguments))


def _check_close(part: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    error, size = (x.abs().max().item() for x in (found - expected, expected))
    if not error <= _TOLERANCE[expected.dtype] * size:
        raise ConversionError(
            f"its {part} and the rewritten one differ by {error:.1e}; please report it"
        )
