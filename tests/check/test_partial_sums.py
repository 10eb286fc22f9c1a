"""Partial sums are one map for the checker, with the roundings of the sums that they are."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from check.network import Affine
from check.network import Network as CheckedNetwork
from models.layers.base import Layer
from models.layers.kinds import Conv2d, Linear, ReLU, Reshape
from models.layers.partial_sums import in_partial_sums, summed_convolution
from models.network import Network
from tests.check.forger import Forgery, certified_by, chain, proves
from workers.jobs.report.certificate import _layers

EPSILONS = [Fraction(1, 100)]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / shape[1] ** 0.5


def layers(*, summed: bool) -> list[Layer]:
    """A convolution of 8 channels and a head of 24 features, as they are or in partial sums."""
    conv = Conv2d(normal(6, 8, 3, 3) / 2, normal(6, 1)[:, 0], padding=1, stride=2)
    head, bias = normal(3, 24), normal(3, 1)[:, 0]
    first: list[Layer] = [conv]
    last: list[Layer] = [Reshape(shape=(24,)), Linear(head, bias)]
    if summed:
        first = [part.layer for part in summed_convolution(conv, (8, 4, 4), (2, 4))]
        last = [Reshape(shape=(24, 1, 1))]
        last += [part.layer for part in in_partial_sums(head, bias, (), (4, 3, 2))]
    return [*first, ReLU(), *last]


def certified(network: Network) -> bytes:
    x = np.random.default_rng(0).random((6, 8, 4, 4)).astype(np.float32)
    with torch.no_grad():
        label = network(torch.from_numpy(x)).argmax(1).numpy()
    made = certified_by(network, x, label, norm="l2", epsilons=EPSILONS)
    assert made is not None
    return made


def checked(network: Network) -> list[Affine]:
    written = _layers(network.deployed())
    assert written is not None
    rows, tensors = written
    found = CheckedNetwork([*network.input_shape], rows, None, dict(tensors))
    return [layer for _, layer in found.layers if isinstance(layer, Affine)]


@torch.no_grad()
def test_the_map_is_the_whole_one_and_its_roundings_are_those_of_the_parts() -> None:
    whole, parts = (chain((8, 4, 4), layers(summed=summed)) for summed in (False, True))
    for one, other in zip(checked(whole), checked(parts), strict=True):
        assert np.array_equal(one.weight, other.weight)
        assert np.array_equal(one.magnitude, other.magnitude)
        assert other.steps == one.steps == one.terms
    conv, head = checked(parts)
    # A product, 17 sums of 18 terms, 3 of 4 groups, the bias; and one to spare.
    assert conv.terms == 1 + 17 + 3 + 1 + 1
    assert head.terms == 1 + 3 + 2 + 1 + 1 + 1


def test_a_certificate_of_partial_sums_is_proved_and_claims_more() -> None:
    radii = []
    for summed in (False, True):
        made = certified(chain((8, 4, 4), layers(summed=summed)))
        assert proves(made) is None
        radii.append(Forgery(made).tensors["rows.radius"])
    assert (radii[1] > radii[0]).all()


def _levels(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][0]["levels"] = [2]


def _more_levels(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    # The same map in fewer roundings than the file has: its claims are not those of this one.
    document["layers"][0]["levels"] = [2, 2]


def _flat(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][0]["flat"] = True


def _not_flat(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][-1]["flat"] = False


def _weight(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors[document["layers"][0]["weight"]][3, 1, 1, 1] += 0.5


def _bias(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors[document["layers"][-1]["bias"]] += np.array([50.0, 0.0, 0.0], dtype=np.float32)


def _longer_bias(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = document["layers"][0]["bias"]
    tensors[name] = np.concatenate([tensors[name]] * 4)


@pytest.mark.parametrize(
    "change", [_levels, _more_levels, _flat, _not_flat, _weight, _bias, _longer_bias]
)
def test_a_changed_part_is_refused(change: Any) -> None:
    forged = Forgery(certified(chain((8, 4, 4), layers(summed=True))))
    change(forged.document, forged.tensors)
    forged.seal()
    assert proves(forged.pack()) is not None


def test_a_chain_that_is_read_in_between_has_no_certificate() -> None:
    network = chain((8, 4, 4), layers(summed=True))
    rows = [(node.name, network.layer(node.name), node.inputs) for node in network.nodes]
    assert _layers(Network((8, 4, 4), rows)) is not None
    # The view of all groups goes into the head instead of their sum.
    first = network.nodes[0]
    other = [
        *rows[:2],
        ("flat", Reshape(shape=(first.shape[0] * 4,)), (rows[1][0],)),
        ("out", Linear(normal(3, first.shape[0] * 4)), ("flat",)),
    ]
    written = _layers(Network((8, 4, 4), other))
    assert written is None or "summed" not in {row["kind"] for row in written[0]}
