"""Model builders: NequIP's own, with Gaunt interaction blocks."""

from __future__ import annotations

import contextlib
from typing import List, Optional, Sequence, Union

import torch
from nequip.model import nequip_models
from nequip.model.utils import model_builder
from nequip.nn import GraphModel
from nequip.scripts._workflow_utils import get_workflow_state
from nequip.utils import RankedLogger

from gaunt_plugin.layers import check_options
from gaunt_plugin.nequip.interaction import GauntInteractionBlock
from gaunt_plugin.ops import cuda
from gaunt_plugin.ops.cpu import build as kernels

_logger = RankedLogger(__name__, rank_zero_only=True)

_OPTIONS = """
    Args:
        gaunt_layers (List[int]): indices of the layers with Gaunt blocks (default: all)
        convolution_rank (int/List[int]): channels in the convolution per channel of the features
            (default ``1``)
        correlation (int/List[int]): number of factors of the many-body product after each
            convolution; ``1`` leaves it out (default ``1``)
        parametrization (str/List[str]): ``power``, ``paper``, ``full`` or ``nested``, of the
            product (default ``power``)
        product_rank (int/List[int]): number of copies in ``power`` and ``nested`` (default ``4``)
        product_features (int): channels of the products (default: the smallest multiplicity of
            the layer's features)
        selfmix_rank (int/List[int]): rank of a product of the messages with themselves, before
            the many-body product if there is one; ``0`` leaves it out (default ``0``)
        product_parity (bool): with ``parity: true``, the products act on features of both
            parities, not of natural parity alone (default ``False``)
        antisymmetric (bool/List[bool]): whether products ``nested`` have antisymmetric couplings,
            too; of use with ``product_parity`` (default ``False``)
        others: all arguments of :func:`nequip.model.{stock}`

    A list has one entry for each layer, one value is for all layers.

    Raises:
        ValueError: options outside of the above.
    """


def _builder(name: str, summary: str):
    """A builder like ``nequip_models.<name>``, with the options above."""
    stock = getattr(nequip_models, name)

    def build(
        *,
        gaunt_layers: Optional[List[int]] = None,
        convolution_rank: Union[int, List[int]] = 1,
        correlation: Union[int, List[int]] = 1,
        parametrization: Union[str, List[str]] = "power",
        product_rank: Union[int, List[int]] = 4,
        product_features: Optional[int] = None,
        selfmix_rank: Union[int, List[int]] = 0,
        product_parity: bool = False,
        antisymmetric: Union[bool, List[bool]] = False,
        **kwargs,
    ) -> GraphModel:
        per_layer = {
            "convolution_rank": convolution_rank,
            "correlation": correlation,
            "parametrization": parametrization,
            "product_rank": product_rank,
            "selfmix_rank": selfmix_rank,
            "antisymmetric": antisymmetric,
        }
        for entry in _entries(convolution_rank):
            _whole("convolution_rank", entry)
        for entry in _entries(selfmix_rank):
            _whole("selfmix_rank", entry, least=0)
        for options in _of_layers(parametrization, correlation, product_rank, antisymmetric):
            check_options(*options, "product_rank")
        if not isinstance(product_parity, bool):
            raise ValueError(f"product_parity must be true or false, got {product_parity!r}")
        if product_features is not None:
            _whole("product_features", product_features)
        if gaunt_layers is not None and not _is_list(gaunt_layers):
            raise ValueError(f"gaunt_layers must be a list of layers, got {gaunt_layers!r}")
        l_max = kwargs.get("l_max", 0)
        if type(l_max) is not int or l_max < 0:
            raise ValueError(f"l_max must be a whole number, at least 0, got {l_max!r}")
        _check_features(kwargs.get("num_features"))
        options = {
            "product_features": product_features,
            "product_parity": product_parity,
            "graph_attrs": kwargs.get("categorical_graph_field_embed") is not None,
        }
        if get_workflow_state() == "train":
            _logger.info(kernels.status())
            if torch.cuda.is_available():
                _logger.info(cuda.status())
        with _gaunt_layers(gaunt_layers, per_layer, options):
            try:
                return stock(**kwargs)
            except AssertionError as error:
                if not str(error):
                    raise
                raise ValueError(str(error)) from error  # NequIP's way to refuse arguments

    build.__name__ = build.__qualname__ = name.replace("NequIP", "GauntNequIP")
    build.__doc__ = summary + "\n" + _OPTIONS.format(stock=name)
    return model_builder(build)


def _is_list(option: object) -> bool:
    return isinstance(option, (list, tuple))


def _entries(option: object) -> Sequence:
    return option if _is_list(option) else [option]


def _of_layers(*options: object) -> List[tuple]:
    """The options of each layer; where a list is too short, which is said later, its last entry."""
    lists = [_entries(option) or [None] for option in options]
    count = max(len(entries) for entries in lists)
    return [tuple(entries[min(i, len(entries) - 1)] for entries in lists) for i in range(count)]


def _whole(name: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")


def _check_features(num_features: object) -> None:
    """NequIP checks the length of the list and, unclearly, the rest."""
    if num_features is None:
        return
    for degree, entry in enumerate(_entries(num_features)):
        if type(entry) is not int or entry < (1 if degree == 0 else 0):
            raise ValueError(
                "num_features must be a whole number, or a list of one for each degree, of which "
                f"the first is at least 1, got {num_features!r}"
            )


@contextlib.contextmanager
def _gaunt_layers(which: Optional[List[int]], per_layer: dict, options: dict):
    """Let NequIP's builders make Gaunt layers: they offer no argument for the block."""
    stock = nequip_models.ConvNetLayer
    built = 0
    lists = {name: option for name, option in per_layer.items() if _is_list(option)}
    options = {**per_layer, **options}

    def layer(convolution_kwargs, **kwargs):
        nonlocal built
        index, built = built, built + 1
        too_short = any(index >= len(entries) for entries in lists.values())  # is said below
        if too_short or (which is not None and index not in which):
            return stock(convolution_kwargs=convolution_kwargs, **kwargs)
        own = {name: entries[index] for name, entries in lists.items()}
        return stock(
            convolution=GauntInteractionBlock,
            convolution_kwargs={**convolution_kwargs, **options, **own},
            **kwargs,
        )

    nequip_models.ConvNetLayer = layer
    try:
        yield
    finally:
        nequip_models.ConvNetLayer = stock
    wrong = [i for i in which or [] if i not in range(built)]
    if wrong:
        raise ValueError(f"gaunt_layers {wrong} don't exist, the model has layers 0 to {built - 1}")
    for name, entries in lists.items():
        if len(entries) != built:
            raise ValueError(
                f"{name} must have one entry for each of the {built} layers, got {list(entries)}"
            )


GauntNequIPGNNModel = _builder("NequIPGNNModel", "NequIP GNN model with Gaunt interaction blocks.")
FullGauntNequIPGNNModel = _builder(
    "FullNequIPGNNModel", "The same from NequIP's most extensive set of arguments."
)
PresetGauntNequIPGNNModel = _builder(
    "PresetNequIPGNNModel", "The same from one of NequIP's presets, S, M, L or XL."
)
