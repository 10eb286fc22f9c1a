"""The two bounds: how far a ball grows (Lipschitz), how far a box does (IBP), roundings inside.

They hold for every float32 value z' that the deployed network may have at any input of the region:
|z' - c|_2 <= slope * epsilon + offset around the centre c computed here, or l <= z' <= u.
``spare``: how often a 2^-20th of what rounding may change is taken off once more. Claims are made
with 1 and held against 0 and 2, so that a machine that adds in another order confirms them: its own
roundings are less than a 2^9th of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from check.file import Array
from check.network import Affine, Network, Series
from check.norms import DOWN, ETA, UNDERFLOW, UP, ceiling, deployed, euclidean, own

SPARE, SPARE_RADIUS = 2.0**-20, 2.0**-30
#: A larger radius is of no use: no two float32 inputs are so far apart.
FARTHEST = 2.0**150

Labels = NDArray[np.int64]
Samples = NDArray[np.float32]


@dataclass
class Growth:
    """The ball before the head, for |x' - x|_2 <= epsilon <= cap; centre [n, features], offset, cap
    [n]. logits [n, classes] at the centre: the deployed head's are off by at most ``error``."""

    centre: Array
    slope: float
    offset: Array
    cap: Array
    logits: Array
    error: Array


def growth(network: Network, x: Samples) -> Growth:
    """The ball's growth around x [n, *in_shape]."""
    centre, slope = x.astype(np.float64), 1.0
    offset, cap = np.zeros(len(x)), np.full(len(x), np.inf)
    for _, layer in network.layers[:-1]:
        if isinstance(layer, Affine):
            size, mine = euclidean(centre), deployed(layer.terms) + own(layer.steps)
            # Partial sums are at most | |W| | |z'| + |b|, numbers inside gain |z'| + shift.
            most = ceiling(layer.terms)
            reach = (most - layer.bias_norm) / max(layer.absolute, ETA)
            if layer.gain:
                reach = min(reach, (most - layer.shift) / layer.gain)
            room = reach * DOWN - (size + offset) * UP
            cap = np.minimum(cap, np.where(room > 0, room, -np.inf) / slope * DOWN)
            factor = (layer.norm + deployed(layer.terms) * layer.absolute) * UP
            lost = UNDERFLOW * (layer.terms + 1) * math.sqrt(math.prod(layer.out_shape))
            lost = lost * layer.spread + mine * (layer.absolute * size + layer.bias_norm)
            offset = (offset * factor + lost) * UP
            slope = max(slope * factor * UP, ETA)
        centre = layer.apply(centre)
    head, centre = network.head, centre.reshape(len(x), -1)
    mine = deployed(head.terms) + own(head.steps)
    error = mine * (head.upper(np.abs(centre)) + head.magnitude) + UNDERFLOW * (head.terms + 1)
    return Growth(centre, slope, offset, cap, head.apply(centre), error * UP)


def ball_radius(network: Network, grown: Growth, labels: Labels, norm: str, spare: int) -> Array:
    """Radius [n] in ``norm`` within which no deployed input gets another answer; 0: none is proved.

    The label leads class j at the centre by a margin less both errors, and loses at most
    |w_y - w_j| + gamma (|w_y| + |w_j|) per unit by which the features move.
    """
    head, order = network.head, np.arange(len(labels))
    rows, least = euclidean(head.weight), np.full(len(labels), np.inf)
    for j in range(network.classes):
        slope = euclidean(head.weight - head.weight[j])[labels] * UP
        slope = (slope + deployed(head.terms) * (rows[labels] + rows[j])) * UP
        lost = (grown.error[order, labels] + grown.error[:, j]) * (1.0 + SPARE * spare) * UP
        room = grown.logits[order, labels] - grown.logits[:, j] - lost - network.lead
        room = np.where(room > 0, room * DOWN / np.maximum(slope, ETA), -np.inf)
        least = np.where(labels == j, least, np.minimum(least, room))
    most = (ceiling(head.terms) - head.largest_bias) / max(float(rows.max()), ETA) * DOWN
    least = np.minimum(least, most - euclidean(grown.centre))
    reach = least - grown.offset * (1.0 + SPARE * spare) * UP
    reach = np.minimum(np.minimum(reach / grown.slope, grown.cap), FARTHEST)
    if norm == "linf":
        reach = reach / math.sqrt(math.prod(network.in_shape))
    reach = reach * DOWN * (1.0 - SPARE_RADIUS * spare)
    # Comparisons with NaN are false: what is not a number proves nothing.
    sure = np.isfinite(grown.logits).all(1) & np.isfinite(grown.offset) & (reach > ETA)
    return np.where(sure, reach, 0.0)


