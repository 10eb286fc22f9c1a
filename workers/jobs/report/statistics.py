"""Figures over all samples: intervals, the radius summary and the curve. No NaN, no infinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from workers.jobs.report.verdicts import Verdicts

__all__ = ["accuracy_curve", "clopper_pearson", "radius_summary", "unbounded"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_GRID = 100


def clopper_pearson(successes: int, count: int, confidence: float = 0.95) -> list[float]:
    """The exact two-sided interval for a share (Clopper and Pearson, 1934).

    Its ends are quantiles of beta distributions. Not by ``scipy.stats``, which takes 0.7 s to
    import: every template would, and whoever waits for its worker.
    """
    tail, failures = (1 - confidence) / 2, count - successes
    low = float(betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
    return [low, high]


def unbounded(radius: NDArray[np.float64], cap: float, *, clip: bool) -> NDArray[np.bool_]:
    """Whether the radii [n] reach beyond every input; without clipping only infinity does."""
    return radius > cap if clip else np.isinf(radius)


def radius_summary(radius: NDArray[np.float64], cap: float, *, clip: bool) -> dict[str, Any]:
    """Mean, median and quantiles of the radii [n]; what is larger than ``cap`` counts as ``cap``.

    A wrong prediction has radius 0, so the mean is the average certified radius.
    """
    values = np.minimum(radius, cap)
    mean = float(values.mean())
    quantiles = {
        f"{share:.0%}": float(value)
        for share, value in zip(
            _QUANTILES,
            np.quantile(values, _QUANTILES),
            strict=True,
        )
    }
    return {
        "mean": mean,
        "median": quantiles["50%"],
        "quantiles": quantiles,
        "average_certified_radius": mean,
        "unbounded": int(unbounded(radius, cap, clip=clip).sum()),
        "cap": cap,
    }


def accuracy_curve(
    verdicts: Verdicts, epsilons: Sequence[float], cap: float, *, radius_known: bool
) -> dict[str, list[float]]:
    """Certified accuracy over epsilon: at the asked ones and, with radii, on a grid from 0.

    It never rises. At 0 it counts the samples with any proved radius.
    """
    points = {epsilon: _share(verdicts.certified[:, i]) for i, epsilon in enumerate(epsilons)}
    if radius_known:
        reach = max(float(np.minimum(verdicts.radius, cap).max()), min(max(epsilons), cap))
        for epsilon in np.linspace(0.0, reach * 1.02, _GRID + 1).tolist():
            proved = verdicts.radius >= epsilon if epsilon else verdicts.radius > 0
            points.setdefault(epsilon, _share(proved))
    grid = sorted(points)
    return {"epsilon": grid, "certified_accuracy": [points[epsilon] for epsilon in grid]}


def _share(flags: NDArray[np.bool_]) -> float:
    return int(flags.sum()) / len(flags)
