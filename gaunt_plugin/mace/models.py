"""MACE models with Gaunt blocks."""

from __future__ import annotations

from collections.abc import Iterator

from mace import modules

import torch
from e3nn import o3
from e3nn.util.jit import compile_mode

from gaunt_plugin.mace import descriptors
from gaunt_plugin.mace.blocks import INTERACTIONS, GauntProductBasisBlock
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.scripting import replace_gates, replace_linears


class GauntModel:
    """One of MACE's models whose blocks are Gaunt-based where the options say so.

    The classes have the stock ones' names because MACE's tools go by these.

    Args:
        cueq_config: the :class:`~gaunt_plugin.mace.config.GauntConfig` (see there why this slot).
        kwargs: as in the stock model. Interaction classes may be stock or Gaunt ones.

    Raises:
        ValueError: no GauntConfig (a conversion to another backend, or from one), unknown options,
            or irreps that Gaunt blocks or MACE's last layer can't hold.
    """

    def __init__(
        self, *, cueq_config: GauntConfig | None = None, oeq_config=None, **kwargs
    ) -> None:
        if not isinstance(cueq_config, GauntConfig) or oeq_config is not None:
            raise ValueError(
                "Gaunt layers have no cuEquivariance or OpenEquivariance version: leave out "
                "enable_cueq, only_cueq, enable_oeq and --format=mliap for this model "
                "(gaunt mliap writes a file for pair_style mliap without them)"
            )
        hidden = o3.Irreps(kwargs["hidden_irreps"])
        if not hidden or hidden[0].ir != o3.Irrep("0e"):
            raise ValueError(
                f"hidden_irreps must begin with 0e, which MACE's last layer keeps, got {hidden}"
            )
        config = cueq_config.resolve(kwargs["num_interactions"], kwargs["correlation"])

        # MACE calls the first class once and the other once per further layer, in order.
        options = iter(
            [
                {"convolution": convolution, "convolution_rank": rank}
                for convolution, rank in zip(config.convolution, config.convolution_rank)
            ]
        )
        for name in ("interaction_cls_first", "interaction_cls"):
            kwargs[name] = _BlockFactory(kwargs[name], options)
        # Stock products of correlation 1 cost nothing to build; they hold the place of ours.
        kwargs["correlation"] = 1
        super().__init__(**kwargs)
        for i, held in enumerate(self.products):
            self.products[i] = _product(held, config, i, kwargs)
        self.cueq_config = config
        replace_gates(self)
        replace_linears(self)
        count_radial_functions(self)


def count_radial_functions(model: torch.nn.Module) -> None:
    """Let MACE describe a model, which counts ``bessel_weights`` whatever its functions are."""
    basis = model.radial_embedding.bessel_fn
    if not hasattr(basis, "bessel_weights"):
        basis.bessel_weights = [0.0] * model.radial_embedding.out_dim


def _product(held: torch.nn.Module, config: GauntConfig, i: int, kwargs: dict) -> torch.nn.Module:
    """The product of layer ``i``, in the place of a stock one of correlation 1."""
    contraction = held.symmetric_contractions
    common = {
        "node_feats_irreps": contraction.irreps_in,
        "target_irreps": contraction.irreps_out,
        "correlation": config.correlation[i],
        "num_elements": kwargs["num_elements"],
        "use_sc": held.use_sc,
        "use_agnostic_product": held.use_agnostic_product,
    }
    if config.parametrization[i] == "stock":
        reduced = kwargs.get("use_reduced_cg", True)
        return modules.EquivariantProductBasisBlock(**common, use_reduced_cg=reduced)
    return GauntProductBasisBlock(
        **common,
        parametrization=config.parametrization[i],
        product_rank=config.product_rank[i],
        selfmix_rank=config.selfmix_rank[i],
        antisymmetric=config.antisymmetric[i],
    )


class _Features:
    """Notes where the invariants are among the features of a model that returns these."""

    def __call__(self, *args, **kwargs):
        out = super().__call__(*args, **kwargs)
        if not torch.compiler.is_compiling():
            layers = [product.linear.irreps_out for product in self.products]
            descriptors.note_invariants(out["node_feats"], layers)
        return out


@compile_mode("script")
class ScaleShiftMACE(_Features, GauntModel, modules.ScaleShiftMACE):
    """A :class:`mace.modules.ScaleShiftMACE`; see :class:`GauntModel`."""


@compile_mode("script")
class PolarMACE(_Features, GauntModel, modules.PolarMACE):
    """A :class:`mace.modules.PolarMACE`; see :class:`GauntModel`."""


@compile_mode("script")
class AtomicDipolesMACE(GauntModel, modules.AtomicDipolesMACE):
    """A :class:`mace.modules.AtomicDipolesMACE`; see :class:`GauntModel`."""


@compile_mode("script")
class AtomicDielectricMACE(GauntModel, modules.AtomicDielectricMACE):
    """A :class:`mace.modules.AtomicDielectricMACE`; see :class:`GauntModel`."""


@compile_mode("script")
class EnergyDipolesMACE(GauntModel, modules.EnergyDipolesMACE):
    """A :class:`mace.modules.EnergyDipolesMACE`; see :class:`GauntModel`."""


MODELS = {
    cls.__name__: cls
    for cls in (
        ScaleShiftMACE,
        PolarMACE,
        AtomicDipolesMACE,
        AtomicDielectricMACE,
        EnergyDipolesMACE,
    )
}


class _BlockFactory:
    """Hands each layer's options to its interaction block, if that is a Gaunt one."""

    def __init__(self, cls: type, options: Iterator[dict]) -> None:
        self.cls, self.options = cls, options

    def __call__(self, **kwargs) -> torch.nn.Module:
        own = next(self.options)
        return (
            self.cls(**kwargs, **own) if self.cls in INTERACTIONS.values() else self.cls(**kwargs)
        )

    def __str__(self) -> str:  # MACE looks for "Residual" in it
        return str(self.cls)


descriptors.register()
