"""Whether the answers of a network say anything about the labels that were sent with the samples.

With labels that count from 1, in another order than the training's, or of other samples, with
turned samples, or features scaled twice or not at all, network and certificate are in order, but
the accuracy is a chance one. So a warning names a renumbering of the classes that the answers
follow, or says that they follow none. Both are tests with a bounded probability of a false alarm
(Chernoff's bound: Hoeffding 1963, Theorem 1), so that few samples give none.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from workers.verification.answers import NO_ANSWER, answers

__all__ = ["chance_doubt", "label_doubt"]

#: Natural logarithm of a probability of a false alarm, 1 in 1,000.
_ALARM = math.log(1000.0)
#: Share of the samples of the renumbered classes that must follow the renumbering.
_FOLLOWS = 0.8
#: Of the way from chance to perfect: what a useful network exceeds, and what counts as chance.
_USEFUL, _CHANCE = 0.25, 0.05
#: Classes whose renumbering a sentence lists.
_LISTED = 6
#: Largest mean, and distance of the standard deviation from 1, of features that look scaled.
_SCALED = 0.25


def label_doubt(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> str | None:
    """A sentence that names a renumbering of classes that the answers follow; None without one.

    logits [N, classes], labels [N]. Of the samples of the renumbered classes at least 80 % follow
    it; answers without any relation to the labels do so, for some renumbering of two classes or
    more, with a probability below 1 in 1,000.
    """
    found, classes = _answers(logits), logits.shape[1]
    moved = _renumbering(found, labels)
    if len(moved) < 2:
        return None
    rows = np.isin(labels, list(moved))
    follows = found[rows] == np.array([moved[label] for label in labels[rows].tolist()])
    count, share = int(rows.sum()), float(follows.mean())
    # classes ** (2 moved): which classes, and what each of them becomes.
    tries = 2.0 * len(moved) * math.log(classes)
    # Answers drawn without a look at the sample would follow it so often.
    drawn = sum(
        float((labels[rows] == label).mean()) * float((found[rows] == number).mean())
        for label, number in moved.items()
    )
    likely = max(drawn, 0.5)
    if share < max(_FOLLOWS, likely) or count * _divergence(share, likely) < _ALARM + tries:
        return None
    was = float((found == labels).mean())
    then = was + (int(follows.sum()) - int((found == labels)[rows].sum())) / len(labels)
    return (
        f"The labels look renumbered: {was:.1%} of {len(labels)} samples are classified as their "
        f"labels say; {then:.1%} would be {_how(moved, classes)}. What is certified is about the "
        "labels as they were sent: check their order and that they count from 0 as in training."
    )


def chance_doubt(
    logits: NDArray[np.float32], labels: NDArray[np.int64], x: NDArray[np.float32]
) -> str | None:
    """A sentence where the clean accuracy is no better than chance; None where it is, or too few
    samples are known to tell.

    logits [N, classes], labels [N], x [N, ...]. Chance: one in ``classes``, or the share of the
    most frequent label. A network of a quarter of the way from there to 1, which is right for half
    of each label's samples, gives this warning with a probability below 1 in 500. None as well
    where another measure sees that answers follow the labels, so that a detector of a rare class is
    not blamed for its false alarms: the mean of the accuracies of the classes, or the agreement
    beyond chance (Cohen 1960).
    """
    found, classes, count = _answers(logits), logits.shape[1], len(labels)
    if (found == NO_ANSWER).mean() > 0.5:
        return None
    numbers, counts = np.unique(labels, return_counts=True)
    most = float(counts.max()) / count if len(numbers) > 1 else 0.0
    chance = max(most, 1 / classes)
    right = float((found == labels).mean())
    useful, little = (chance + share * (1 - chance) for share in (_USEFUL, _CHANCE))
    if right >= useful:
        return None
    # One answer alone: half of another label's samples would be right in a useful network.
    same = bool((found == found[0]).all())
    evidence = count * _divergence(right, useful)
    if evidence < _ALARM and not (same and (count - right * count) * math.log(2.0) >= _ALARM):
        return None
    if right > little and count * _divergence(right, little) >= _ALARM:
        return None
    if _beyond_chance(found, labels, classes) >= _USEFUL:
        return None
    compared = (
        f"naming class {int(numbers[counts.argmax()])} always would be right for {most:.1%}"
        if most > 1 / classes
        else f"guessing would be right for {chance:.1%}"
    )
    one = f" Every answer is class {int(found[0])}." if same else ""
    return (
        f"The clean accuracy is {'hardly' if right > chance else 'no'} better than chance: "
        f"{right:.1%} of {count} samples in {classes} classes, where {compared}.{one} What is "
        "certified is the network on the samples and labels as they were sent: check the order of "
        "the labels, the layout of the samples (rows and columns, channels, the order of "
        "features), and whether inputs are scaled or normalized twice or not at all."
        + _looks_scaled(x)
    )


def _answers(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    return answers(torch.from_numpy(np.asarray(logits))).numpy()


def _renumbering(found: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[int, int]:
    """label -> the class that most of its samples get, where that is another one, and the most
    frequent one of no other label."""
    most: dict[int, tuple[int, int]] = {}
    for label in np.unique(labels).tolist():
        numbers, counts = np.unique(found[labels == label], return_counts=True)
        place = int(counts.argmax())
        if 2 * counts[place] > counts.sum() and numbers[place] != NO_ANSWER:
            most[label] = int(numbers[place]), int(counts[place])
    taken: dict[int, int] = {}
    for label, (number, _) in sorted(most.items(), key=lambda row: row[1][1]):
        if most.get(number, (None, 0))[0] == number and number != label:
            continue  # its own label keeps it
        taken[number] = label
    return {label: number for number, label in taken.items() if label != number}


def _how(moved: dict[int, int], classes: int) -> str:
    """The renumbering in words."""
    for step, words in ((1, "one more"), (-1, "one less")):
        if len(moved) > 2 and all(
            (label + step) % classes == number for label, number in moved.items()
        ):
            return f"if each label were {words}"
    pairs = [f"{label} were {number}" for label, number in sorted(moved.items())]
    more = ", and so on" if len(pairs) > _LISTED else ""
    return f"if label {', '.join(pairs[:_LISTED])}{more}"


def _beyond_chance(found: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> float:
    """The larger one of two measures, each 0 by chance and 1 where all answers are right: the mean
    accuracy of the classes, and Cohen's kappa."""
    numbers, counts = np.unique(labels, return_counts=True)
    right = found == labels
    parts = max(len(numbers), 2) if len(numbers) > 1 else classes
    mean = float(np.mean([right[labels == number].mean() for number in numbers]))
    given = np.array([(found == number).mean() for number in numbers])
    expected = float((counts / len(labels) * given).sum())
    kappa = (float(right.mean()) - expected) / (1 - expected) if expected < 1.0 else 0.0
    kappa = kappa if len(numbers) > 1 else 0.0
    return max((mean - 1 / parts) / (1 - 1 / parts), kappa)


def _looks_scaled(x: NDArray[np.float32]) -> str:
    """A sentence where features [N, features] have mean 0 and standard deviation 1 each."""
    if x.ndim != 2:
        return ""
    values = x.astype(np.float64)
    varied = values[:, values.std(0) > 0.0]
    if not varied.shape[1]:
        return ""
    off = np.concatenate([np.abs(varied.mean(0)), np.abs(varied.std(0) - 1.0)])
    if float(np.median(off)) > _SCALED:
        return ""
    return (
        " The features of x have means near 0 and standard deviations near 1: where the file "
        "itself scales its inputs (a scikit-learn pipeline), send them unscaled."
    )


def _divergence(share: float, probability: float) -> float:
    """Kullback-Leibler divergence of two coins: n of it is the least -log P that a share of n tries
    on this side of the probability is as far off."""
    terms = ((share, probability), (1.0 - share, 1.0 - probability))
    return sum(a * math.log(a / b) if b > 0.0 else math.inf for a, b in terms if a > 0.0)
