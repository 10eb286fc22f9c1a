"""Which module of a state dict is which layer of an architecture, and how sure that is.

Fitting shapes alone prove nothing: if two layers of equal shape are exchanged, the network is not
the one that was trained. So modules are paired by the layers' names where the layer list gives
them, and by our own names where the file is ours. Otherwise they are paired in order, kind by kind;
numbers in the names (``fc2`` before ``fc10``) count more than the order in the file. What neither
names nor shapes decide becomes a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from torch import Tensor

from models.architectures.layer_lists import Blueprint
from models.errors import ModelError
from models.layers.activations import AtLeast, AtMost, ReLUTheta
from models.layers.kinds import BatchNorm, Conv2d, Linear, Multiply, Shift

__all__ = ["TENSOR_NAMES", "Group", "Pairing", "kind_of", "mismatch", "natural", "pair_modules"]

Group = dict[str, Tensor]
#: A layer's tensors by the names state dicts give them.
TENSOR_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    Conv2d.kind: {"weight": ("weight",), "bias": ("bias",)},
    Linear.kind: {"weight": ("weight",), "bias": ("bias",)},
    BatchNorm.kind: {
        "weight": ("weight",),
        "bias": ("bias",),
        "mean": ("running_mean", "mean"),
        "var": ("running_var", "var"),
    },
    ReLUTheta.kind: {"theta": ("theta", "threshold")},
    AtMost.kind: {"value": ("value",)},
    AtLeast.kind: {"value": ("value",)},
    # In deployed sub-graphs only, by the names in our own files.
    Multiply.kind: {"value": ("value",)},
    Shift.kind: {"value": ("value",)},
}
#: A number in a name, and one with what may be its sign.
_NUMBER = re.compile(r"([0-9]+)")
_SIGNED = re.compile(r"((?<![0-9])[-\N{MINUS SIGN}]?[0-9]+)")


@dataclass(frozen=True)
class Pairing:
    """Layer -> module's prefix in the state dict; warnings about what is uncertain."""

    modules: dict[str, str]
    warnings: list[str] = field(default_factory=list)


def pair_modules(
    groups: Mapping[str, Group], wanted: Mapping[str, str], plan: Blueprint, *, ordered: bool
) -> Pairing:
    """The module of every layer in ``wanted`` (layer -> kind).

    groups: tensors by module, in the order of the file; ``ordered``: that order is the saver's
    (safetensors sorts by name). Raises ModelError ``architecture_mismatch``.
    """
    named = _by_name(groups, wanted, plan)
    if named is None and not ordered and set(groups) == {f"layers.{node}" for node in wanted}:
        # Our own file: it calls the modules by their nodes.
        named = {node: f"layers.{node}" for node in wanted}
        _check_names(named, groups, plan)
    return Pairing(named) if named is not None else _by_order(groups, wanted, plan, ordered=ordered)


def kind_of(prefix: str, group: Group) -> str:
    """Which kind of layer a module is, by its tensors; empty when it is none of ours.

    Upper and lower thresholds of equal shape are told apart by the name (as we write it).
    """
    if group.keys() == {"value"}:
        return next((kind for kind in (AtMost.kind, AtLeast.kind) if kind in prefix), "")
    if {"running_mean", "mean"} & group.keys():
        return BatchNorm.kind
    if {"theta", "threshold"} & group.keys():
        return ReLUTheta.kind
    rank = group["weight"].dim() if "weight" in group else 0
    return {4: Conv2d.kind, 2: Linear.kind}.get(rank, "")


def _by_name(
    groups: Mapping[str, Group], wanted: Mapping[str, str], plan: Blueprint
) -> dict[str, str] | None:
    """Modules by the layers' names, if every layer with weights has the name of a module."""
    pairs: dict[str, str] = {}
    for node in wanted:
        name = plan.names.get(node)
        found = [p for p in groups if name and (p == name or p.endswith("." + name))]
        if len(found) != 1:
            return None
        pairs[node] = found[0]
    if set(groups) != set(pairs.values()):
        return None
    return pairs


