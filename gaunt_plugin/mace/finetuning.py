"""Start a Gaunt model from the weights of another one, as MACE does for its foundation models."""

from __future__ import annotations

import logging

from mace.tools import finetuning_utils
from mace.tools.utils import AtomicNumberTable

import torch
from e3nn import o3

from gaunt_plugin.layers import ElementLinear
from gaunt_plugin.mace.convert import to_gaunt
from gaunt_plugin.mace.models import GauntModel

_stock = finetuning_utils.load_foundations_elements


@torch.no_grad()
def load_foundations_elements(model, model_foundations, table: AtomicNumberTable, **options):
    """MACE's function of this name, which also knows Gaunt blocks.

    Embeddings, readouts and scales are the stock function's work; the blocks are copied here,
    with the rows of ``table``'s elements. Weights under e3nn's normalisation by the number of
    elements are rescaled for the new number, as in the stock function.

    Args:
        model: the new model.
        model_foundations: the model to start from; a stock one is rewritten first.
        table: elements of the new model, a subset of the foundation's.
        options: as in the stock function.

    Returns:
        ``model``, in the dtype that the options ask for.

    Raises:
        ValueError: an element that the foundation model doesn't know, or a stock one whose layers
            have different correlations.
    """
    if not isinstance(model, GauntModel):
        return _stock(model, model_foundations, table, **options)
    if not isinstance(model_foundations, GauntModel):
        model_foundations = to_gaunt(model_foundations, logging.info)
        own, orders = (
            [product.symmetric_contractions.contraction_degree for product in m.products]
            for m in (model, model_foundations)
        )
        if orders != own:  # MACE describes a stock model by the first
            raise ValueError(
                f"the foundation model's products have correlation {', '.join(map(str, orders))}: "
                "rewrite it with gaunt convert, and start from what that has written"
            )
    known = [int(z) for z in model_foundations.atomic_numbers]
    missing = [z for z in table.zs if z not in known]
    if missing:
        raise ValueError(f"the foundation model has no elements {missing}, only {known}")
    rows = torch.tensor([known.index(z) for z in table.zs])
    rescale = (len(known) / len(rows)) ** -0.5

    for new, old in zip(model.interactions, model_foundations.interactions):
        new.avg_num_neighbors = old.avg_num_neighbors
        old_state = old.state_dict()
        for name, value in new.state_dict().items():
            if name == "skip_tp.weight" and not isinstance(old.skip_tp, o3.Linear):
                value.copy_(_skip_weight(old.skip_tp, rows) * rescale)
            elif name in ("source_embedding.weight", "target_embedding.weight"):
                of_element = old_state[name].view(len(known), -1)
                value.copy_(of_element[rows].flatten() * rescale)
            elif name in old_state:
                value.copy_(old_state[name])
    for new, old in zip(model.products, model_foundations.products):
        old_state = old.state_dict()
        for name, value in new.state_dict().items():
            source = old_state[name]
            # Per-element weights have one row per element.
            if name.startswith("symmetric_contractions.") and not new.use_agnostic_product:
                source = source[rows]
            value.copy_(source)

    # What is left is not ours: let the stock function see a model without blocks.
    hidden = model.interactions, model.products, model.num_interactions
    model.interactions = model.products = torch.nn.ModuleList()
    model.num_interactions = torch.zeros_like(model.num_interactions)
    try:
        with torch.enable_grad():
            _stock(model, model_foundations, table, **options)
    finally:
        model.interactions, model.products, model.num_interactions = hidden
    return model.to(options.get("default_dtype") or next(model.parameters()).dtype)


def _skip_weight(skip: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Weights of the selected elements, per path ``[mul_in, elements, mul_out]``."""
    if isinstance(skip, ElementLinear):
        shapes = [torch.Size((pair[1], skip.num_attrs, pair[4])) for pair in skip.pairs]
    else:  # of a stock block
        shapes = [torch.Size(path.path_shape) for path in skip.instructions]
    blocks = skip.weight.split([shape.numel() for shape in shapes])
    return torch.cat([b.view(s)[:, rows].flatten() for b, s in zip(blocks, shapes)])
