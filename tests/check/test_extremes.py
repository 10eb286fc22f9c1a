"""Numbers at the ends of float32 and float64 prove nothing: a claim beside them is refused, or it
is true as it stands."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from check.network import Affine
from check.verify import certified, parse
from models.layers.kinds import Linear, ReLU
from models.network import Network
from tests.check.forger import Forgery, certified_by, chain, proves

#: Everything from the least float64 to the largest, and what real arithmetic would say.
CLAIMS = (5e-324, 1e-308, 1e-250, 1e-45, 1e-12, 0.4999, 1e38, 1e300, 1.7e308)
#: From the least denormal float32 to the largest float32.
SCALES = (1e-45, 1e-42, 1e-38, 1e-20, 1e20, 1e38)


def line(weights: list[float], bias: float = 0.0) -> Network:
    """x -> (z, -z) with z = w_k ... w_1 x + bias, through ReLUs."""
    layers: list[Linear | ReLU] = []
    for weight in weights[:-1]:
        layers += [Linear(torch.tensor([[weight]]), None), ReLU()]
    head = torch.tensor([[weights[-1]], [-weights[-1]]])
    return chain((1,), [*layers, Linear(head, torch.tensor([bias, -bias]))])


def certificate_of(network: Network, x: float, *, norm: str = "l2") -> bytes | None:
    sample = np.array([[x]], dtype=np.float32)
    label = np.zeros(1, dtype=np.int64)
    return certified_by(
        network, sample, label, norm=norm, epsilons=[Fraction(1, 10), Fraction(9, 10)], clip=False
    )


def restated(forgery: Forgery) -> None:
    """State the norms that are proved for the weights as they are now."""
    forgery.seal()
    layers = parse(io.BytesIO(forgery.pack())).network.layers
    for row, (_, layer) in zip(forgery.document["layers"], layers, strict=True):
        if isinstance(layer, Affine):
            row["norm"], row["absolute"] = layer.norms()
    forgery.seal()


def forged(weights: list[float]) -> Forgery:
    """A file about ``line(weights)`` at 0.5, honest but for its claim, which is none."""
    made = certificate_of(line([1.0] * len(weights)), 0.5)
    assert made is not None
    forgery = Forgery(made)
    names = [row["weight"] for row in forgery.document["layers"] if row["kind"] == "linear"]
    for name, weight in zip(names, weights, strict=True):
        forgery.tensors[name] *= np.float32(weight)
    forgery.tensors["rows.radius"][:] = 0.0
    forgery.tensors["rows.margin"][:] = 0.0
    forgery.document["certified"] = [0, 0]
    restated(forgery)
    return forgery


def evaluated(weights: list[float], x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The numbers of every layer of ``line(weights)`` in float32, z of the head last."""
    values = [x]
    for weight in weights:
        product = values[-1] * np.float32(weight)
        last = len(values) == len(weights)
        values.append(product if last else np.maximum(product, np.float32(0)))
    return values[1:]


BEYOND = [
    *([scale, 1.0] for scale in (1e-45, 1e-42)),
    *([scale, scale, 1.0] for scale in (1e-45, 1e-38, 1e38)),
    *([scale] * 12 for scale in SCALES),
    # In real numbers nothing happens at all: what is lost by one layer, the next one brings back.
    [1e-44, 1e38, 1e6],
    [1e-38, 1e-38, 1e38, 1e38],
    [1e38, 1e38, 1e-38, 1e-38],
    [3e38, 3e38, 1e-38, 1e-38],
]


@pytest.mark.parametrize("weights", BEYOND, ids=str)
def test_what_overflows_or_underflows_proves_nothing_whatever_real_numbers_would(
    weights: list[float],
) -> None:
    forgery = forged(weights)
    assert proves(forgery.pack()) is None, "nothing is claimed"
    for name in ("rows.radius", "rows.margin"):
        for claim in CLAIMS:
            forgery.tensors[name].reshape(-1)[:] = claim
            for certified_counts in ([0, 0], [1, 0], [1, 1]):
                forgery.document["certified"] = certified_counts
                forgery.seal()
                said = str(proves(forgery.pack()))
                assert said.startswith("Rejected: "), (name, claim, certified_counts)
        forgery.tensors[name][:] = 0.0


