"""Files that take bytes: the Cast that their input goes into is taken off."""

from __future__ import annotations

from onnx import GraphProto, TensorProto

from models.errors import ModelError

__all__ = ["take_floats"]


def take_floats(graph: GraphProto) -> bool:
    """Let a graph whose one input is uint8, and goes into Casts to float32 alone, take floats, in
    place; whether it was one. On whole numbers from 0 to 255 both compute the same, bit for bit.

    Raises ModelError (unsupported_dtype) where the bytes go into something else first.
    """
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.UINT8:
        return False
    name = inputs[0].name
    readers = [node for node in graph.node if name in node.input]
    for node in readers:
        to = [attribute.i for attribute in node.attribute if attribute.name == "to"]
        if node.op_type != "Cast" or to != [TensorProto.FLOAT] or len(node.output) != 1:
            raise ModelError(
                f"the bytes of the input {name!r} go into {node.op_type}: they are taken only "
                "where a Cast to float32 comes first",
                code="unsupported_dtype",
                hint="begin the model with x.float(), and divide by 255 behind it",
            )
    floats = {output for node in readers for output in node.output}
    if floats & {value.name for value in graph.output}:
        raise ModelError("the output is the input itself", code="invalid_network")
    for node in readers:
        graph.node.remove(node)
    for node in graph.node:
        for place, source in enumerate(node.input):
            if source in floats:
                node.input[place] = name
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name in floats:
            del graph.value_info[index]
    inputs[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return True
