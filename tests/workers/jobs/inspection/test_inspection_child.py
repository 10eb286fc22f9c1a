"""What the inspection's child says of odd and of hostile graphs, and of its own death."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from service.contract.schemas.problems import InvalidInput
from tests.models.onnx.graphs import flattened, normal
from workers.jobs.inspection.sandbox import ChildEnded, ChildLimits, run_child
from workers.jobs.items.prepare import _raise_problem

pytestmark = pytest.mark.usefixtures("forked_inspections")

node = helper.make_node
FLIP = {"c": normal(0, 4), "start": np.array([-1]), "end": np.array([-(2**63)]),
        "axis": np.array([0]), "step": np.array([-1])}  # fmt: skip


def inspected(
    folder: Path, nodes: list[NodeProto], constants: dict[str, Any], **options: Any
) -> tuple[ChildEnded, dict[str, Any]]:
    """How the child ended, and the facts or the problem that it left."""
    model, data = folder / "model.onnx", folder / "data.npz"
    model.write_bytes(flattened(nodes, (4,), constants, **options))
    x = np.random.default_rng(0).random((5, 4), np.float32)
    np.savez(data, x=x, y=np.zeros(5, np.int64))
    (folder / "child").mkdir(exist_ok=True)
    request = {
        "model": {"path": str(model), "format": "onnx", "architecture": None},
        "normalization": None,
        "dataset": {"kind": "npz", "files": {"file": str(data)}, "split": None},
        "selection": "all",
        "norm": "l2",
        "method": "auto",
        "clip": True,
        "seed": 0,
        "bounds": {"max_bytes": 10**9, "max_samples": 100},
        "samples_per_shard": 32,
    }
    (folder / "child" / "request.json").write_text(json.dumps(request))
    ended = run_child(
        "workers.jobs.inspection.child", [], folder=folder / "child", limits=ChildLimits()
    )
    left = "prepared/facts.json" if ended.status == 0 else "problem.json"
    assert (folder / "child" / left).exists(), ended
    return ended, json.loads((folder / "child" / left).read_text())


def test_what_a_child_left_that_was_given_up_is_cleared_away(tmp_path: Path) -> None:
    half = tmp_path / "child" / "prepared" / "half"
    half.mkdir(parents=True)
    ended, _ = inspected(tmp_path, [node("Relu", ["x"], ["y"])], {})
    assert ended.status == 0
    assert not half.exists()


@pytest.mark.parametrize(("batch", "claimed"), [("N", "any"), (1, 1)])
def test_flipped_constant(tmp_path: Path, batch: int | str, claimed: int | str) -> None:
    nodes = [
        node("Slice", ["c", "start", "end", "axis", "step"], ["k"]),
        node("Sub", ["x", "k"], ["y"]),
    ]
    ended, facts = inspected(tmp_path, nodes, FLIP, batch=batch)
    assert ended.status == 0
    assert facts["batch"] == claimed


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([node("Split", ["x"], ["y", ""], axis=1)], "invalid_onnx"),
        ([node("Reshape", ["x", "s"], ["r"]), node("Reshape", ["r", "t"], ["y"])],
         "batch_dependent"),
    ],
)  # fmt: skip
def test_refused_by_name(tmp_path: Path, nodes: list[NodeProto], code: str) -> None:
    constants = {"s": np.array([1, 1, 1, -1]), "t": np.array([-1, 4])}
    ended, problem = inspected(tmp_path, nodes, constants)
    assert ended.status == 3
    assert problem["code"] == code
    assert nodes[0].op_type in problem["detail"]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE])
def test_a_crash_says_what_to_try_and_what_to_send_to_whom(tmp_path: Path, number: int) -> None:
    ended = ChildEnded(-number, timed_out=False, stopped=False, tail="terminate called")
    with pytest.raises(InvalidInput) as caught:
        _raise_problem("job", tmp_path, ended, ChildLimits())
    assert caught.value.code == "inspection_failed"
    assert f"signal {int(number)}" in caught.value.detail
    assert "check_model" in (caught.value.hint or "")
    assert "send" in (caught.value.hint or "")
