"""Options of the Gaunt blocks of a MACE model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from gaunt_plugin import layers

PARAMETRIZATIONS = (*layers.PARAMETRIZATIONS, "stock")
CONVOLUTIONS = ("aligned", "grid", "channelwise")


@dataclass(frozen=True)
class GauntConfig:
    """Options of the Gaunt blocks, one entry per layer (a single entry serves all layers).

    MACE rebuilds a model from ``model.__class__(**extract_config_mace_model(model))``. The only
    slot of that configuration that is free to carry more is ``cueq_config``, the options of
    another backend; Gaunt models keep their options there, so that every rebuild is a Gaunt
    model again. Stock blocks that are handed these options raise.

    Attributes:
        parametrization: of the many-body product, ``"power"``, ``"paper"``, ``"full"``,
            ``"nested"`` (see :class:`~gaunt_plugin.layers.GauntManyBody`) or ``"stock"`` (MACE's CG
            contraction).
        product_rank: copies of the input in ``power`` and ``nested``.
        antisymmetric: whether ``nested`` products have antisymmetric couplings, which make pseudo
            parity (0o, 1e, ...) from natural parity.
        correlation: factors per product; empty: MACE's ``correlation`` everywhere.
        convolution: ``"aligned"`` (:class:`~gaunt_plugin.layers.AlignedConvolution`), ``"grid"``
            (:class:`~gaunt_plugin.layers.GauntConvolution`) or ``"channelwise"``
            (:class:`~gaunt_plugin.layers.ChannelwiseConvolution`: stock's own numbers); used by
            Gaunt interaction blocks.
        convolution_rank: channels in the convolution per channel of the model.
        selfmix_rank: rank of a :class:`~gaunt_plugin.layers.GauntSelfmix` between convolution and
            Gaunt product; 0: none.
    """

    parametrization: tuple[str, ...] = ("power",)
    product_rank: tuple[int, ...] = (4,)
    correlation: tuple[int, ...] = ()
    convolution: tuple[str, ...] = ("aligned",)
    convolution_rank: tuple[int, ...] = (1,)
    selfmix_rank: tuple[int, ...] = (0,)
    antisymmetric: tuple[bool, ...] = (False,)

    def resolve(self, num_layers: int, correlation: int | list[int]) -> GauntConfig:
        """One checked entry per layer.

        Raises:
            ValueError: wrong number of entries, unknown name or number out of range.
        """
        default = (correlation,) if isinstance(correlation, int) else tuple(correlation)
        values = {**asdict(self), "correlation": self.correlation or default}
        for name, entries in values.items():
            entries = tuple(entries)
            if len(entries) == 1:
                entries *= num_layers
            if len(entries) != num_layers:
                raise ValueError(
                    f"gaunt {name}: got {len(entries)} entries for {num_layers} interactions, "
                    "give one or one per interaction"
                )
            values[name] = entries
        for name, possible in (
            ("parametrization", PARAMETRIZATIONS),
            ("convolution", CONVOLUTIONS),
        ):
            for entry in values[name]:
                if entry not in possible:
                    raise ValueError(
                        f"unknown gaunt {name} {entry!r}; possible: {', '.join(possible)}"
                    )
        for name, least in (("convolution_rank", 1), ("selfmix_rank", 0)):
            for entry in values[name]:
                if type(entry) is not int or entry < least:
                    raise ValueError(
                        f"gaunt {name} must be a whole number, at least {least}, got {entry!r}"
                    )
        for parametrization, correlation, rank, antisymmetric, selfmix_rank in zip(
            *(
                values[name]
                for name in (
                    *("parametrization", "correlation", "product_rank", "antisymmetric"),
                    "selfmix_rank",
                )
            )
        ):
            if parametrization == "stock" and (antisymmetric or selfmix_rank):
                raise ValueError(
                    "gaunt antisymmetric and selfmix_rank belong to Gaunt products; use false and "
                    "0 in layers with parametrization 'stock'"
                )
            gaunt = "power" if parametrization == "stock" else parametrization
            try:
                layers.check_options(gaunt, correlation, rank, antisymmetric, "product_rank")
            except ValueError as error:
                raise ValueError(f"gaunt {error}") from error
        return replace(self, **values)

    def to_dict(self) -> dict[str, list]:
        return {name: list(entries) for name, entries in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, list]) -> GauntConfig:
        return cls(**{name: tuple(entries) for name, entries in values.items()})

    def __str__(self) -> str:
        return "gaunt:" + json.dumps(self.to_dict())

    def _refuse(self):
        raise ValueError(
            "these are the options of a Gaunt model, which MACE's own blocks can't hold: run the "
            "command with --plugin gaunt"
        )

    # What stock blocks ask another backend's options for.
    enabled = layout_str = conv_fusion = property(_refuse)
