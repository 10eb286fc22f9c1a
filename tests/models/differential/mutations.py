"""Damage to a valid graph: names, sizes, element types, attributes, the order of what there is."""

from __future__ import annotations

import contextlib
import random

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

__all__ = ["mutate"]

NUMBERS = [-(2**63), -(2**31), -4, -1, 0, 1, 2, 3, 6, 2**31, 2**40, 2**63 - 1]


def mutate(rng: random.Random, model: ModelProto) -> None:
    """One or two random changes, in place."""
    for _ in range(rng.choice([1, 1, 2])):
        node = rng.choice(model.graph.node)
        names = ["", *(n for other in model.graph.node for n in (*other.input, *other.output))]
        with contextlib.suppress(ValueError, KeyError):  # of a tensor damaged already
            rng.choice(CHANGES)(rng, model, node, names)


def _input(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _output(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    node.output[rng.randrange(len(node.output))] = rng.choice(["", *names])


def _outputs(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if rng.random() < 0.3:
        del node.output[:]
    else:
        node.output.extend(rng.choices(["", "extra", "other", *names], k=rng.randint(1, 4)))


def _inputs(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if node.input and rng.random() < 0.5:
        del node.input[rng.randrange(len(node.input)) :]
    else:
        node.input.extend(rng.choices(names, k=rng.randint(1, 2)))


def _swap(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _twice(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    model.graph.node.append(node)


def _attribute(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif rng.random() < 0.3:
        attribute.ints[:] = rng.choices(NUMBERS, k=rng.randint(0, 4))
    else:
        attribute.i, attribute.f = rng.choice(NUMBERS), rng.choice([np.nan, np.inf, -1.0, 0.0])


def _constant(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    array = np.array(numpy_helper.to_array(tensor))
    if array.dtype == np.int64:
        array = np.array(rng.choices(NUMBERS, k=rng.randint(0, 4)), np.int64)
    elif rng.random() < 0.5:
        array = array.reshape(-1)[: rng.randint(0, 5)]
    else:
        array = np.full_like(array, rng.choice([np.nan, np.inf, -1.0, 0.0, 3e38]))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _dims(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        if tensor.dims and rng.random() < 0.5:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
        else:
            tensor.dims.append(rng.choice([0, 1, 1, 2**40]))


def _type(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        kind = rng.choice([np.int32, np.bool_, np.float64, np.float16, np.int64, np.float32])
        with np.errstate(all="ignore"):
            array = np.array(numpy_helper.to_array(tensor)).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        if rng.random() < 0.1:
            tensor.data_type = rng.choice([TensorProto.STRING, 77, TensorProto.COMPLEX64])


def _operator(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    node.op_type = rng.choice([other.op_type for other in model.graph.node] + ["Slice", "Split"])


def _ends(rng: random.Random, model: ModelProto, node: NodeProto, names: list[str]) -> None:
    if rng.random() < 0.5:
        model.graph.output[0].name = rng.choice(names)
    else:
        size = rng.choice(model.graph.input[0].type.tensor_type.shape.dim)
        size.dim_value = rng.choice(NUMBERS)


CHANGES = (_input, _output, _outputs, _inputs, _swap, _twice, _attribute, _constant, _dims,
           _type, _operator, _ends)  # fmt: skip
