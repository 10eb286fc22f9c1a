"""``--model``: tensors of a certificate are those of the file, in whatever form layers have them,
and what a job puts around a file, or no layer has, is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper

from check.verify import main
from models.network import Network
from models.onnx.forms.plain import Asked
from models.onnx.importer import read_onnx_bytes
from tests.check.forger import Forgery, certified_by
from tests.models.onnx.graphs import graph_of, normal

node = helper.make_node
X = np.random.default_rng(0).random((6, 4)).astype(np.float32)
CONSTANTS: dict[str, Any] = {
    "w": normal(0, 4, 5),
    "b": normal(1, 5),
    "v": normal(2, 5, 3),
    "one": np.float32([0.25]),
    "z": normal(3, 5, 1),
    "idle": normal(4, 5),
}
FIRST = node("MatMul", ["x", "w"], ["m"])
BEHIND = [node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
SCORE = [node("Relu", ["h"], ["r"]), node("MatMul", ["r", "z"], ["y"])]
#: Files whose constants stand in layers otherwise than they lie there.
FORMS: dict[str, list[NodeProto]] = {
    "as it lies": [FIRST, node("Add", ["m", "b"], ["h"]), *BEHIND],
    "subtracted": [FIRST, node("Sub", ["m", "b"], ["h"]), *BEHIND],
    "subtracted from the sample": [
        node("Sub", ["x", "one"], ["c"]),
        node("MatMul", ["c", "w"], ["h"]),
        *BEHIND,
    ],
    "repeated": [FIRST, node("Add", ["m", "one"], ["h"]), *BEHIND],
    "repeated and subtracted": [FIRST, node("Sub", ["m", "one"], ["h"]), *BEHIND],
    "of a Gemm": [node("Gemm", ["x", "w", "one"], ["h"]), *BEHIND],
}


def made_of(network: Network) -> bytes:
    """A certificate of its own answers."""
    with torch.no_grad():
        label = network(torch.from_numpy(X)).argmax(1).numpy()
    made = certified_by(network, X, label, norm="l2", epsilons=[Fraction(1, 10**6)])
    assert made is not None
    return made


def files(
    folder: Path,
    nodes: Sequence[NodeProto],
    *,
    binary: bool = False,
    normalization: Mapping[str, Sequence[float]] | None = None,
) -> list[str]:
    """Arguments of the command for the file of these nodes and its certificate."""
    given = {name for one in nodes for name in one.input}
    constants = {name: value for name, value in CONSTANTS.items() if name in given}
    data = graph_of(nodes, (4,), constants).SerializeToString()
    network = read_onnx_bytes(data, asked=Asked(binary=binary)).network
    if normalization is not None:
        network = network.normalized(normalization["mean"], normalization["std"])
    (folder / "model.onnx").write_bytes(data)
    (folder / "certificate").write_bytes(made_of(network))
    return [str(folder / "certificate"), "--model", str(folder / "model.onnx")]


@pytest.mark.parametrize("form", FORMS)
def test_constants_are_found_in_the_form_that_layers_have_them_in(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files(tmp_path, FORMS[form])) == 0
    said = capsys.readouterr().out
    assert "has all" in said
    assert "around the file" not in said
    assert "in no layer" not in said


def test_what_a_job_puts_around_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [FIRST, node("Add", ["m", "b"], ["h"]), *SCORE]
    asked = files(tmp_path, nodes, binary=True, normalization={"mean": [0.5], "std": [0.25]})
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "around the file, and not in it" in said
    assert "mean': [0.5]" in said
    assert "std': [0.25]" in said
    assert "[0.0, 1.0]" in said


@pytest.mark.parametrize("name", ["linear_0.weight", "linear_0.bias", "linear_3.weight"])
def test_other_numbers_are_of_another_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All claims are made anew, so that the certificate by itself is in order."""
    nodes = [FIRST, node("Add", ["m", "b"], ["h"]), *SCORE]
    path, *asked = files(tmp_path, nodes, binary=True)
    network = read_onnx_bytes(
        (tmp_path / "model.onnx").read_bytes(), asked=Asked(binary=True)
    ).network
    layer, tensor = name.split(".")
    numbers = network.layers[layer].get_parameter(tensor).data
    assert f"layers.{name}" in Forgery(Path(path).read_bytes()).tensors
    numbers *= 1.5
    Path(path).write_bytes(made_of(network))
    assert main([path]) == 0
    assert main([path, *asked]) == 1
    assert f"layers.{name}" in capsys.readouterr().out


def test_tensors_that_no_layer_has_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A certificate of fewer layers than the file has would have its tensors, too."""
    nodes = [FIRST, node("Add", ["m", "b"], ["h"]), *BEHIND]
    more = [*nodes[:-1], node("Add", ["r", "idle"], ["s"]), node("MatMul", ["s", "v"], ["y"])]
    asked = files(tmp_path, nodes)
    constants = {name: CONSTANTS[name] for name in ("w", "b", "v", "idle")}
    (tmp_path / "model.onnx").write_bytes(graph_of(more, (4,), constants).SerializeToString())
    assert main(asked) == 0
    assert "1 of its tensors of floats are in no layer" in capsys.readouterr().out
