"""torch layers on functions on the sphere, with e3nn's irreps in and out; no host."""

from gaunt_plugin.layers.aligned import AlignedConvolution
from gaunt_plugin.layers.convolution import GauntConvolution
from gaunt_plugin.layers.element_linear import ElementLinear
from gaunt_plugin.layers.many_body import GauntManyBody
from gaunt_plugin.layers.paths import Path, reachable_paths
from gaunt_plugin.layers.selfmix import GauntSelfmix
from gaunt_plugin.layers.tensor_product import GauntTensorProduct

__all__ = [
    "AlignedConvolution",
    "ElementLinear",
    "GauntConvolution",
    "GauntManyBody",
    "GauntSelfmix",
    "GauntTensorProduct",
    "Path",
    "reachable_paths",
]
