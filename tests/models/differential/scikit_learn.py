"""What converters of scikit-learn write: features scaled and chosen, linear scores, their ends."""

from __future__ import annotations

import math

import numpy as np

from tests.models.differential.builder import Builder, Shape

__all__ = ["chosen_features", "linear_scores", "normalized_features", "scaled_features"]

DOMAIN = "ai.onnx.ml"


def _features(b: Builder, x: str, shape: Shape) -> tuple[str, int]:
    if len(shape) == 1:
        return x, shape[0]
    return b.node("Flatten", [x], axis=1), math.prod(shape)


def scaled_features(b: Builder, x: str, shape: Shape) -> str:
    """Scaler: one offset and scale per feature, or for all."""
    x, size = _features(b, x, shape)
    count = b.pick([1, size])
    offset, scale = (b.normal(count).tolist() for _ in range(2))
    return b.node("Scaler", [x], domain=DOMAIN, offset=offset, scale=scale)


def chosen_features(b: Builder, x: str, shape: Shape) -> str:
    """ArrayFeatureExtractor: some places of the features."""
    x, size = _features(b, x, shape)
    places = [int(place) for place in b.rng.permutation(size)[: b.number(1, size)]]
    return b.node(
        "ArrayFeatureExtractor", [x, b.constant(np.array(places, np.int64))], domain=DOMAIN
    )


def normalized_features(b: Builder, x: str, shape: Shape) -> str:
    """Normalizer inside the network."""
    x, _ = _features(b, x, shape)
    norms = ["L1", "L2", "MAX"] if b.chance(0.1) else ["L1", "L2"]
    x = b.node("Normalizer", [x], domain=DOMAIN, norm=b.pick(norms))
    return b.node("LeakyRelu", [x], alpha=0.5)


def linear_scores(b: Builder, x: str, size: int) -> str:
    """LinearClassifier on features, its probabilities, and the list of maps at the end."""
    classes = b.number(2, 4)
    transform = b.pick(["NONE", "SOFTMAX", "SOFTMAX", "LOGISTIC"])
    weights, intercepts = b.normal(classes, size), b.normal(classes)
    if transform == "LOGISTIC":
        classes = 2
        weights, intercepts = np.stack([-weights[0], weights[0]]), intercepts[:1] * [-1, 1]
    b.node(
        "LinearClassifier",
        [x],
        2,
        domain=DOMAIN,
        coefficients=[float(number) for number in weights.reshape(-1)],
        intercepts=[float(number) for number in intercepts],
        classlabels_ints=list(range(classes)),
        post_transform=transform,
    )
    scores = str(b.nodes[-1].output[1])
    if transform != "NONE" and b.chance(0.7):
        scores = b.node("Normalizer", [scores], domain=DOMAIN, norm="L1")
    if b.chance(0.5):
        scores = b.node("ZipMap", [scores], domain=DOMAIN, classlabels_int64s=list(range(classes)))
    return scores
