"""What pages compute: charts on the safe side of the report, tables that lose no row."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.console.views.figures import accuracy_chart, history_charts
from service.console.views.form_fields import certify_fields, train_fields
from service.console.views.sample_table import ORDERS, VERDICTS, SampleTable, Wish, sample_table
from service.contract.schemas.submissions import Spec
from service.contract.schemas.training_plans import TrainSpec
from service.contract.storage.pictures import pack_pictures, read_picture
from tests.report_cases import cases, finished
from tests.service.console.conftest import PNG, sample_rows

Case = tuple[Any, dict[str, Any], Any]


@given(cases())
@settings(max_examples=25, deadline=None)
def test_charts_never_say_more_than_the_report(case: Case) -> None:
    report, _ = finished(case)
    chart = accuracy_chart(report)
    figures = report["curve"]["epsilon"], report["curve"]["certified_accuracy"]
    curve = sorted(zip(*figures, strict=True))
    points = [point[0] for point in curve]
    assert chart["x"] == sorted({*chart["x"]})
    for place, x in enumerate(chart["x"]):
        shown = chart["certified"][place]
        after = bisect_left(points, x)
        assert shown == (curve[after][1] if after < len(curve) else None)
        if shown is not None:
            assert 0 <= chart["low"][place] <= shown <= chart["high"][place] <= 1
        if chart["attacked"] is not None and shown is not None:
            attacked = chart["attacked"][place]
            assert attacked is None or shown <= attacked + 1e-12
    json.dumps(chart, allow_nan=False)


rows_of_tables = st.lists(
    st.fixed_dictionaries(
        {
            "index": st.integers(0, 10**6),
            "label": st.none() | st.integers(0, 3),
            "prediction": st.integers(-1, 3),
            "margin": st.none() | st.floats(-5, 5),
            "radius": st.none() | st.floats(0, 5),
            "unbounded": st.booleans(),
            "method": st.sampled_from(["a", "b"]),
            "certified": st.lists(st.booleans(), min_size=1, max_size=1),
            "falsified": st.lists(st.booleans(), min_size=1, max_size=1),
        }
    ),
    min_size=1,
    max_size=12,
)


@given(rows_of_tables, st.sampled_from(ORDERS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_filters_share_the_rows_out_and_orders_only_move_them(
    rows: list[dict[str, Any]], order: str, down: bool
) -> None:
    table = SampleTable(rows)
    everything = list(range(len(rows)))
    parts = [table.chosen(Wish(verdict=v, order=order, descending=down)) for v in VERDICTS]
    assert sorted(np.concatenate(parts).tolist()) == everything
    chosen = table.chosen(Wish(order=order, descending=down))
    assert sorted(chosen.tolist()) == everything
    values = getattr(table, order)[chosen].astype(float)
    known = values[~np.isnan(values)]
    assert np.isnan(values[len(known) :]).all(), "what is not known comes last"
    assert (np.diff(known[np.isfinite(known)]) * (-1 if down else 1) >= 0).all()


def test_a_table_is_read_once_and_one_that_is_too_long_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sample_rows(20)))
    table = sample_table(path)
    assert table is not None
    assert sample_table(path) is table
    wrong = [row for row in sample_rows(20) if row["label"] != row["prediction"]]
    assert len(table.chosen(Wish(verdict="misclassified"))) == len(wrong)
    monkeypatch.setattr("service.console.views.sample_table._MOST_BYTES", 10)
    assert sample_table(path) is None


@given(
    st.dictionaries(st.integers(0, 2**62), st.binary(max_size=40), max_size=6),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_pictures_come_back_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory,
    pictures: dict[int, bytes],
    damage: list[tuple[float, int]],
    cut: float,
) -> None:
    path = tmp_path_factory.mktemp("pictures") / "thumbnails.bin"
    stored = {number: PNG + more for number, more in pictures.items()}
    packed = pack_pictures(stored.items())
    path.write_bytes(packed)
    for number, png in stored.items():
        assert read_picture(path, number) == png
    assert read_picture(path, 2**62 + 1) is None
    broken = bytearray(packed[: int(cut * len(packed))])
    for place, value in damage:
        if broken:
            broken[int(place * (len(broken) - 1))] = value
    path.write_bytes(broken)
    for number in (*stored, 0, 5):
        found = read_picture(path, number)
        assert found is None or found.startswith(b"\x89PNG")


def test_the_forms_have_every_field_of_the_api() -> None:
    elsewhere = {"dataset", "force", "webhook"}
    for fields, model in ((certify_fields(), Spec), (train_fields(), TrainSpec)):
        names = {field.name.partition(".")[0] for field in fields}
        assert names == set(model.model_fields) - (elsewhere if model is TrainSpec else set())
        assert all(field.help for field in fields)


def test_a_curve_of_one_epoch_is_a_curve() -> None:
    plan = {"hyperparameters": {"epochs": 5}}
    assert history_charts(plan, []) == []
    rows = [{"epoch": 1, "loss": 2.0, "accuracy": 0.5, "robust": 0.1}]
    accuracy, loss = history_charts(plan, rows)
    assert accuracy["x"] == loss["x"] == [1]
    assert len(accuracy["lines"]) == 2
