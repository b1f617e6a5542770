"""torch layers on functions on the sphere, with e3nn's irreps in and out; no host."""

from gaunt_plugin.layers.convolution.aligned import AlignedConvolution
from gaunt_plugin.layers.convolution.grid import GauntConvolution
from gaunt_plugin.layers.convolution.grouped import GroupedConvolution
from gaunt_plugin.layers.element_linear import ElementLinear
from gaunt_plugin.layers.irreps import Path, reachable_paths
from gaunt_plugin.layers.many_body.many_body import PARAMETRIZATIONS, GauntManyBody, check_options
from gaunt_plugin.layers.many_body.nested import NestedTerms
from gaunt_plugin.layers.product.fourier import FourierProduct
from gaunt_plugin.layers.product.selfmix import GauntSelfmix
from gaunt_plugin.layers.product.tensor_product import GauntTensorProduct

__all__ = [
    "PARAMETRIZATIONS",
    "AlignedConvolution",
    "ElementLinear",
    "FourierProduct",
    "GauntConvolution",
    "GauntManyBody",
    "GauntSelfmix",
    "GauntTensorProduct",
    "GroupedConvolution",
    "NestedTerms",
    "Path",
    "check_options",
    "reachable_paths",
]
