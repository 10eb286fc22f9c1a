"""The runs of ``benchmarks.gpu`` in small: each plan is a run, and one for two devices is trained
by two processes, in several calls, to its row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import plans, train
from models.architectures.published import blueprint
from workers.jobs.items.training_run import config_of

pytestmark = pytest.mark.slow

#: Of the LipConvnet's plan: as many layers as the smallest one has, 2 channels to begin with.
NARROW = {"depth": 5, "width": 2, "hidden": 16}
SHORT = {"epochs": 2, "batch_size": 8, "validation_samples": 4}


def called(module: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> Any:
    """What the program answers."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    return module.main()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Every row by its name."""
    called(plans, monkeypatch, tmp_path / "plans", "--devices", 2)
    rows = [json.loads(path.read_text()) for path in (tmp_path / "plans").iterdir()]
    return {row["name"]: row for row in rows}


def test_every_plan_is_a_run(written: dict[str, dict[str, Any]]) -> None:
    names = [name for name, _, _ in plans.ROWS]
    assert set(written) == {*names, *(f"{name}-on-2" for name in plans.SHARED)}
    for name, row in written.items():
        run = config_of(row["plan"])
        assert run.devices == (2 if name.endswith("-on-2") else 1)
        skeleton = blueprint(run.architecture, activation=run.activation).skeleton
        assert skeleton.classes == (200 if row["dataset"] == "tiny-imagenet" else 10)


def test_a_plan_for_two_devices_ends_in_its_row_after_several_calls(
    written: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 28), ("test", 6)):
        y = np.arange(count) % 10
        x = random.integers(0, 200, (count, 32, 32, 3), dtype=np.uint8)
        x[np.arange(count), 3 * y] = 255
        np.savez(tmp_path / f"cifar10_{split}.npz", x=x, y=y)
    row = written["8-cifar-lipconvnet-15-crc-on-2"]
    row["plan"]["architecture"] |= NARROW
    row["plan"]["hyperparameters"] |= SHORT
    plan = tmp_path / "narrow.json"
    plan.write_text(json.dumps(row))

    def answer(minutes: float, out: str, *more: object) -> int:
        words = (plan, "--data", tmp_path, "--out", tmp_path / out, "--minutes", minutes)
        status: int = called(train, monkeypatch, *words, "--method", "crc", *more)
        return status

    folder = tmp_path / "two" / row["name"]
    assert answer(0.0, "two") == train.AGAIN
    assert (folder / train.CHECKPOINT).exists()
    assert not (folder / "trained.json").exists()
    assert answer(10.0, "two", "--test-samples", 4) == 0
    assert json.loads((folder / "result.json").read_text())["samples"] == 4
    # What a trial has verified is no part of the row, and no other run takes its network.
    assert answer(10.0, "two") == 0
    with pytest.raises(SystemExit, match="another run"):
        answer(10.0, "two", "--epochs", 1)
    # Once more, by one process, of which nothing is left here.
    assert answer(10.0, "one", "--devices", 1) == 0
    both = [tmp_path / out / row["name"] for out in ("two", "one")]
    two, one = (json.loads((path / "result.json").read_text()) for path in both)
    assert (two["devices"], one["devices"]) == (2, 1)
    assert two["epochs"] == SHORT["epochs"]
    assert two["verified"] <= two["pgd100"] <= two["standard"]
    assert two["samples"] == 6
    curves = [json.loads((path / "trained.json").read_text())["history"] for path in both]
    for ours, theirs in zip(*curves, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert not list(folder.glob("ranks-*"))