def possible(network: Network, grown: Growth, prediction: Labels) -> NDArray[np.bool_]:
    """Whether the deployed network may have answered so (-1: not at all) at the sample itself, [n]:
    everything is where it may overflow, or no logit leads by more than both errors and a little."""
    error = (grown.error + grown.offset[:, None] * euclidean(network.head.weight)).max(1)
    second, first = np.sort(grown.logits, axis=1)[:, -2:].T
    sure = (first - second > 2.1 * error + network.lead) & (grown.cap > 0)
    return np.asarray((prediction == grown.logits.argmax(1)) | ~sure)


def interval_margin(
    network: Network, x: Samples, labels: Labels, epsilon: Fraction, clip: bool, spare: int
) -> Array:
    """Lower bound [n] on the label's lead over every other class, deployed, for all inputs whose
    numbers are within epsilon of x; 0 where nothing is proved."""
    if any(isinstance(layer, Series) for _, layer in network.layers):
        return np.zeros(len(x))
    reach, centre = math.nextafter(float(epsilon), math.inf), x.astype(np.float64)
    low, high = np.nextafter(centre - reach, -np.inf), np.nextafter(centre + reach, np.inf)
    if clip:
        low = np.maximum(low, np.minimum(centre, 0.0))
        high = np.minimum(high, np.maximum(centre, 1.0))
    valid = np.ones(len(x), dtype=bool)
    for _, layer in network.layers:
        if not isinstance(layer, Affine):
            low, high = layer.apply(low), layer.apply(high)
            continue
        middle = 0.5 * low + 0.5 * high
        half, size = np.maximum(high - middle, middle - low) * UP + ETA, np.abs(middle)
        largest, most = (size + half).reshape(len(x), -1).max(1) * UP, ceiling(layer.terms)
        valid &= (largest * layer.row_sum + layer.largest_bias) * UP < most
        valid &= (largest * layer.gain + layer.shift) * UP < most
        ours, theirs = own(layer.steps), deployed(layer.terms)
        lost = (ours + theirs) * layer.magnitude + UNDERFLOW * (layer.terms + 1)
        if layer is network.head:
            break
        moved = layer.upper((half * (1.0 + theirs) + (ours + theirs) * size) * UP) + lost
        middle, moved = layer.apply(middle), moved * UP
        low, high = np.nextafter(middle - moved, -np.inf), np.nextafter(middle + moved, np.inf)
    head, order = network.head, np.arange(len(x))
    lost, logits = (ours + theirs) * head.upper(size + half) + lost, head.apply(middle)
    half = half.reshape(len(x), -1)
    least = np.full(len(x), np.inf)
    for j in range(network.classes):
        moved = np.einsum("ij,ij->i", np.abs(head.weight[labels] - head.weight[j]), half)
        moved = moved * (UP + own(head.steps)) + lost[order, labels] + lost[:, j]
        margin = logits[order, labels] - logits[:, j] - moved * (UP + SPARE * spare) - network.lead
        least = np.where(labels == j, least, np.minimum(least, margin))
    sure = valid & np.isfinite(least) & (least > ETA)
    return np.where(sure, least * DOWN, 0.0)