def _by_order(
    groups: Mapping[str, Group], wanted: Mapping[str, str], plan: Blueprint, *, ordered: bool
) -> Pairing:
    """Modules in order, kind by kind."""
    unknown = [prefix for prefix, group in groups.items() if not kind_of(prefix, group)]
    if unknown:
        names = [f"{prefix}.{key}" for prefix in unknown for key in groups[prefix]]
        mismatch(f"the tensors {names[:8]} belong to no layer of the architecture")
    pairs: dict[str, str] = {}
    warnings: list[str] = []
    for kind in TENSOR_NAMES:
        nodes = [node for node, its_kind in wanted.items() if its_kind == kind]
        modules = [prefix for prefix, group in groups.items() if kind_of(prefix, group) == kind]
        if len(nodes) != len(modules):
            mismatch(
                f"the architecture has {len(nodes)} {kind} layers with weights, "
                f"the checkpoint {len(modules)}: {_shapes(groups, modules)}"
            )
        shapes = [_first_shape(plan, node) for node in nodes]
        if ordered:
            modules, moved = _by_number(groups, modules, shapes)
            warnings += moved
        elif len({_pattern(prefix) for prefix in modules}) > 1:
            modules = _by_shape(groups, modules, shapes)
        doubtful = _undecided(groups, modules, ordered=ordered)
        found = dict(zip(nodes, modules, strict=True))
        if doubtful and not (ordered and _each_after_its_own(found, pairs, groups, wanted)):
            warnings += [_doubt(same, ordered=ordered) for same in doubtful]
        pairs.update(found)
    _check_names(pairs, groups, plan)
    return Pairing(pairs, warnings)


def _by_number(
    groups: Mapping[str, Group], modules: list[str], shapes: list[tuple[int, ...]]
) -> tuple[list[str], list[str]]:
    """Sort modules whose names differ by numbers alone by these numbers.

    A file whose keys were sorted as text holds ``10`` before ``2``. Only modules of equal shape
    change places with each other; where all modules are named alike, all of them are sorted. A file
    in the order of negative numbers (``l-3`` before ``l-2``) stays as it is.
    """
    found = list(modules)
    alike: dict[object, list[int]] = {}
    for place, prefix in enumerate(modules):
        alike.setdefault((_pattern(prefix), _shape(groups[prefix])), []).append(place)
    for places in alike.values():
        for place, prefix in zip(places, _numbered([modules[p] for p in places]), strict=True):
            found[place] = prefix
    every = _numbered(modules)
    if len({_pattern(p) for p in modules}) == 1 and [_shape(groups[p]) for p in every] == shapes:
        found = every
    moved = [new for old, new in zip(modules, found, strict=True) if old != new]
    if not moved:
        return found, []
    return found, [
        f"The state dict holds {_listed(modules)} in this order, which their numbers contradict: "
        f"they were given to the layers in the order {_listed(found)}."
    ]


def _numbered(modules: list[str]) -> list[str]:
    """Sorted by their numbers, unless signs in the names say that they are sorted already."""
    return modules if modules == sorted(modules, key=_signed) else sorted(modules, key=natural)


def _undecided(
    groups: Mapping[str, Group], modules: list[str], *, ordered: bool
) -> list[list[str]]:
    """Modules of equal shape whose names do not determine their order: they differ by more than
    numbers, hold the same numbers (``l1`` and ``l01``), or numbers that may be negative.
    """
    same: dict[object, list[str]] = {}
    for prefix in modules:
        same.setdefault(_shape(groups[prefix]), []).append(prefix)

    def unclear(found: list[str]) -> bool:
        if len({_pattern(prefix) for prefix in found}) > 1:
            return True
        by_number = sorted(found, key=natural)
        # A file that keeps its saver's order confirms that the sign is a hyphen.
        confirmed = ordered and found == by_number
        signs = by_number != sorted(found, key=_signed) and not confirmed
        return signs or len({tuple(natural(prefix)) for prefix in found}) < len(found)

    return [found for found in same.values() if unclear(found)]


