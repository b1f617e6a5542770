"""torch layers on functions on the sphere, with e3nn's irreps in and out; no host.

A room per operation: ``convolution`` over edges, ``many_body`` products of a feature with itself,
``product`` of two features. ``irreps`` has what they share, ``linear`` the layers between
them, ``element_linear`` the self-connection.
"""

from gaunt_plugin.layers.convolution.aligned import AlignedConvolution
from gaunt_plugin.layers.convolution.channelwise import (
    ChannelsLastConvolution,
    ChannelwiseConvolution,
)
from gaunt_plugin.layers.convolution.grid import GauntConvolution
from gaunt_plugin.layers.convolution.grouped import GroupedConvolution
from gaunt_plugin.layers.element_linear import ElementLinear
from gaunt_plugin.layers.irreps import Path, reachable_paths
from gaunt_plugin.layers.linear import LayoutLinear, LayoutMixing, Linear
from gaunt_plugin.layers.many_body.full import Full, FullTerms
from gaunt_plugin.layers.many_body.many_body import (
    PARAMETRIZATIONS,
    GauntManyBody,
    LinearTerm,
    check_options,
)
from gaunt_plugin.layers.many_body.nested import Nested, NestedStep, NestedTerms
from gaunt_plugin.layers.many_body.power import Paper, ParityPowerTerms, Power, PowerTerms
from gaunt_plugin.layers.product.fourier import FourierProduct, FromSeries, ToSeries
from gaunt_plugin.layers.product.mixing import ChannelMixing, ChannelWeights
from gaunt_plugin.layers.product.selfmix import GauntSelfmix
from gaunt_plugin.layers.product.sphere_product import Dense, Nothing, SphereProduct
from gaunt_plugin.layers.product.tensor_product import GauntTensorProduct

__all__ = [
    "PARAMETRIZATIONS",
    "AlignedConvolution",
    "ChannelsLastConvolution",
    "ChannelwiseConvolution",
    "ElementLinear",
    "FourierProduct",
    "GauntConvolution",
    "GauntManyBody",
    "GauntSelfmix",
    "GauntTensorProduct",
    "GroupedConvolution",
    "LayoutLinear",
    "LayoutMixing",
    "Linear",
    "NestedTerms",
    "Path",
    "check_options",
    "reachable_paths",
]

# Saved models name their classes. These names stay, whatever file a class lives in.
for _class in (
    *(AlignedConvolution, ChannelsLastConvolution, ChannelwiseConvolution, GauntConvolution),
    GroupedConvolution,
    *(ElementLinear, LayoutLinear, LayoutMixing, Linear, Path),
    *(GauntManyBody, LinearTerm, Power, Paper, PowerTerms, ParityPowerTerms, Full, FullTerms),
    *(Nested, NestedStep, NestedTerms, FourierProduct, FromSeries, ToSeries, ChannelMixing),
    *(ChannelWeights, GauntSelfmix, Dense, Nothing, SphereProduct, GauntTensorProduct),
):
    _class.__module__ = __name__
