"""What ``certserve verify-report`` compares: rows with rows, totals with rows, files with the ids
that a service gives them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from service.cli.checks.verify_report import (
    dataset_id_of,
    disagreement,
    model_id_of,
    other_totals,
    reached,
)
from tests.models.onnx.external_data import good

ROW: dict[str, Any] = {
    "index": 3,
    "label": 1,
    "prediction": 1,
    "certified": [True, False],
    "falsified": [False, True],
    "radius": 0.5,
    "unbounded": False,
}
UNBOUNDED = {**ROW, "certified": [True, True], "falsified": [False] * 2, "radius": None}
UNBOUNDED["unbounded"] = True
REPORT: dict[str, Any] = {
    "dataset": {"samples": 2},
    "results": [
        {"epsilon": 0.1, "certified": 2, "falsified": 0},
        {"epsilon": 1.0, "certified": 1, "falsified": 1},
    ],
    "radius": {"mean": 1.25, "cap": 2.0},
}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"certified": [False, False]}, "certified"),
        ({"prediction": 2}, "prediction"),
        ({"label": 2}, "label"),
        ({"certified": [True, True], "falsified": [False, False]}, "falsified"),
    ],
)
def test_a_claim_that_does_not_hold_is_named(found: dict[str, Any], said: str) -> None:
    fault = disagreement(ROW, {**ROW, **found})
    assert fault is not None
    assert fault.startswith("row 3: ")
    assert said in fault


def test_a_sharper_verdict_is_no_disagreement() -> None:
    left_open = {**ROW, "falsified": [False, False]}
    for row in (ROW, left_open):
        assert disagreement(row, row) is None
    assert disagreement(left_open, {**ROW, "certified": [True, True]}) is None
    assert disagreement(left_open, ROW) is None
    assert disagreement(UNBOUNDED, UNBOUNDED) is None
    bounded = {**UNBOUNDED, "unbounded": False, "radius": 2.0}
    assert "some may" in str(disagreement(UNBOUNDED, bounded))


def test_a_radius_is_reached_but_for_its_last_bits() -> None:
    for found, enough in ((0.5, True), (0.5 - 2**-30, True), (0.49, False), (None, False)):
        assert reached(ROW, {**ROW, "radius": found}) is enough
    assert reached(ROW, UNBOUNDED)
    assert reached({**ROW, "radius": None}, {**ROW, "radius": 0.0})


def test_totals_are_those_of_the_rows() -> None:
    rows = [ROW, UNBOUNDED]
    assert other_totals(REPORT, rows) == []
    assert other_totals({**REPORT, "radius": None}, rows) == []
    changes: list[tuple[tuple[Any, ...], Any]] = [
        (("dataset", "samples"), 3),
        (("results", 1, "certified"), 2),
        (("results", 1, "falsified"), 0),
        (("radius", "mean"), 1.3),
    ]
    for path, value in changes:
        report = inner = copy.deepcopy(REPORT)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (fault,) = other_totals(report, rows)
        assert "rows" in fault


def test_files_have_the_ids_that_a_service_gives_them(api: httpx.Client, tmp_path: Path) -> None:
    """One file, an export of several, a data set and a pair of samples and labels."""
    one, several = tmp_path / "one.onnx", tmp_path / "several.onnx"
    one.write_bytes(good().SerializeToString())
    onnx.save_model(
        good(), str(several), save_as_external_data=True, location="several.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    for path, others in ((one, []), (several, [tmp_path / "several.onnx.data"])):
        files: list[Any] = [("model", (path.name, path.read_bytes()))]
        files += [("model_data", (other.name, other.read_bytes())) for other in others]
        assert model_id_of(path) == api.post("/models", files=files).json()["id"]
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, np.zeros((3, 4), np.float32))
    np.save(y, np.zeros(3, np.int64))
    pair = {"dataset": (x.name, x.read_bytes()), "dataset_labels": (y.name, y.read_bytes())}
    alone = {"dataset": pair["dataset"]}
    assert dataset_id_of(x, y) == api.post("/datasets", files=pair).json()["id"]
    assert dataset_id_of(x, None) == api.post("/datasets", files=alone).json()["id"]
