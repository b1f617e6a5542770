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


@compile_mode("script")
class ScaleShiftMACE(modules.ScaleShiftMACE):
    """:class:`mace.modules.ScaleShiftMACE` whose blocks are Gaunt-based where the options say so.

    The class has the stock one's name because MACE's tools go by it.

    Args:
        cueq_config: the :class:`~gaunt_plugin.mace.config.GauntConfig` (see there why this slot).
        kwargs: as in the stock model. Interaction classes may be stock or Gaunt ones.

    Raises:
        ValueError: no GauntConfig (a conversion to another backend), unknown options, or irreps
            that Gaunt blocks or MACE's last layer can't hold.
    """

    def __init__(self, *, cueq_config: GauntConfig, oeq_config=None, **kwargs) -> None:
        if not isinstance(cueq_config, GauntConfig) or oeq_config is not None:
            raise ValueError(
                "Gaunt layers have no cuEquivariance or OpenEquivariance version: leave out "
                "enable_cueq, only_cueq, enable_oeq and --format=mliap for this model"
            )
        hidden = o3.Irreps(kwargs["hidden_irreps"])
        if not hidden or hidden[0].ir != o3.Irrep("0e"):
            raise ValueError(
                f"hidden_irreps must begin with 0e, which MACE's last layer keeps, got {hidden}"
            )
        num_layers = kwargs["num_interactions"]
        config = cueq_config.resolve(num_layers, kwargs["correlation"])
        gaunt_products = [name != "stock" for name in config.parametrization]

        # MACE calls the first class once and the other once per further layer, in order.
        options = iter(
            [
                {"convolution": convolution, "convolution_rank": rank}
                for convolution, rank in zip(config.convolution, config.convolution_rank)
            ]
        )
        for name in ("interaction_cls_first", "interaction_cls"):
            kwargs[name] = _BlockFactory(kwargs[name], options)
        # Stock products of correlation 1 cost nothing to build; they hold the place of Gaunt ones.
        kwargs["correlation"] = [
            1 if gaunt else nu for gaunt, nu in zip(gaunt_products, config.correlation)
        ]
        super().__init__(**kwargs)
        for i, gaunt in enumerate(gaunt_products):
            if gaunt:
                stock = self.products[i]
                self.products[i] = GauntProductBasisBlock(
                    stock.symmetric_contractions.irreps_in,
                    stock.symmetric_contractions.irreps_out,
                    correlation=config.correlation[i],
                    num_elements=kwargs["num_elements"],
                    use_sc=stock.use_sc,
                    use_agnostic_product=stock.use_agnostic_product,
                    parametrization=config.parametrization[i],
                    product_rank=config.product_rank[i],
                    selfmix_rank=config.selfmix_rank[i],
                    antisymmetric=config.antisymmetric[i],
                )
        self.cueq_config = config

    def __call__(self, *args, **kwargs):
        out = super().__call__(*args, **kwargs)
        if not torch.compiler.is_compiling():
            layers = [product.linear.irreps_out for product in self.products]
            descriptors.note_invariants(out["node_feats"], layers)
        return out


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
