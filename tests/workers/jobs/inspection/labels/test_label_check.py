"""Labels that the answers do not follow are told, with what to check; others raise no alarm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression

from workers.jobs.inspection.label_check import chance_doubt, label_doubt
from workers.jobs.inspection.normalization_check import normalization_doubt

#: Answers to as many inputs without meaning.
NO_X = np.zeros((1, 1, 2, 2), np.float32)


def one_hot(answers: Any, classes: int) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[np.asarray(answers)]


class Linear:
    """A logistic regression as a network: x [N, features] -> logits [N, classes]."""

    def __init__(self, x: Any, y: Any) -> None:
        self.fitted = LogisticRegression(max_iter=2000).fit(x, y)
        self.classes = len(np.unique(y))

    def __call__(self, x: Any) -> NDArray[np.float32]:
        scores = self.fitted.decision_function(np.asarray(x, np.float64))
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], 1)
        return scores.astype(np.float32)


@pytest.fixture(scope="module")
def digits() -> tuple[Linear, NDArray[np.float32], NDArray[np.int64]]:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return Linear(x[:1000], y[:1000]), x[1000:1200], y[1000:1200]


@pytest.fixture(scope="module")
def table() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, y = load_breast_cancer(return_X_y=True)
    return x.astype(np.float32), y


def test_labels_that_count_from_another_number_are_named(digits: Any) -> None:
    net, x, y = digits
    assert label_doubt(net(x), y) is None
    assert chance_doubt(net(x), y, x) is None
    for step, words in ((1, "each label were one less"), (-1, "each label were one more")):
        said = label_doubt(net(x), (y + step) % 10)
        assert said is not None
        assert words in said


def test_exchanged_and_permuted_classes_are_named(digits: Any) -> None:
    net, x, y = digits
    other = np.arange(10)
    other[[3, 5]] = 5, 3
    said = label_doubt(net(x), other[y])
    assert said is not None
    assert "if label 3 were 5, 5 were 3." in said
    said = label_doubt(net(x), np.random.default_rng(0).permutation(10)[y])
    assert said is not None
    assert "and so on" in said


def test_two_classes_the_wrong_way_round_are_named(table: Any) -> None:
    x, y = table
    x = (x - x.mean(0)) / x.std(0)
    said = label_doubt(Linear(x, y)(x), 1 - y)
    assert said is not None
    assert "if label 0 were 1, 1 were 0." in said


def test_labels_of_other_samples_are_at_chance(digits: Any) -> None:
    net, x, y = digits
    shuffled = np.random.default_rng(1).permutation(y)
    assert label_doubt(net(x), shuffled) is None
    said = chance_doubt(net(x), shuffled, x)
    assert said is not None
    assert "better than chance" in said
    assert "order of the labels" in said


def test_turned_and_inverted_images_are_named(digits: Any) -> None:
    net, x, y = digits
    turned = x.reshape(-1, 8, 8).swapaxes(1, 2).reshape(x.shape)
    for shown, word in ((turned, "rows and columns exchanged"), (1 - x, "1 - x in the place")):
        assert chance_doubt(net(shown), y, shown) is not None
        said = normalization_doubt(net, shown, y, net(shown), None)
        assert said is not None
        assert word in said

    def image(pixels: Any) -> NDArray[np.float32]:
        return net(np.asarray(pixels).reshape(len(pixels), -1))

    for shape in ((1, 8, 8), (8, 8, 1)):
        images = turned.reshape(-1, *shape)
        said = normalization_doubt(image, images, y, image(images), None)
        assert said is not None
        assert "turned" in said
        upright = x.reshape(-1, *shape)
        assert normalization_doubt(image, upright, y, image(upright), None) is None


def test_features_without_their_scaler_are_named_in_words_of_features(table: Any) -> None:
    x, y = table
    scaled = (x - x.mean(0)) / x.std(0)
    net = Linear(scaled, y)
    assert chance_doubt(net(x), y, x) is not None
    said = normalization_doubt(net, x, y, net(x), None)
    assert said is not None
    assert "scaling of the features" in said
    assert "StandardScaler" in said
    assert "pixel" not in said
    assert normalization_doubt(net, scaled, y, net(scaled), None) is None


def test_features_scaled_twice_are_at_chance_and_look_scaled(table: Any) -> None:
    x, y = table
    mean, std = x.mean(0), x.std(0)
    inside = Linear((x - mean) / std, y)
    scaled = ((x - mean) / std).astype(np.float32)
    said = chance_doubt(inside((scaled - mean) / std), y, scaled)
    assert said is not None
    assert "send them unscaled" in said


def test_one_answer_for_all_of_two_uneven_classes_is_chance() -> None:
    labels = np.repeat([0, 1], [150, 50])
    said = chance_doubt(one_hot(np.zeros(200, int), 2), labels, NO_X)
    assert said is not None
    assert "naming class 0 always would be right for 75.0%" in said
    assert "Every answer is class 0." in said
    assert label_doubt(one_hot(np.zeros(200, int), 2), labels) is None
    # Labels that never are the one answer are no renumbering.
    assert label_doubt(one_hot(np.zeros(200, int), 3), labels + 1) is None


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_few_samples_give_no_alarm(count: int) -> None:
    labels = np.arange(count) % 10
    logits = one_hot((labels + 1) % 10, 10)
    assert chance_doubt(logits, labels, NO_X) is None
    assert label_doubt(logits, labels) is None


def test_useful_networks_and_unrelated_answers_hardly_ever_give_an_alarm() -> None:
    """Of 2,000 networks of half the way from chance to 1 two may be blamed; a renumbering of
    answers by chance is found as rarely."""
    rng = np.random.default_rng(0)
    blamed = renumbered = 0
    for _ in range(2000):
        classes, count = int(rng.integers(2, 11)), int(rng.integers(3, 300))
        weights = rng.dirichlet(np.ones(classes))
        labels = rng.choice(classes, count, p=weights)
        chance = max(np.bincount(labels).max() / count, 1 / classes)
        right = rng.random(count) < chance + (1 - chance) / 2
        wrong = (labels + rng.integers(1, classes, count)) % classes
        logits = one_hot(np.where(right, labels, wrong), classes)
        blamed += chance_doubt(logits, labels, NO_X) is not None
        drawn = rng.choice(classes, count, p=rng.dirichlet(np.ones(classes)))
        renumbered += label_doubt(one_hot(drawn, classes), labels) is not None
    assert blamed <= 2
    assert renumbered <= 2


def test_a_detector_of_a_rare_class_is_not_blamed() -> None:
    """It is right more seldom than the frequent class alone, and finds nearly all of the others."""
    labels = np.repeat([0, 1], [9900, 100])
    answers = labels.copy()
    answers[:900] = 1
    answers[-8:] = 0
    assert (answers == labels).mean() < 0.95
    assert chance_doubt(one_hot(answers, 2), labels, NO_X) is None


def test_a_sorted_part_of_the_classes_is_not_blamed() -> None:
    """Of ten classes two are among the samples, of which half are right."""
    labels = np.repeat([0, 1], 500)
    answers = np.where(np.arange(1000) % 2 == 0, labels, 2 + np.arange(1000) % 8)
    assert chance_doubt(one_hot(answers, 10), labels, NO_X) is None
