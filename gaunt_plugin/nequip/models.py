"""Model builders: NequIP's own, with Gaunt interaction blocks."""

from __future__ import annotations

import contextlib
from typing import List, Optional, Union

from nequip.model import nequip_models
from nequip.model.utils import model_builder
from nequip.nn import GraphModel

from gaunt_plugin.layers.many_body import PARAMETRIZATIONS
from gaunt_plugin.nequip.interaction import GauntInteractionBlock

_OPTIONS = """
    Args:
        gaunt_layers (List[int]): indices of the layers with Gaunt blocks (default: all)
        rank (int): channels in the convolution per channel of the features (default ``1``)
        correlation (int/List[int]): number of factors of the many-body product after each
            convolution, for all layers or for each; ``1`` leaves it out (default ``1``)
        parametrization (str): ``power``, ``paper`` or ``full``, of the product
            (default ``power``)
        views (int): number of copies in ``power`` (default ``4``)
        product_features (int): channels of the product (default: the smallest multiplicity of
            the layer's features)
        others: all arguments of :func:`nequip.model.{stock}`

    Raises:
        ValueError: options outside of the above.
    """


def _builder(name: str, summary: str):
    """A builder like ``nequip_models.<name>``, with the options above."""
    stock = getattr(nequip_models, name)

    def build(
        *,
        gaunt_layers: Optional[List[int]] = None,
        rank: int = 1,
        correlation: Union[int, List[int]] = 1,
        parametrization: str = "power",
        views: int = 4,
        product_features: Optional[int] = None,
        **kwargs,
    ) -> GraphModel:
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(
                f"unknown parametrization {parametrization!r}; "
                f"possible: {', '.join(PARAMETRIZATIONS)}"
            )
        options = {
            "rank": rank,
            "parametrization": parametrization,
            "views": views,
            "product_features": product_features,
            "graph_attrs": kwargs.get("categorical_graph_field_embed") is not None,
        }
        with _gaunt_layers(gaunt_layers, correlation, options):
            return stock(**kwargs)

    build.__name__ = build.__qualname__ = name.replace("NequIP", "GauntNequIP")
    build.__doc__ = summary + "\n" + _OPTIONS.format(stock=name)
    return model_builder(build)


@contextlib.contextmanager
def _gaunt_layers(which: Optional[List[int]], correlation: Union[int, List[int]], options: dict):
    """Let NequIP's builders make Gaunt layers: they offer no argument for the block."""
    stock = nequip_models.ConvNetLayer
    built = 0

    def layer(convolution_kwargs, **kwargs):
        nonlocal built
        index, built = built, built + 1
        if which is not None and index not in which:
            return stock(convolution_kwargs=convolution_kwargs, **kwargs)
        own = correlation
        if not isinstance(correlation, int):
            if index >= len(correlation):
                raise ValueError(
                    f"correlation must have one entry per layer, got {list(correlation)}"
                )
            own = correlation[index]
        return stock(
            convolution=GauntInteractionBlock,
            convolution_kwargs={**convolution_kwargs, **options, "correlation": own},
            **kwargs,
        )

    nequip_models.ConvNetLayer = layer
    try:
        yield
    finally:
        nequip_models.ConvNetLayer = stock
    wrong = [i for i in which or [] if not 0 <= i < built]
    if wrong:
        raise ValueError(f"gaunt_layers {wrong} don't exist, the model has layers 0 to {built - 1}")
    if not isinstance(correlation, int) and len(correlation) != built:
        raise ValueError(
            f"correlation must have one entry for each of the {built} layers, got "
            f"{list(correlation)}"
        )


GauntNequIPGNNModel = _builder("NequIPGNNModel", "NequIP GNN model with Gaunt interaction blocks.")
FullGauntNequIPGNNModel = _builder(
    "FullNequIPGNNModel", "The same from NequIP's most extensive set of arguments."
)
PresetGauntNequIPGNNModel = _builder(
    "PresetNequIPGNNModel", "The same from one of NequIP's presets, S, M, L or XL."
)
