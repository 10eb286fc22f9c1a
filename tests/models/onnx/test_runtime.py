"""The deployed model: batches, fixed batches, shapes, and errors of the runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from models.errors import ModelError
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import graph_of, normal

node = helper.make_node


@pytest.mark.parametrize("batch", ["N", 1])
def test_logits_do_not_depend_on_the_batch(batch: int | str) -> None:
    constants = {"w": normal(0, 12, 3)}
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"])]
    data = graph_of(nodes, (3, 2, 2), constants, batch=batch).SerializeToString()
    model = OnnxRuntimeModel(data, (3, 2, 2))
    x = normal(1, 5, 3, 2, 2)
    together = model(x)
    assert together.shape == (5, 3)
    apart = np.concatenate([model(x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together, x.reshape(5, -1) @ constants["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "fits"),
    [((3, 2, 2), True), ((12,), True), ((1, 12), True), ((2, 2, 3), False), ((11,), False)],
)
def test_input_shapes(given: tuple[int, ...], fits: bool) -> None:
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"])]
    data = graph_of(nodes, (3, 2, 2), {"w": normal(0, 12, 3)}).SerializeToString()
    if fits:
        assert OnnxRuntimeModel(data, given)(normal(1, 2, *given)).shape == (2, 3)
    else:
        with pytest.raises(ModelError) as caught:
            OnnxRuntimeModel(data, given)
        assert caught.value.code == "shape_mismatch"


def test_what_the_runtime_refuses_is_a_model_error() -> None:
    bad = graph_of([node("Gemm", ["x", "w"], ["y"])], (4,), {"w": normal(0, 5, 3)})
    with pytest.raises(ModelError) as caught:
        OnnxRuntimeModel(bad.SerializeToString(), (4,))(normal(0, 1, 4))
    assert caught.value.code == "runtime_failed"
    unfit = graph_of([node("Relu", ["x", "x"], ["y"])], (4,))
    with pytest.raises(ModelError) as caught:
        OnnxRuntimeModel(unfit.SerializeToString(), (4,))
    assert caught.value.code == "runtime_failed"
    unknown = graph_of([node("NoSuch", ["x"], ["y"])], (4,))
    with pytest.raises(ModelError) as caught:
        OnnxRuntimeModel(unknown.SerializeToString(), (4,))
    assert caught.value.code == "unsupported_operator"


def test_wrong_inputs() -> None:
    data = graph_of([node("Relu", ["x"], ["y"])], (4,)).SerializeToString()
    model = OnnxRuntimeModel(data, (4,))
    for x in (np.zeros((1, 4)), np.zeros((1, 5), np.float32)):
        with pytest.raises(ModelError):
            model(x)  # type: ignore[arg-type]
