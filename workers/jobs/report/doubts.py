"""Sentences for the report where data are read as sent but look like a mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.jobs.datasets.arrays import DataSet
from workers.jobs.inspection.valid_inputs import ValidInputs

__all__ = ["data_doubts"]


def data_doubts(
    data: DataSet, x: NDArray[np.float32], classes: int, inputs: ValidInputs
) -> list[str]:
    """Warnings about the data as stored, and about x [N, ...] as the network gets it.

    ``classes``: the network's;
    ``inputs``: which are valid. Data that look as intended give no warning.
    """
    said = list(data.warnings)
    folders = data.classes
    if folders is not None and len(folders) != classes:
        said.append(
            f"The data set has {len(folders)} class folders, the network {classes} classes: check "
            "in dataset.classes that the labels are the network's (folders named by numbers keep "
            "their number)."
        )
    if data.one_hot is not None and data.one_hot != classes:
        said.append(
            f"The labels are one-hot rows of {data.one_hot} classes, the network has {classes}: "
            "check that they are numbered as the network's classes."
        )
    doubt = None if inputs.numbers else _units(data.x, x)
    if doubt is not None:
        said.append(doubt)
    return said


def _units(stored: NDArray[Any], x: NDArray[np.float32]) -> str | None:
    low, high = float(x.min()), float(x.max())
    if low == high:
        return f"Every pixel of every sample has the same value, {high:g}."
    if stored.dtype == np.uint8:
        if int(stored.max()) == 1:
            return (
                "x is uint8 and holds 0 and 1 alone, which are read as 0 and 1/255: were floats in "
                "[0, 1] rounded to bytes? Store them as floats."
            )
        return None
    if low >= 0.0 and 0.0 < high <= 1 / 255:
        return f"The largest value of x is {high:g}: were the pixels divided by 255 twice?"
    whole = bool((x == np.floor(x)).all())
    if low >= 0.0 and 2.0 < high <= 255.0 and (whole or (x.ndim > 2 and high > 100.0)):
        return (
            f"x holds floats up to {high:g}, like pixels in [0, 255]: epsilons are in the same "
            "units. Divide by 255, or store bytes as uint8, for epsilons in [0, 1]; or say that "
            'this is meant: "input_range": [0, 255].'
        )
    return None
