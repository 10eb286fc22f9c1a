"""Which bounds cover a network: what a method runs, decided from the tables of rules alone.

A layer for which a bound has no rule is no error of the network: ``auto`` passes over that bound.
Only a method that is left without any bound ends the job, before anything has been computed.
"""

from __future__ import annotations

from collections.abc import Callable

from workers.verification.cascade.bound_table import BOUNDS, auto_bounds
from workers.verification.graph.compiled_network import CompiledNetwork, GraphStep, UnsupportedLayer
from workers.verification.protocol import Bound

__all__ = ["UnknownMethod", "covering_bounds", "uncovered", "without_replaced"]


class UnknownMethod(ValueError):
    """A method that no row of the table of bounds names, or a norm that it does not cover."""

    code = "unknown_method"


def covering_bounds(
    compiled: CompiledNetwork, method: str, norm: str, effort: str = "standard"
) -> tuple[list[Bound], dict[str, str]]:
    """The bounds that ``method`` runs on this network, in order, and why others are passed over.

    Raises UnknownMethod; UnsupportedLayer, naming layer and method, where no bound is left.
    """
    if method != "auto" and method not in BOUNDS:
        raise UnknownMethod(f"unknown method {method!r}; known: auto, {', '.join(BOUNDS)}")
    named = auto_bounds(norm, effort) if method == "auto" else [BOUNDS[method]]
    bounds = [bound for bound in named if norm in bound.norms]
    if not bounds:
        raise UnknownMethod(f"method {method!r} does not cover the norm {norm!r}")
    missing = {bound.name: uncovered(bound, compiled) for bound in bounds}
    passed_over = {
        name: f"no rule for the layer {_kind(step)!r} ({step.name})"
        for name, step in missing.items()
        if step is not None
    }
    covering = [bound for bound in bounds if bound.name not in passed_over]
    if method == "auto":
        covering = [bound for bound in covering if bound.worth_trying(compiled)]
    if not covering:
        step = next(step for step in missing.values() if step is not None)
        layer = f"rule for the layer {_kind(step)!r} ({step.name})"
        if method == "auto":
            raise UnsupportedLayer(f"no bound that the method 'auto' runs has a {layer}")
        raise UnsupportedLayer(f"the method {method!r} has no {layer}", hint='use "auto"')
    return covering, passed_over


def without_replaced(bounds: list[Bound], fits: Callable[[Bound], bool]) -> list[Bound]:
    """The bounds that no other one among them replaces; one that does not fit replaces none."""
    replaced = {name for bound in bounds if fits(bound) for name in bound.replaces}
    return [bound for bound in bounds if bound.name not in replaced]


def uncovered(bound: Bound, compiled: CompiledNetwork) -> GraphStep | None:
    """The first step that ``bound`` has no rule for; None: it covers the network."""
    return next((step for step in compiled.steps if not bound.has_rule(step.op)), None)


def _kind(step: GraphStep) -> str:
    return str(getattr(step.op, "kind", type(step.op).__name__))
