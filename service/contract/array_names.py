"""Which arrays of an npz file are the samples and their labels: our names, or other usual ones."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["ARRAY_NAMES", "UnknownArrays", "arrays_of"]

#: Names of the samples, and what their labels are called beside them. The first is ours.
ARRAY_NAMES: dict[str, tuple[str, ...]] = {
    "x": ("y",),
    "X": ("y",),
    "x_test": ("y_test",),
    "X_test": ("y_test",),
    "images": ("labels",),
    "data": ("labels", "target"),
    "arr_0": ("arr_1",),
}
#: Further parts: beside them it is unknown which part is meant.
_OTHER_PARTS = ("x_train", "X_train", "x_val", "X_val")


class UnknownArrays(ValueError):
    """No array is known to hold the samples, or several may; ``hint`` says what to do."""

    hint = "numpy.savez(path, x=images, y=labels)"


def arrays_of(names: Collection[str]) -> tuple[str, str | None]:
    """The names of the samples and of their labels (None: there are none) in an npz file.

    ``x`` and ``y`` where there is an ``x``, whatever else there is. Raises UnknownArrays.
    """
    found = [name for name in ARRAY_NAMES if name in names]
    listed = ", ".join(repr(name) for name in sorted(names)[:10])
    if not names:
        raise UnknownArrays("the npz holds no array")
    if not found:
        raise UnknownArrays(
            f"the npz holds {listed}, and none of them is known as the samples "
            f"({', '.join(ARRAY_NAMES)})"
        )
    parts = [name for name in _OTHER_PARTS if name in names]
    if found[0] != "x" and (len(found) > 1 or parts):
        raise UnknownArrays(f"which arrays of the npz are meant is unknown: it holds {listed}")
    labels = [name for name in ARRAY_NAMES[found[0]] if name in names]
    return found[0], labels[0] if labels else None
