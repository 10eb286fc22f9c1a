"""Graphs changed at random: each imports as ONNX Runtime runs it, or is refused; nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.errors import ModelError
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.layers.every_layer import every_new_layer
from tests.models.onnx.graphs import graph_of, normal

NUMBERS = [-(2**63), -4, -1, 0, 1, 2, 3, 6, 2**31, 2**63 - 1]
OPERATORS = ["Clip", "Concat", "Gather", "Identity", "Max", "Min", "Neg", "ReduceMean", "ReduceSum",
             "Relu", "Slice", "Softmax", "Split", "Sum"]  # fmt: skip


def originals() -> list[bytes]:
    end = [
        helper.make_node("MatMul", ["x", "w"], ["l"]),
        helper.make_node("Identity", ["l"], ["i"]),
        helper.make_node("Softmax", ["i"], ["y"]),
    ]
    network = every_new_layer()
    return [
        *(export_onnx(network, opset=opset) for opset in (13, 18)),
        graph_of(end, (6,), {"w": normal(0, 6, 4)}).SerializeToString(),
    ]


def change_attribute(rng: random.Random, node: NodeProto) -> None:
    for attribute in node.attribute[:1]:
        attribute.i = rng.choice(NUMBERS)
        if attribute.ints:
            attribute.ints[:] = rng.choices(NUMBERS, k=rng.randint(0, 3))


def change_constant(rng: random.Random, tensor: TensorProto) -> None:
    array = np.array(numpy_helper.to_array(tensor))
    if array.dtype == np.int64:
        array = np.array(rng.choices(NUMBERS, k=rng.randint(0, 3)), np.int64)
    elif rng.random() < 0.5:
        array = array.reshape(-1)[: rng.randint(0, 5)]
    else:
        array = np.full_like(array, rng.choice([np.nan, np.inf, -1.0, 0.0]))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def mutated(rng: random.Random, data: bytes) -> bytes:
    model = ModelProto.FromString(data)
    for _ in range(rng.randint(1, 3)):
        node = rng.choice(model.graph.node)
        names = ["", *(n for other in model.graph.node for n in (*other.input, *other.output))]
        what = rng.randrange(6)
        if what == 0:
            change_attribute(rng, node)
        elif what == 1:
            change_constant(rng, rng.choice(model.graph.initializer))
        elif what == 2:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        elif what == 3 and len(node.input) > 1:
            del node.input[-1]
        elif what == 4:
            node.output[0] = rng.choice(names)
        else:
            node.op_type = rng.choice(OPERATORS)
    return model.SerializeToString()


@pytest.mark.parametrize("seed", range(3))
def test_mutations(seed: int) -> None:
    rng, bases = random.Random(seed), originals()
    agreed = 0
    for _ in range(400):
        data = mutated(rng, rng.choice(bases))
        try:
            network = import_onnx_bytes(data)
        except ModelError as error:
            assert error.code != ModelError.code  # noqa: PT017
            continue
        x = normal(seed, 2, *network.input_shape)
        try:
            expected = OnnxRuntimeModel(data, network.input_shape)(x)
        except ModelError:
            continue
        with torch.no_grad():
            given = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(given, expected, atol=1e-5, rtol=1e-4)
        agreed += 1
    assert agreed > 20
