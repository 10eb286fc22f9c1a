"""Adversary first: the nearest wrong input of tiny hostile networks is known before anything is
claimed, by ONNX Runtime; no certificate may reach it, and no forged one may either."""

from __future__ import annotations

from fractions import Fraction
from itertools import count, islice

import numpy as np
import torch

from models.layers.activations import MaxMin
from models.layers.kinds import AvgPool2d, Conv2d, Linear, Normalize, ReLU
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from tests.check.forger import Forgery, certified_by, proves
from tests.extent import examples
from tests.workers.verification.adversary.networks import Body
from tests.workers.verification.adversary.parts import in_parts
from tests.workers.verification.adversary.search import (
    Case,
    clean_input,
    nearest,
    neighbours,
    wrong_rows,
)

COVERED = (Linear, Conv2d, Normalize, ReLU, MaxMin, AvgPool2d)


def grow(body: Body, random: np.random.Generator) -> None:
    """One layer that the checker covers, of any scale from denormal to 1e38."""
    kind = random.integers(6)
    if kind <= 1:
        body.linear()
    elif kind == 2:
        body.enlarge()
    elif kind == 3 and body.shape[0] % 2 == 0:
        body.add(MaxMin())
    elif kind == 4 and len(body.shape) == 3 and body.shape[2] > 1:
        body.add(AvgPool2d(kernel=(1, 2), stride=1, padding=(0, 1, 0, 0), count_include_pad=True))
    else:
        body.add(ReLU())


@np.errstate(all="ignore")
def find(seed: int) -> Case | None:
    """A network of covered layers, a clean input and the nearest wrong ones; None without any."""
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 4))
    shape: tuple[int, ...] = [(size,), (1, 1, size), (size, 1, 1)][int(random.integers(3))]
    pixels = bool(random.integers(3))
    x = clean_input(shape, random, pixels=pixels)
    points = neighbours(x, random)
    body = Body(shape, np.ascontiguousarray(np.concatenate([x, points])), random)
    if random.integers(3) == 0:
        std = torch.tensor([10.0 ** random.uniform(-3, 3)])
        body.add(Normalize(torch.tensor([0.5]), std))
    for _ in range(int(random.integers(1, 5))):
        grow(body, random)
    body.flatten()
    body.head()
    network = Network(shape, body.rows).eval()
    if random.integers(3) == 0:
        # Every sum that can be is one of partial sums.
        network = in_parts(network)
    deployed = OnnxRuntimeModel(export_onnx(network), shape)
    logits = deployed(x)
    label = int(logits[0].argmax())
    if bool(wrong_rows(logits, label)[0]):
        return None
    wrong = {}
    for clip in (False, True) if pixels else (False,):
        flat = points.reshape(len(points), -1)
        allowed = points[((flat >= 0) & (flat <= 1)).all(1)] if clip else points
        for norm in ("l2", "linf"):
            found = nearest(deployed, x, label, allowed, norm)
            if found is not None:
                wrong[norm, clip] = found
    return Case(network, deployed, x, label, logits, wrong) if wrong else None


def short(distance: float) -> Fraction:
    """A fraction of few digits, not below the distance and hardly above it."""
    return Fraction(f"{distance * 1.001:.3e}")


def test_no_certificate_reaches_a_wrong_input() -> None:
    cases = (case for seed in count() if (case := find(seed)) is not None)
    near = asked = 0
    for case in islice(cases, examples(40)):
        for (norm, clip), (distance, _) in case.wrong.items():
            far, close = short(distance), short(distance / 100)
            made = certified_by(
                case.network,
                case.x,
                np.array([case.label]),
                norm=norm,
                epsilons=[far, close],
                clip=clip,
            )
            asked += 1
            if made is None:
                continue
            assert proves(made) is None
            forgery = Forgery(made)
            assert forgery.tensors["rows.radius"][0] < distance
            assert forgery.tensors["rows.margin"][0, 0] == 0.0
            near += forgery.document["certified"][1]
            # A forger's claim of exactly that distance.
            forgery.tensors["rows.radius"][0] = distance
            forgery.document["certified"][0] = 1
            forgery.seal()
            assert proves(forgery.pack()) is not None
    # The test could fail: a hundredth of the distance is often proved.
    assert asked >= 40
    assert near >= 5