@pytest.mark.parametrize("scale", [*SCALES, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 6])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@np.errstate(all="ignore")
def test_what_is_claimed_at_any_scale_is_true_in_float32(
    scale: float, depth: int, norm: str
) -> None:
    weights = [scale] * depth
    made = certificate_of(line(weights), 0.5, norm=norm)
    if made is None:
        assert scale != 1.0
        return
    assert proves(made) is None
    radius = float(Forgery(made).tensors["rows.radius"][0])
    assert radius < 0.5
    if radius > 0:
        reach = np.linspace(0.5 - radius, 0.5 + radius, 101)
        inside = reach[(reach >= 0.5 - radius) & (reach <= 0.5 + radius)]
        values = evaluated(weights, inside.astype(np.float32))
        assert all(np.isfinite(value).all() for value in values)
        assert (values[-1] > 0).all()


def test_weights_in_float64_and_norms_beyond_reason_are_not_read() -> None:
    made = certificate_of(line([1.0, 1.0]), 0.5)
    assert made is not None
    name = Forgery(made).document["layers"][0]["weight"]
    for size in (1e300, 1e-300, 1.0):
        forgery = Forgery(made)
        forgery.tensors[name] = np.full_like(forgery.tensors[name], size, dtype=np.float64)
        forgery.seal()
        assert str(proves(forgery.pack())).startswith("Unreadable: ")
    for member in ("norm", "absolute"):
        for size in (1e300, 1.7e308, -1.0, 5e-324, 0.0, 1e-300, 1e299):
            forgery = Forgery(made)
            forgery.document["layers"][0][member] = size
            forgery.seal()
            assert proves(forgery.pack()) is not None, (member, size)


def test_an_epsilon_above_a_radius_is_not_certified_by_its_rounding() -> None:
    """Thresholds between an epsilon and the float32 or float64 number that it rounds down to."""
    seen = 0
    for value in np.linspace(0.31, 0.93, 19):
        rounded = Fraction(f"{value:.6f}")
        for nearest in (float(np.float32(float(rounded))), float(rounded)):
            exact = Fraction(nearest) + Fraction(1, 2**80)
            below, above = np.array([nearest]), np.array([np.nextafter(nearest, 1.0)])
            nothing = np.zeros((1, 1))
            assert not certified(below, nothing, (exact,)).any()
            assert certified(below, nothing, (Fraction(nearest),)).all()
            assert certified(above, nothing, (exact,)).all()
        threshold = np.nextafter(float(rounded), 0.0)
        if float(rounded) > threshold > float(np.float32(float(rounded))):
            seen += 1
            assert not certified(np.array([threshold]), nothing, (rounded,)).any()
    assert seen >= 5, "the epsilon's float32 is below the radius"


def test_a_file_that_certifies_by_a_rounded_epsilon_is_refused() -> None:
    seen = 0
    for value in np.linspace(0.31, 0.93, 19):
        made = certificate_of(line([1.0], bias=float(value)), 0.0)
        assert made is not None
        forgery = Forgery(made)
        radius = float(forgery.tensors["rows.radius"][0])
        assert 0.999 * value < radius <= value
        exact = Fraction(radius) + Fraction(1, 2**120)
        assert float(exact) == radius
        assert exact > radius
        seen += radius > float(np.float32(float(exact)))
        forgery.document["threat"]["epsilons"] = [str(exact), str(Fraction(radius))]
        forgery.tensors["rows.margin"][:] = 0.0
        for counts, fits in (([0, 1], True), ([1, 1], False), ([0, 0], False)):
            forgery.document["certified"] = counts
            forgery.seal()
            assert (proves(forgery.pack()) is None) == fits, (radius, counts)
    assert seen >= 5
