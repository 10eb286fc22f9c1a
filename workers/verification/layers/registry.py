"""All layers that bounds know: one row each. A new layer is one file of rules and its row here."""

from __future__ import annotations

from torch import Tensor

from models.layers.base import Layer
from workers.verification.graph.affine import Affine
from workers.verification.layers import (
    absolute,
    affine,
    clamp,
    euclidean,
    joins,
    moves,
    pooling,
    relu,
)
from workers.verification.layers.jumps import steps
from workers.verification.layers.pairs import inexact, sorting
from workers.verification.layers.rules import LayerRules
from workers.verification.layers.smooth import (
    curves,
    local_response,
    s_shaped,
    softmax,
    softplus,
    standardize,
    steep,
)

__all__ = ["LAYERS", "anchored_slopes", "apply_layer", "rules_of"]

#: By class: a layer that has no row is covered by no bound.
LAYERS: dict[type[Layer], LayerRules] = {
    **affine.RULES,
    **relu.RULES,
    **absolute.RULES,
    **clamp.RULES,
    **s_shaped.RULES,
    **softplus.RULES,
    **curves.RULES,
    **steep.RULES,
    **steps.RULES,
    **standardize.RULES,
    **softmax.RULES,
    **local_response.RULES,
    **sorting.RULES,
    **pooling.RULES,
    **euclidean.RULES,
    **inexact.RULES,
    **joins.RULES,
    **moves.RULES,
}

_NOTHING_KNOWN = LayerRules()


def rules_of(layer: Affine | Layer) -> LayerRules:
    """The layer's row; for a layer without one, and for affine maps, a row without any rule."""
    return _NOTHING_KNOWN if isinstance(layer, Affine) else LAYERS.get(type(layer), _NOTHING_KNOWN)


def apply_layer(layer: Layer, *inputs: Tensor) -> Tensor:
    """The layer's value in the inputs' dtype, on their device."""
    return rules_of(layer).value(layer, *inputs)


def anchored_slopes(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor | None:
    """Slopes [batch, *shape] in the centre's dtype, rounded up; None where no row has the rule."""
    rule = rules_of(layer).slopes
    return None if rule is None else rule(layer, centre, lower, upper)
