"""Partial sums are one map for the checker, with the roundings of the sums that they are."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from check.network import Affine
from check.network import Network as CheckedNetwork
from models.chains import chain_at
from models.layers.base import Layer
from models.layers.joins import ReduceSum
from models.layers.kinds import Conv2d, Linear, ReLU, Reshape
from models.layers.partial_sums import in_partial_sums, summed_convolution
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.rewriting import rewritten
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


def grouped(*, summed: bool) -> list[Layer]:
    """A convolution of 8 channels in two groups, each in blocks of one channel or as it is."""
    conv = Conv2d(normal(6, 4, 3, 3), normal(6, 1)[:, 0], padding=1, stride=2, groups=2)
    first: list[Layer] = [conv]
    if summed:
        first = [part.layer for part in summed_convolution(conv, (8, 4, 4), (1, 2, 2))]
    return [*first, ReLU(), Reshape(shape=(24,)), Linear(normal(3, 24), normal(3, 1)[:, 0])]


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


@torch.no_grad()
def test_groups_stay_apart_and_each_has_a_norm_of_its_own() -> None:
    whole, parts = (chain((8, 4, 4), grouped(summed=summed)) for summed in (False, True))
    one, other = checked(whole)[0], checked(parts)[0]
    assert np.array_equal(one.weight, other.weight)
    assert np.array_equal(one.magnitude, other.magnitude)
    assert other.norms() == one.norms()
    assert (other.groups, other.steps) == (one.groups, one.steps) == (2, one.terms)
    # A product, 8 sums of 9 terms, 1 of 2 blocks twice, the bias; and one to spare.
    assert other.terms == 1 + 8 + 1 + 1 + 1 + 1
    # The norm is the larger one of the two groups': 2.0 and 1.0 on channels that never meet.
    apart = torch.zeros(4, 2, 1, 1)
    apart[0, 0], apart[3, 1] = 2.0, 1.0
    layer = summed_convolution(Conv2d(apart, groups=2), (4, 3, 3), (1, 2))
    rest: list[Layer] = [Reshape(shape=(36,)), Linear(normal(3, 36))]
    norm, absolute = checked(chain((4, 3, 3), [*(part.layer for part in layer), *rest]))[0].norms()
    assert 2.0 <= norm <= absolute <= 2.0 + 1e-9


@torch.no_grad()
def test_an_upload_in_groups_has_the_certificate_of_its_partial_sums() -> None:
    conv = Conv2d(normal(12, 48, 3, 3), normal(12, 1)[:, 0], padding=1, groups=3)
    dense = Linear(normal(3, 48), normal(3, 1)[:, 0])
    network = chain((144, 2, 2), [conv, ReLU(), Reshape(shape=(48,)), dense])
    found = import_onnx_bytes(export_onnx(rewritten(network, lost=100.0).network))
    x = np.random.default_rng(1).random((5, 144, 2, 2)).astype(np.float32)
    label = found(torch.from_numpy(x)).argmax(1).numpy()
    made = certified_by(found, x, label, norm="l2", epsilons=EPSILONS)
    assert made is not None
    assert proves(made) is None
    forgery = Forgery(made)
    kinds = [row["kind"] for row in forgery.document["layers"]]
    assert kinds[0] == "summed-groups"
    assert forgery.document["layers"][0]["groups"] == 3
    assert (forgery.tensors["rows.radius"] > 0).all()


@torch.no_grad()
def test_what_is_no_sum_of_each_group_is_no_chain() -> None:
    first, view, *sums, back, shift = grouped(summed=True)[:6]
    flat, half = Reshape(shape=(24,)), Reshape(shape=(48,))
    assert chain_at(chain((8, 4, 4), [first, view, *sums, back, shift, flat]), 0) is not None
    # What stands behind the sums is no view of all groups, a level is missing, or two places are
    # one axis.
    less = Reshape(shape=(2, 2, 2, 3, 4))
    for others in ([view, *sums, flat], [view, sums[0], half], [less, *sums, back, flat]):
        assert chain_at(chain((8, 4, 4), [first, *others]), 0) is None
    # Sums over two of the blocks' axes and one of what each makes.
    network = chain((8, 4, 4), [first, view, sums[0], ReduceSum(axes=(2,)), Reshape(shape=(16,))])
    assert chain_at(network, 0) is None


@pytest.mark.parametrize("form", [layers, grouped])
def test_a_certificate_of_partial_sums_is_proved_and_claims_more(form: Any) -> None:
    radii = []
    for summed in (False, True):
        made = certified(chain((8, 4, 4), form(summed=summed)))
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
    tensors[document["layers"][0]["weight"]][3, 0, 1, 1] += 0.5


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


def _one_group(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    # As many blocks, all of one group: every result would read all channels.
    document["layers"][0] |= {"groups": 1, "levels": [2, 2, 2]}


def _more_groups(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][0] |= {"groups": 4, "levels": [2]}


def _one_level(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][0]["levels"] = [4]


def _no_level(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][0] |= {"levels": [2], "groups": 2}


def _groups_exchanged(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    weight = tensors[document["layers"][0]["weight"]]
    weight[:] = np.concatenate([weight[12:], weight[:12]])


def _stated(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    # Just above what the checker proves for the worse group, and below.
    document["layers"][0]["norm"] *= 1.0 - 2.0**-18


def _lesser_group(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    # The norm of one group alone.
    tensors[document["layers"][0]["weight"]][:12] *= np.float32(0.5)


def _other_kind(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][0] |= {"kind": "summed", "flat": False}
    del document["layers"][0]["groups"]


def _flat_groups(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    document["layers"][0]["flat"] = False


@pytest.mark.parametrize(
    "change",
    [
        *(_one_group, _more_groups, _one_level, _no_level, _groups_exchanged, _stated),
        *(_lesser_group, _other_kind, _flat_groups, _weight),
    ],
)
def test_a_changed_part_of_groups_is_refused(change: Any) -> None:
    forged = Forgery(certified(chain((8, 4, 4), grouped(summed=True))))
    assert proves(forged.pack()) is None
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
