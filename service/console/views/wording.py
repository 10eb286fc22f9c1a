"""Figures and names as pages write them; the filters of the templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from service.contract.sweeps import value_text
from service.reports.axes import interval, percent, percent_at_most, radius_text
from service.reports.epsilon_names import epsilon_name

__all__ = ["FILTERS", "VERDICTS", "count_text", "title_of"]

#: What decided a sample, where it was no bound.
VERDICTS: Mapping[str, str] = {
    "attack": "falsified by the attack",
    "misclassified": "misclassified",
    "undecided": "undecided",
}


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def count_text(value: int | None) -> str:
    """A number of things, with its thousands apart."""
    return "–" if value is None else f"{value:,}".replace(",", " ")


def _moment(text: str | None) -> str:
    return "–" if text is None else f"{text[:10]} {text[11:19]} UTC"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _decided(name: str) -> str:
    return VERDICTS.get(name, name)


def _in_url(value: object) -> str:
    return quote(str(value), safe="")


def title_of(submission: Any) -> str:
    """What a job is about, in a line: the model on the data, or the training."""
    if submission.training is not None:
        data = submission.training_dataset.name if submission.training_dataset else "data"
        return f"{submission.training['method']} training on {data}"
    model = submission.model.name if submission.model else "model"
    return f"{model} on {submission.dataset.name if submission.dataset else 'data'}"


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "percent_at_most": percent_at_most,
    "radius": radius_text,
    "interval": interval,
    "value": _value,
    "count": count_text,
    "moment": _moment,
    "duration": _duration,
    "size": _size,
    "decided": _decided,
    "in_url": _in_url,
    "epsilon": epsilon_name,
    "swept": value_text,
}
