"""The inputs on which the deployed file is compared with what is certified, beside the samples.

A graph that differs from the file need not differ on the samples: it may in a batch of several
rows, at the edge of the pixel range, at denormal numbers, or where one pixel has an unusual value.
Everything is drawn from one seed, so that the same job compares the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from workers.verification.input_range import Clip, range_of
from workers.verification.rounding import FLOAT32_MAX

__all__ = ["BATCH_SIZES", "Inputs", "batches", "coordinate_changes", "random_inputs"]

#: Rows that are run together. 1, 2 and numbers that no power of two divides.
BATCH_SIZES = (1, 2, 3, 7)

#: Without a range: this many times as far out (or in) as the data, in powers of 10.
DECADES = (-3.0, 3.0)
#: Magnitudes of tiny values, in powers of 2: down to the least denormal float32.
TINY = (-149.0, -20.0)
#: Near the edges: closer than this share of the range, in powers of 2.
NEAR = (-24.0, -4.0)

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Inputs:
    """x [N, *shape] float32, and for each row what it is, as an error message names it."""

    x: Samples
    names: list[str]


@dataclass(frozen=True)
class _Domain:
    """Where inputs lie: ``samples`` [N, *shape]; coordinates from ``low`` to ``high``, each
    one number or [*shape]; ``clip``: never beyond."""

    samples: Samples
    low: float | NDArray[np.float64]
    high: float | NDArray[np.float64]
    clip: bool

    @classmethod
    def of(cls, samples: Samples, *, clip: Clip) -> _Domain:
        limits = range_of(clip)
        if limits is None:
            low, high = float(samples.min()), float(samples.max())
            return cls(samples, low, high if high > low else low + 1.0, False)
        if len(limits.low) == len(limits.high) == 1:
            return cls(samples, limits.low[0], limits.high[0], True)
        ends = limits.ends(torch.from_numpy(samples[:1]))
        below, above = (np.broadcast_to(end.double().numpy(), samples.shape[1:]) for end in ends)
        return cls(samples, below, above, True)

    def at(self, place: int) -> tuple[float, float]:
        """(low, high) of one coordinate, by its place in the flattened input."""
        low, high = (
            float(end if isinstance(end, float) else end.reshape(-1)[place])
            for end in (self.low, self.high)
        )
        return low, high

    def float32(self, x: NDArray[np.float64]) -> Samples:
        low, high = (self.low, self.high) if self.clip else (-FLOAT32_MAX, FLOAT32_MAX)
        return np.clip(x, low, high).astype(np.float32)

    def sample(self, rng: np.random.Generator) -> NDArray[np.float64]:
        return self.samples[rng.integers(len(self.samples))].astype(np.float64)

    def corner(self, rng: np.random.Generator) -> NDArray[np.float64]:
        return np.where(rng.random(self.samples.shape[1:]) < 0.5, self.low, self.high)


def _uniform(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(rng.uniform(domain.low, domain.high, domain.samples.shape[1:]))


def _corners(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    return domain.corner(rng)


def _edges(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    """Every coordinate next to one end of the range, from inside (without ``clip`` both sides)."""
    corner = domain.corner(rng)
    depth = rng.random(corner.shape) * 2.0 ** rng.uniform(*NEAR) * (domain.high - domain.low)
    inwards = np.where(corner == domain.low, 1.0, -1.0)
    if not domain.clip:
        inwards = inwards * rng.choice([-1.0, 1.0], corner.shape)
    return corner + inwards * depth


def _constant(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    values = (domain.low, domain.high, 0.0, 1.0, rng.uniform(domain.low, domain.high))
    value = np.asarray(values[int(rng.integers(len(values)))], dtype=np.float64)
    return np.broadcast_to(value, domain.samples.shape[1:])


def _tiny(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    """Magnitudes down to the denormal range: one for all coordinates, or one for each."""
    shape = domain.samples.shape[1:]
    exponent = rng.uniform(*TINY, shape if rng.integers(2) else None)
    positive = domain.clip and bool(np.min(domain.low) >= 0.0)
    sign = 1.0 if positive else rng.choice([-1.0, 1.0], shape)
    return np.asarray(sign * 2.0**exponent * rng.uniform(0.5, 1.0, shape))


def _sparse(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    """A sample with a random share of its coordinates at the ends of the range."""
    x = domain.sample(rng)
    return np.where(rng.random(x.shape) < 2.0 ** rng.uniform(-6, -1), domain.corner(rng), x)


def _between(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    """Between two samples, with noise of some scale."""
    share = rng.random()
    x = share * domain.sample(rng) + (1.0 - share) * domain.sample(rng)
    noise = 10.0 ** rng.uniform(-6, -1) * (domain.high - domain.low)
    return np.asarray(x + noise * rng.standard_normal(x.shape))


def _scaled(domain: _Domain, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise of any scale, up to far beyond the data where nothing clips it."""
    scale = 10.0 ** rng.uniform(*DECADES)
    shape = domain.samples.shape[1:]
    if domain.clip:
        share = rng.random(shape) * min(scale, 1.0)
        return np.asarray(domain.low + share * (domain.high - domain.low))
    largest = np.maximum(np.abs(domain.low), np.abs(domain.high))
    return np.asarray(scale * largest * rng.standard_normal(shape))