def _each_after_its_own(
    found: Mapping[str, str],
    pairs: Mapping[str, str],
    groups: Mapping[str, Group],
    wanted: Mapping[str, str],
) -> bool:
    """Whether each batch norm directly follows, in the file, the module of the layer before it."""
    nodes, files = list(wanted), list(groups)
    for node, prefix in found.items():
        layer, module = nodes.index(node), files.index(prefix)
        if not layer or not module or pairs.get(nodes[layer - 1]) != files[module - 1]:
            return False
    return True


def _check_names(pairs: Mapping[str, str], groups: Mapping[str, Group], plan: Blueprint) -> None:
    """Refuse an order that contradicts the names of the layers that have one."""
    for node, prefix in pairs.items():
        name = plan.names.get(node)
        called = [p for p in groups if name and (p == name or p.endswith("." + name))]
        if called and prefix not in called:
            mismatch(
                f"the layer list calls a layer {name!r}, in the checkpoint {called[0]!r}; by order "
                f"that layer would get {prefix!r}",
                hint='give every layer with weights its module\'s "name", or none of them',
            )


def _doubt(same: list[str], *, ordered: bool) -> str:
    order = "of the file" if ordered else _listed(same)
    return (
        f"The modules {_listed(same)} of the state dict have equal shapes, and their names do not "
        f"say which layer is which: they were given to the layers in the order {order} (see "
        'model.pairing). Give every layer with weights its module\'s "name" in a layer list.'
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _shape(group: Group) -> tuple[int, ...]:
    """A module's shape as far as layers are told apart by it."""
    named = (group.get(name) for name in ("weight", "theta", "threshold", "value"))
    weight = next((tensor for tensor in named if tensor is not None), None)
    return () if weight is None else tuple(weight.shape)


def _pattern(prefix: str) -> str:
    """The name with its numbers left out."""
    return _NUMBER.sub("#", prefix)


def _first_shape(plan: Blueprint, node: str) -> tuple[int, ...]:
    return tuple(next(iter(plan.skeleton.layer(node).state_dict().values())).shape)


def _by_shape(
    groups: Mapping[str, Group], modules: list[str], shapes: list[tuple[int, ...]]
) -> list[str]:
    """Modules whose names say nothing of their order, in the order of the layers' shapes."""
    left: dict[tuple[int, ...], list[str]] = {}
    for prefix in modules:
        left.setdefault(_shape(groups[prefix]), []).append(prefix)
    for same in left.values():
        if len({_pattern(prefix) for prefix in same}) > 1:
            mismatch(
                f"the modules {same[:6]} have equal shapes and safetensors keeps no order",
                hint='give every layer with weights its module\'s "name" in a layer list',
            )
    lacking = [shape for shape in shapes if len(left.get(shape, [])) < shapes.count(shape)]
    if lacking:
        mismatch(
            f"the architecture has a weight of shape {lacking[0]}, the checkpoint "
            f"{_shapes(groups, modules)}"
        )
    return [left[shape].pop(0) for shape in shapes]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts numbers in a name by their size, of any length (``int`` takes 4300 digits)."""
    key = []
    for part in _NUMBER.split(name):
        digits = part.lstrip("0") if _NUMBER.fullmatch(part) else None
        if part:
            key.append((1, 0, part) if digits is None else (0, len(digits), digits))
    return key


def _signed(name: str) -> list[tuple[int, float, str]]:
    """Key that takes a minus before a number for its sign, unless a digit stands before it."""
    key: list[tuple[int, float, str]] = []
    for part in _SIGNED.split(name):
        if _SIGNED.fullmatch(part):
            key.append((0, float(part.replace("\N{MINUS SIGN}", "-")), ""))
        elif part:
            key.append((1, 0.0, part))
    return key


def _shapes(groups: Mapping[str, Group], modules: list[str]) -> str:
    return ", ".join(
        f"{prefix} {tuple(next(iter(groups[prefix].values())).shape)}" for prefix in modules[:12]
    )


def mismatch(message: str, hint: str = "") -> NoReturn:
    """Raise ModelError ``architecture_mismatch``."""
    raise ModelError(
        message,
        code="architecture_mismatch",
        hint=hint or "name the architecture the checkpoint was trained with, or give a layer list",
    )
