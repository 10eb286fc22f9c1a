"""Whatever of a certificate is changed, it is rejected: by its digest, and by mathematics where the
forger makes all digests anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.check.forger import Forgery, example, example_of_boxes, proves

Random = np.random.Generator


@pytest.fixture(scope="module")
def honest() -> bytes:
    made = example()
    assert proves(made) is None
    return made


@pytest.fixture(scope="module")
def boxes() -> bytes:
    made = example_of_boxes()
    assert proves(made) is None
    forgery = Forgery(made)
    assert forgery.document["certified"] == [3, 0]
    assert (forgery.tensors["rows.margin"][:, 0] > 0.05).all()
    return made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the leaves of a JSON value are."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for key, item in items for place in places(item, (*path, key))]
    return [path]


def other(value: Any, random: Random) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + int(random.choice([-1, 1, 7]))
    if isinstance(value, float):
        return value * float(random.choice([0.5, 0.999, 1.001, 2.0]))
    return "no" if value is None else f"{value}1" if isinstance(value, str) else [1]


def change_document(forgery: Forgery, random: Random) -> str:
    """One leaf of the document."""
    paths = places(forgery.document)
    path = paths[int(random.integers(len(paths)))]
    inner = forgery.document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = other(inner[path[-1]], random)
    return "/".join(map(str, path))


def change_tensor(forgery: Forgery, random: Random, name: str | None = None) -> str:
    """One bit of one number."""
    names = sorted(forgery.tensors) if name is None else [name]
    name = names[int(random.integers(len(names)))]
    raw = forgery.tensors[name].reshape(-1).view(np.uint8)
    place = int(random.integers(len(raw)))
    raw[place] ^= np.uint8(1 << int(random.integers(8)))
    return f"{name} at byte {place}"


def test_two_hundred_changes_of_one_field_are_rejected(honest: bytes) -> None:
    random = np.random.default_rng(0)
    for number in range(200):
        forgery = Forgery(honest)
        change = (change_document, change_tensor)[number % 2](forgery, random)
        assert proves(forgery.pack()) is not None, change


def scaled(name: str, factors: tuple[float, ...]) -> Callable[[Forgery, Random], None]:
    """Another number above 0 of a tensor."""

    def change(forgery: Forgery, random: Random) -> None:
        flat = forgery.tensors[name].reshape(-1)
        place = random.choice(np.flatnonzero(flat))
        flat[place] *= random.choice(factors)

    return change


def replaced(name: str, least: int) -> Callable[[Forgery, Random], None]:
    """Another class of a sample that has a claim."""

    def change(forgery: Forgery, random: Random) -> None:
        rows = np.flatnonzero(forgery.tensors["rows.radius"])
        row = random.choice(rows)
        classes = [c for c in range(least, 3) if c != forgery.tensors[name][row]]
        forgery.tensors[name][row] = random.choice(classes)

    return change


def member(*path: Any, to: Callable[[Any, Random], Any]) -> Callable[[Forgery, Random], None]:
    """Another value in the document."""

    def change(forgery: Forgery, random: Random) -> None:
        inner = forgery.document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to(copy.deepcopy(inner[path[-1]]), random)

    return change


def claim_where_nothing_is_proved(forgery: Forgery, random: Random) -> None:
    parts = [forgery.tensors[name].reshape(-1) for name in ("rows.radius", "rows.margin")]
    parts = [part for part in parts if (part == 0).any()]
    flat = parts[int(random.integers(len(parts)))]
    flat[random.choice(np.flatnonzero(flat == 0))] = 10.0 ** random.uniform(-12, 0)


def factor(*choices: float) -> Callable[[Any, Random], Any]:
    return lambda value, random: value * float(random.choice(choices))


#: Each makes a claim that is false, or another than the one that the formulas give.
FORGERIES: dict[str, Callable[[Forgery, Random], None]] = {
    "weight of a convolution": scaled("layers.layer4.weight", (0.99, 1.01, -1.0)),
    "weight of a dense layer": scaled("layers.layer7.weight", (0.99, 1.01, -1.0)),
    "weight of the last layer": scaled("layers.layer9.weight", (0.99, 1.01, -1.0)),
    "bias": scaled("layers.layer9.bias", (0.9, 1.1, -1.0)),
    "deviation": scaled("layers.layer0.std", (0.5, 1.01)),
    "mean": scaled("layers.layer0.mean", (0.5, 1.01)),
    "radius": scaled("rows.radius", (1.0 + 1e-7, 2.0, 1e3, 0.999)),
    "claim": claim_where_nothing_is_proved,
    "label": replaced("rows.label", 0),
    "prediction": replaced("rows.prediction", -1),
    "norm of a layer": member("layers", 4, "norm", to=factor(0.5, 0.9999, 1.001)),
    "absolute norm": member("layers", 7, "absolute", to=factor(0.5, 0.9999, 1.001)),
    "stride": member("layers", 4, "stride", to=lambda value, random: [2, 2]),
    "padding": member("layers", 4, "padding", to=lambda value, random: [0, 0, 1, 1]),
    "groups": member("layers", 1, "groups", to=lambda value, random: 1),
    "window": member("layers", 3, "kernel", to=lambda value, random: [1, 2]),
    "kind": member("layers", 5, "kind", to=lambda value, random: "maxmin"),
    "norm": member("threat", "norm", to=lambda value, random: "l2"),
    "larger epsilon": member("threat", "epsilons", to=lambda value, random: [value[1], "1/2"]),
    "rounding": member("rounding", to=lambda value, random: "real numbers"),
    "softmax": member("ends_in", to=lambda value, random: "Softmax"),
    "count": member("certified", to=lambda value, random: [value[0] + 1, value[1]]),
    "samples": member("samples", to=lambda value, random: value - 1),
    "shape": member("input_shape", to=lambda value, random: [6, 6, 2]),
}


#: The same of what interval bounds claim.
BOX_FORGERIES: dict[str, Callable[[Forgery, Random], None]] = {
    "margin": scaled("rows.margin", (1.0 + 1e-4, 2.0, 1e3, 0.99)),
    "claim": claim_where_nothing_is_proved,
    "epsilon": member("threat", "epsilons", to=lambda value, random: ["1/4", "3/5"]),
    "clip": member("threat", "clip", to=lambda value, random: False),
    "weight": scaled("layers.layer2.weight", (1.01, 2.0)),
    "no claim": scaled("rows.margin", (0.0,)),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_false_claim_under_new_digests_is_rejected_by_mathematics(
    honest: bytes, kind: str
) -> None:
    random = np.random.default_rng([*kind.encode()])
    for _ in range(7):
        forgery = Forgery(honest)
        FORGERIES[kind](forgery, random)
        forgery.seal()
        assert forgery.pack() != honest
        assert proves(forgery.pack()) is not None


@pytest.mark.parametrize("kind", BOX_FORGERIES)
def test_a_false_margin_under_new_digests_is_rejected_by_mathematics(
    boxes: bytes, kind: str
) -> None:
    random = np.random.default_rng([*kind.encode()])
    for _ in range(7):
        forgery = Forgery(boxes)
        BOX_FORGERIES[kind](forgery, random)
        forgery.seal()
        assert proves(forgery.pack()) is not None


def test_what_is_not_changed_stays_proved(honest: bytes) -> None:
    """Another order of tensors, another spelling of the header: the same claims."""
    forgery = Forgery(honest)
    forgery.tensors = dict(reversed(forgery.tensors.items()))
    forgery.seal()
    assert proves(forgery.pack()) is None
    assert proves(example("l2", seed=1)) is None
