"""The nearest wrong input of a random network, by ONNX Runtime on a grid around a clean one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.layers.joins import Product
from models.layers.normalization import Softmax, Standardize
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from tests.workers.verification.adversary.growth import LARGEST, Points
from tests.workers.verification.adversary.networks import Body
from tests.workers.verification.adversary.parts import in_parts

__all__ = ["Case", "find_case"]

NORMS = ("l2", "linf")
#: What a network of the newest layers has at least one of.
GROUPED = Softmax | Standardize | Product


@dataclass
class Case:
    """A network, a clean input, its label, and the nearest wrong input by (norm, clip)."""

    network: Network
    deployed: OnnxRuntimeModel
    x: Points
    label: int
    logits: Points
    wrong: dict[tuple[str, bool], tuple[float, Points]]


def clean_input(shape: tuple[int, ...], random: np.random.Generator, *, pixels: bool) -> Points:
    """Ordinary pixels, 0, 1, the least denormal; without ``pixels`` any finite number too."""
    x = random.random((1, *shape)).astype(np.float32)
    denormal = random.integers(4) == 0
    for place in np.ndindex(x.shape):
        kind = 2 if denormal else random.integers(8 if pixels else 10)
        if kind == 0:
            x[place] = 0.0
        elif kind == 1:
            x[place] = 1.0
        elif kind == 2:
            x[place] = np.float32(2.0**-149 * np.floor(10.0 ** random.uniform(0, 3)))
        elif kind == 3:
            x[place] = 10.0 ** random.uniform(-44, 0)
        elif kind >= 8:
            x[place] = random.choice([-1.0, 1.0]) * 10.0 ** random.uniform(-44, 36)
    return x


def neighbours(x: Points, random: np.random.Generator) -> Points:
    """Points around x [1, *shape], x itself first, the others sorted by distance."""
    flat = x.reshape(-1).astype(np.float64)
    size = flat.size
    moves = np.concatenate([10.0 ** np.linspace(-45, 1, 70), 10.0 ** np.linspace(-8, 0, 25)])
    points = [flat]
    for place in range(size):
        for sign in (-1.0, 1.0):
            near = np.float32(flat[place])
            for _ in range(3):
                near = np.nextafter(near, np.float32(sign * np.inf))
                points.append(np.where(np.arange(size) == place, float(near), flat))
            for move in moves:
                points.append(flat + sign * move * (np.arange(size) == place))
    for _ in range(0 if size == 1 else 8):
        signs = random.choice([-1.0, 0.0, 1.0], size)
        points += [flat + signs * move for move in moves]
    points += [flat + random.normal(size=size) * 10.0 ** random.uniform(-9, 0) for _ in range(40)]
    points += [*random.random((40, size))]
    stacked = np.unique(np.clip(np.stack(points), -LARGEST, LARGEST).astype(np.float32), axis=0)
    distance = np.abs(stacked.astype(np.float64) - flat).max(1)
    stacked = stacked[np.argsort(distance, kind="stable")]
    return np.ascontiguousarray(stacked.reshape(-1, *x.shape[1:]))


def denormal_grid(x: Points) -> Points:
    """Every point a few least denormal numbers around x, itself first, sorted by distance."""
    reach = {1: 12, 2: 6}.get(x.size, 3)
    steps = np.arange(-reach, reach + 1) * 2.0**-149
    moves = np.stack(np.meshgrid(*[steps] * x.size, indexing="ij"), axis=-1).reshape(-1, x.size)
    moves = moves[np.argsort(np.abs(moves).max(1), kind="stable")]
    points = (x.reshape(1, -1).astype(np.float64) + moves).astype(np.float32)
    return np.ascontiguousarray(points.reshape(-1, *x.shape[1:]))


def distances(points: Points, x: Points, norm: str) -> NDArray[np.float64]:
    """At least the exact distances (a relative 1e-14 above), [points]."""
    moves = points.reshape(len(points), -1).astype(np.float64) - x.reshape(1, -1)
    size = np.abs(moves).max(1)
    if norm == "l2":
        unit = np.where(size > 0, size, 1.0)
        size = np.sqrt(np.square(moves / unit[:, None]).sum(1)) * size
    return size * (1.0 + 1e-14)


def wrong_rows(logits: Points, label: int) -> NDArray[np.bool_]:
    """Where the label's logit is not strictly the largest, or something is not finite."""
    others = np.delete(logits, label, axis=1).max(1)
    return ~((logits[:, label] > others) & np.isfinite(logits).all(1))