#: name -> one input. They take turns, so that any number of rows holds some of each.
RANDOM: dict[str, Callable[[_Domain, np.random.Generator], NDArray[np.float64]]] = {
    "uniform": _uniform,
    "corner": _corners,
    "near the edges": _edges,
    "constant": _constant,
    "tiny": _tiny,
    "sample with many coordinates changed": _sparse,
    "between samples": _between,
    "scaled noise": _scaled,
}


def random_inputs(samples: Samples, count: int, rng: np.random.Generator, *, clip: Clip) -> Inputs:
    """``count`` inputs of several scales over the whole range ``clip``; without one over the
    data's own and far beyond."""
    domain = _Domain.of(samples, clip=clip)
    kinds = list(RANDOM)
    drawn = [kinds[number % len(kinds)] for number in range(count)]
    rows = [domain.float32(RANDOM[kind](domain, rng)) for kind in drawn]
    names = [f"random input {number} ({kind})" for number, kind in enumerate(drawn)]
    return Inputs(np.stack(rows), names)


def coordinate_changes(
    samples: Samples, count: int, rng: np.random.Generator, *, clip: Clip
) -> Inputs:
    """``count`` samples with one coordinate changed: coordinates and samples in turn, each in an
    order of its own. A coordinate goes to the farther end of the range when it first comes, to the
    nearer one the second time, then anywhere; without ``clip`` every third one far out or in."""
    domain = _Domain.of(samples, clip=clip)
    size = int(np.prod(samples.shape[1:]))
    places = _in_turn(size, count, rng)
    sources = _in_turn(len(samples), count, rng)
    rows = samples[sources].copy()
    flat = rows.reshape(count, -1)
    names = []
    for number, (place, source) in enumerate(zip(places, sources, strict=True)):
        before, (low, high) = float(flat[number, place]), domain.at(place)
        middle, span = (low + high) / 2.0, high - low
        far, near = (high, low) if before < middle else (low, high)
        value = (far, near, rng.uniform(low, high))[min(number // size, 2)]
        if not clip and number % 3 == 2:
            value = middle + span * 10.0 ** rng.uniform(*DECADES) * rng.choice([-1.0, 1.0])
        if np.float32(np.clip(value, -FLOAT32_MAX, FLOAT32_MAX)) == np.float32(before):
            value = far
        flat[number, place] = np.clip(value, -FLOAT32_MAX, FLOAT32_MAX)
        names.append(f"sample {source} with coordinate {place} set to {float(value):.6g}")
    return Inputs(rows, names)


def _in_turn(size: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` numbers below ``size``: all of them before any comes again."""
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate(rounds)[:count].astype(np.int64)


def batches(
    samples: Samples,
    rng: np.random.Generator,
    *,
    clip: Clip,
    sizes: tuple[int, ...] = BATCH_SIZES,
) -> list[Inputs]:
    """Two batches of every size, their rows all different: samples among random inputs, and random
    inputs alone."""
    drawn = random_inputs(samples, 2 * sum(sizes), rng, clip=clip)
    pool = iter(zip(drawn.x, drawn.names, strict=True))
    made = []
    for size in sizes:
        for mixed in (True, False):
            rows = [next(pool) for _ in range(size)]
            if mixed:
                # One sample per two rows, none twice.
                chosen = rng.permutation(len(samples))[: -(-size // 2)]
                for position, source in zip(range(0, size, 2), chosen, strict=False):
                    rows[position] = (samples[source], f"sample {source}")
            made.append(Inputs(np.stack([row for row, _ in rows]), [name for _, name in rows]))
    return made
