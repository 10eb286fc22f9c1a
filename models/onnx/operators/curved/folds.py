"""Folds: half of the plane of each pair of numbers is reflected onto the other half (Householder).

deel-torchlip, orthogonium and the authors of the activation (Singla, Singla, Feizi 2022,
arXiv:2108.04062) write it with a comparison: of p = (x, y) the pair itself where the float32 number
n . p is not above 0, and A p where it is, A = I - 2 n n^T up to rounding. Here it is what it is
without the comparison, F(p) = p - 2 n max(n . p, 0), which is continuous, and a layer that says how
far the file's value may be from it (``InexactPairs``). With u = 2^-24 the float32 n . p is off by
at most e = 2 u |n| . |p| to first order, so:

- where the file takes p, n . p <= e, and F(p) = p - 2 n max(n . p, 0) differs by at most 2 |n| e;
- where it takes A p, n . p >= -e. A p is rounded by 2 u |A| |p| and differs from (I - 2 n n^T) p by
  |A - (I - 2 n n^T)| |p|, and that from F(p) by at most 2 |n| e, where n . p is below 0.

Which of the two a tie takes changes nothing of this. Constants that every machine computes in its
own way (sines of angles) may differ by ``spread``, here and there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from models.errors import ModelError
from models.layers.joins import Concat, Slice
from models.layers.kinds import Add, Multiply, ReLU
from models.layers.one_lipschitz import InexactPairs
from models.onnx.graph import Activation, Choice, Comparison, Operation, Translation, Value
from models.onnx.operators.curved.choices import JUMPS, WRITTEN, truth, where
from models.onnx.operators.sorting import halves_of

__all__ = ["as_numbers", "chosen", "keep_spreads", "refuse_choice"]

#: Two float32 operations in a row, 2 u, with room for the second order and for float64 here.
_TWO_ROUNDINGS = 2.125 * 2.0**-24
#: How far n may be from a unit vector, and A from the reflection that it gives.
_LARGEST_MISMATCH = 2.0**-8
#: Operators that keep what the constants of their inputs may differ by.
_SUMS, _COMPARISONS = ("Add", "Sub"), ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")

Array = NDArray[np.float64]


def chosen(operation: Operation, translation: Translation) -> Value | None:
    """An operator on comparisons, and on what is chosen by them; None where it reads comparisons as
    numbers (``as_numbers``)."""
    given = [v for v in operation.inputs if isinstance(v, Choice | Comparison)]
    found = _READERS.get(operation.op_type, _nothing)(operation, translation)
    if found is not None:
        return found
    if any(isinstance(v, Comparison) and v.number for v in given):
        return None
    refuse_choice(next((v for v in given if isinstance(v, Choice)), None), translation)
    return operation.refuse(
        "the result of a comparison is taken by what chooses by it alone", hint=JUMPS
    )


def as_numbers(operation: Operation, translation: Translation) -> Operation:
    """The operation with comparisons that are 1 or 0 as steps."""
    inputs = [
        truth(operation, translation, v) if isinstance(v, Comparison) and v.number else v
        for v in operation.inputs
    ]
    return replace(operation, inputs=tuple(inputs))


def _nothing(operation: Operation, translation: Translation) -> None:
    """Of operators that read no comparison."""


def _where(operation: Operation, translation: Translation) -> Value | None:
    """Where a comparison is the condition, and of activations and constants alone."""
    condition, *sides = operation.inputs
    plain = not any(isinstance(side, Choice | Comparison) for side in sides)
    return where(operation, translation) if isinstance(condition, Comparison) and plain else None


def _cast(operation: Operation, translation: Translation) -> Value | None:
    """As 1 and 0."""
    (by,) = operation.inputs
    to_float = operation.attributes["to"] == TensorProto.FLOAT
    return replace(by, number=True) if isinstance(by, Comparison) and to_float else None


def _masked(operation: Operation, translation: Translation) -> Value | None:
    """x where the comparison holds, 0 elsewhere: a product with 1 or 0, which is exact."""
    for x, by in (operation.inputs, operation.inputs[::-1]):
        if isinstance(x, Activation) and isinstance(by, Comparison) and by.number:
            _require_alike(operation, x, by.of)
            return Choice(by, x, None, operation.label)
    return None


def _both(operation: Operation, translation: Translation) -> Value | None:
    """The sum of two products of which always one is 0, and the other what it is chosen from."""
    first, second = operation.inputs
    if not isinstance(first, Choice) or not isinstance(second, Choice):
        return None
    one, other = first.by, second.by
    complements = replace(one, above=not one.above, strict=not one.strict) == other
    if not complements or first.other is not None or second.other is not None:
        return None
    return Choice(one, first.chosen, second.chosen, operation.label)


def refuse_choice(value: Value | None, translation: Translation) -> None:
    """Raise ModelError where a value is a choice that nothing is known of, or of numbers that every
    machine computes in its own way."""
    if isinstance(value, Choice):
        raise ModelError(
            f"{value.node}: a choice by a comparison that may jump",
            code="unsupported_operator",
            hint=JUMPS,
        )
    if isinstance(value, Activation) and value.name in translation.spreads:
        raise ModelError(
            "the output is a product with constants that the file computes by Sin or Cos",
            code="unsupported_operator",
            hint=WRITTEN,
        )


def _require_alike(operation: Operation, *values: Activation) -> None:
    first = values[0]
    plain = all(v.batched and not v.batch_axis and not v.merged for v in values)
    if not plain or any(value.shape != first.shape for value in values):
        operation.refuse("what is chosen and what is compared differ in shape", hint=JUMPS)


def _fold(operation: Operation, translation: Translation) -> Activation | None:
    """The fold that two joined choices are; None where they are none."""
    choices = [v for v in operation.inputs if isinstance(v, Choice)]
    whole = len(operation.inputs) == 2 == len(choices) and all(c.other for c in choices)
    if not whole:
        return None
    by = choices[0].by
    if any((c.by.of, c.by.bound) != (by.of, 0.0) for c in choices):
        return None
    if operation.axis(int(operation.attributes["axis"]), by.of.rank) != 1:
        return None
    above, below = (
        [c.chosen if c.by.above is side else c.other for c in choices] for side in (True, False)
    )
    found = _folded(operation, translation, by.of, below, above, 1.0)
    return found or _folded(operation, translation, by.of, above, below, -1.0)


#: Operators that read comparisons, and what is chosen by them.
_READERS: dict[str, Callable[[Operation, Translation], Value | None]] = {
    "Add": _both,
    "Cast": _cast,
    "Concat": _fold,
    "Identity": lambda operation, translation: operation.inputs[0],
    "Mul": _masked,
    "Where": _where,
}


def _folded(
    operation: Operation,
    translation: Translation,
    by: Activation,
    kept: Sequence[Activation | None],
    bent: Sequence[Activation | None],
    sign: float,
) -> Activation | None:
    """The fold that keeps the halves ``kept``, and is ``bent`` where ``sign`` times ``by`` is above
    0."""
    halves = tuple(part for part in kept if part is not None)
    whole = halves_of(translation, 0, halves)
    cut, _ = translation.origins.get(halves[0].name, (None, ()))
    if whole is None or not isinstance(cut, Slice) or cut.start != 0:
        return None
    _require_alike(operation, by, *halves, *(part for part in bent if part is not None))
    rows = [_combination(translation, value, halves) for value in (by, *bent)]
    if any(row is None for row in rows):
        return None
    (normal, spread), *matrix = (row for row in rows if row is not None)
    normal = (sign * normal[0], sign * normal[1])
    spread = max(spread, *(row[1] for row in matrix))
    share = _share(normal, [row[0] for row in matrix], spread)
    if share is None:
        return None

    def times(value: Activation, factor: Array) -> Activation:
        layer = Multiply(translation.weight(operation, factor.astype(np.float32)))
        return translation.emit(operation, layer, value)

    across = [times(half, factor) for half, factor in zip(halves, normal, strict=True)]
    beyond = translation.emit(operation, Add(), *across)
    beyond = translation.emit(operation, ReLU(), beyond)
    back = [times(beyond, -2.0 * factor) for factor in normal]
    moved = translation.emit(operation, Concat(axis=0), *back)
    result = translation.emit(operation, Add(), whole, moved)
    return translation.emit(operation, InexactPairs(translation.weight(operation, share)), result)


def _share(
    normal: tuple[Array, ...], matrix: Sequence[tuple[Array, ...]], spread: float
) -> NDArray[np.float32] | None:
    """|file - F| over |F| of each pair, at most; None where the two sides do not meet.

    |p| <= |F(p)| / min(1, |1 - 2 |n|^2|), the singular values of the reflection.
    """
    size = np.asarray(normal[0] ** 2 + normal[1] ** 2)
    mismatch = np.abs(size - 1.0)
    total = np.zeros(())
    for i in range(2):
        # How far the file's n . p may be from ours, for each of both numbers.
        for j in range(2):
            off = _TWO_ROUNDINGS * (np.abs(normal[j]) + spread) + spread
            here = np.abs(matrix[i][j] - ((i == j) - 2.0 * normal[i] * normal[j]))
            mismatch = np.maximum(mismatch, here)
            here = here + spread + _TWO_ROUNDINGS * (np.abs(matrix[i][j]) + spread)
            total = total + (here + 2.0 * np.abs(normal[i]) * off) ** 2
    if not bool((mismatch <= _LARGEST_MISMATCH).all()):
        return None
    share = np.sqrt(total) / np.minimum(1.0, np.abs(1.0 - 2.0 * size))
    return np.nextafter(share.astype(np.float32), np.float32(1.0))


def _combination(
    translation: Translation, value: Activation | None, halves: tuple[Activation, ...]
) -> tuple[tuple[Array, ...], float] | None:
    """The factors of both halves in a sum of two products, and what they may differ by."""
    layer, sources = (
        (None, ()) if value is None else translation.origins.get(value.name, (None, ()))
    )
    if not isinstance(layer, Add):
        return None
    factors: dict[int, Array] = {}
    spreads = [0.0]
    for source in sources:
        found = _product(translation, source, halves)
        if found is None:
            return None
        place, factors[place], spread = found
        spreads.append(spread)
    return ((factors[0], factors[1]), max(spreads)) if len(factors) == 2 else None


def _product(
    translation: Translation, value: Activation, halves: tuple[Activation, ...]
) -> tuple[int, Array, float] | None:
    """Which half it is times what: one product at most that is rounded, and changes of sign."""
    sign, factor, spread = np.ones(()), None, 0.0
    for _ in range(4):
        for place, half in enumerate(halves):
            if _same(translation, value, half):
                return place, sign if factor is None else sign * factor, spread
        layer, sources = translation.origins.get(value.name, (None, ()))
        if not isinstance(layer, Multiply):
            return None
        number: Array = layer.value.detach().to(torch.float64).numpy()
        spread = max(spread, translation.spreads.get(value.name, 0.0))
        if value.name not in translation.spreads and bool((np.abs(number) == 1.0).all()):
            sign = sign * number
        elif factor is None:
            factor = number
        else:
            return None
        (value,) = sources
    return None


def _same(translation: Translation, value: Activation, half: Activation) -> bool:
    """Whether both are one cut of one value."""
    if value == half:
        return True
    cuts: list[Any] = [translation.origins.get(v.name, (None, ())) for v in (value, half)]
    (one, of_one), (other, of_other) = cuts
    both = isinstance(one, Slice) and isinstance(other, Slice) and of_one == of_other
    return both and one.config() == other.config()


def keep_spreads(operation: Operation, results: Sequence[Value], translation: Translation) -> None:
    """Hand on what constants may differ by to sums; refuse whatever else reads such a product."""
    found = [
        translation.spreads[v.name]
        for v in operation.inputs
        if isinstance(v, Activation) and v.name in translation.spreads
    ]
    if not found:
        return
    if operation.op_type in _SUMS:
        for result in results:
            if isinstance(result, Activation):
                translation.spreads[result.name] = max(found)
    elif operation.op_type not in _COMPARISONS and not isinstance(results[0], Choice):
        operation.refuse(
            "it reads a product with constants that the file computes by Sin or Cos, which every "
            "machine does in its own way",
            hint=WRITTEN,
        )