def nearest(
    deployed: OnnxRuntimeModel, x: Points, label: int, points: Points, norm: str
) -> tuple[float, Points] | None:
    """The nearest wrong point, sharpened by cutting the way to it; None where there is none."""
    found: tuple[float, Points] | None = None
    for _ in range(4):
        wrong = points[wrong_rows(deployed(points), label)]
        if not len(wrong):
            break
        distance = distances(wrong, x, norm)
        best = int(distance.argmin())
        if found is not None and distance[best] >= found[0]:
            break
        found = (float(distance[best]), wrong[best : best + 1])
        share = np.linspace(0.0, 1.0, 65).reshape(-1, *([1] * (x.ndim - 1)))
        way = x + share * (found[1].astype(np.float64) - x)
        points = np.ascontiguousarray(way.astype(np.float32))
    return found


@np.errstate(all="ignore")
def find_case(seed: int, *, dimension: int | None = None, newest: bool = False) -> Case | None:
    """The case of this seed, or None where the network gives no answer or no wrong input.

    newest: with norms, softmax or products of two activations in every network, exponentials or
    quotients in every third one, waves in every third one, and steps in every third one.
    """
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 4)) if dimension is None else dimension
    shapes: list[tuple[int, ...]] = [(size,), (size,), (1, 1, size), (size, 1, 1)]
    shape = shapes[int(random.integers(4))]
    pixels = bool(random.integers(4))
    x = clean_input(shape, random, pixels=pixels)
    tight = random.integers(3) == 0
    if tight:
        least = 0 if pixels else -8
        x = np.asarray(random.integers(least, 9, x.shape) * 2.0**-149, dtype=np.float32)
    points = denormal_grid(x) if tight else neighbours(x, random)
    if tight and pixels:
        points = points[(points.reshape(len(points), -1) >= 0).all(1)]
    body = Body(shape, np.ascontiguousarray(np.concatenate([x, points])), random)
    staged = tight or bool(random.integers(2))
    if tight:
        body.safe = True
        for _ in range(int(random.integers(1, 3))):
            body.join() if random.integers(4) == 0 else body.activation()
        if newest:
            body.group()
        body.enlarge()
    elif staged:
        body.small_then_large()
    if newest and not tight and random.integers(2):
        body.group()
    most = 2 if staged or newest else 5
    for _ in range(0 if tight else int(random.integers(not staged, most))):
        kind = random.integers(8)
        if kind <= 2:
            body.linear()
        elif kind == 3:
            body.elementwise()
        elif kind <= 5:
            body.activation()
        elif kind == 6:
            body.join()
        else:
            body.window()
    if newest and not any(isinstance(layer, GROUPED) for _, layer, _ in body.rows):
        body.group()
    steep = np.random.default_rng([seed, 1])
    if newest and steep.integers(3) == 0:
        body.steep(steep)
    waves = np.random.default_rng([seed, 2])
    if newest and waves.integers(3) == 0:
        body.wave(waves)
    jumps = np.random.default_rng([seed, 3])
    if newest and jumps.integers(3) == 0:
        body.jump(jumps)
    body.flatten()
    if tight:
        body.tight_head()
    else:
        body.head()
    network = Network(shape, body.rows).eval()
    if random.integers(6) == 0:
        # Every sum that can be is one of partial sums.
        network = in_parts(network)
    deployed = OnnxRuntimeModel(export_onnx(network), shape)
    logits = deployed(x)
    label = int(logits[0].argmax())
    if bool(wrong_rows(logits, label)[0]):
        return None
    wrong: dict[tuple[str, bool], tuple[float, Points]] = {}
    for clip in (False, True) if pixels else (False,):
        flat = points.reshape(len(points), -1)
        allowed = points[((flat >= 0) & (flat <= 1)).all(1)] if clip else points
        for norm in NORMS:
            found = nearest(deployed, x, label, allowed, norm)
            if found is not None:
                wrong[norm, clip] = found
    if not wrong:
        return None
    return Case(network, deployed, x, label, logits, wrong)
