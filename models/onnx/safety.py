"""An uploaded ONNX file, parsed from bytes and checked before any other code reads it.

No other file is ever opened: external data is refused wherever it may occur (initializers,
attributes, nested graphs, functions, training information). So is everything by which a small file
could be expensive: subgraphs, functions, sparse tensors, and tensors whose bytes are fewer than
their declared size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from models.errors import ModelError

__all__ = [
    "COLUMNS",
    "ML_DOMAIN",
    "OPSETS",
    "OnnxLimits",
    "check_graph",
    "instead_of",
    "node_label",
    "opset_of",
    "parse_onnx",
    "possible_shape",
]

#: Opsets of the default domain that are understood: what ONNX Runtime vouches for.
OPSETS = range(7, 27)

_DEFAULT_DOMAINS = ("", "ai.onnx")
#: Where converters of scikit-learn take their operators from, those that are understood of it, and
#: its versions.
ML_DOMAIN = "ai.onnx.ml"
_ML_OPERATORS = ("ArrayFeatureExtractor", "LinearClassifier", "Normalizer", "Scaler")
_ML_VERSIONS = range(1, 6)
#: Axes of an array at most, and what its sizes other than 0 multiply to.
MOST_AXES, MOST_NUMBERS = 32, 2**58
#: Fields of names.
_NAMES = ("domain", "input", "name", "op_type", "output")
_VALUE_ATTRIBUTES = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRINGS,
}
#: Element types that are read: field of the values when not in ``raw_data``, bytes per element.
_ELEMENTS = {
    TensorProto.FLOAT: ("float_data", 4),
    TensorProto.INT64: ("int64_data", 8),
    TensorProto.INT32: ("int32_data", 4),
    TensorProto.BOOL: ("int32_data", 1),
}
#: What to do about operators of other domains.
_DOMAINS = {
    ML_DOMAIN: "of scikit-learn's models the linear ones and MLPs are taken, behind scalers and "
    "PCA; trees, kernels, neighbours and regressions are not",
    "com.microsoft": "ONNX Runtime has optimised or quantised this file: send the float32 file "
    "that it was made from",
}
#: Of files that take the columns of a table one by one.
COLUMNS = (
    "the file takes each column of a table as an input of its own (exported with a pandas "
    "DataFrame): export it with one input of all columns, "
    "to_onnx(model, df[:1].to_numpy(numpy.float32)), of a model that was fitted to df.to_numpy()"
)
#: What to do about numbers that are not float32, and why they are not taken for it.
_DOUBLE = (
    "export the model in float32: model.float() and a float32 example in PyTorch, "
    "X[:1].astype(numpy.float32) for skl2onnx. ONNX Runtime computes a float64 graph in float64: "
    "a certificate of its float32 form would be one of another network"
)
_HALF = (
    "export the model in float32 (model.float() in PyTorch), or send the file from before it was "
    "converted to 16 bits: rounding to 16 bits is not covered by any certificate"
)
_QUANTISED = (
    "this is a quantised network: send the float32 one that it was made from; the quantised one's "
    "own rounding is not covered by any certificate"
)
_INSTEAD = {
    **dict.fromkeys((TensorProto.DOUBLE,), _DOUBLE),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16), _HALF),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4), _QUANTISED),
}
_DATA_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)

#: What to do about a file that cannot be parsed.
_DAMAGED = (
    "see whether `python -c 'import onnx; onnx.checker.check_model(\"model.onnx\")'` reads it on "
    "your machine: if it does, send it again; if not, it is damaged: export it again"
)


@dataclass(frozen=True)
class OnnxLimits:
    """How large an upload may be; sizes in bytes, activations per sample."""

    file_bytes: int = 512 << 20
    nodes: int = 5_000
    tensors: int = 20_000
    #: Layers of the imported network: one node may take several, a Split one per output.
    layers: int = 20_000
    parameters: int = 1 << 27
    activation_bytes: int = 256 << 20
    total_activation_bytes: int = 2 << 30
    folded_bytes: int = 256 << 20
    #: Multiplications of one forward pass of one sample.
    work: int = 10**12


def damaged() -> ModelError:
    """The error of bytes that are no protobuf of a model."""
    return ModelError(
        "the file is not an ONNX model (protobuf)", code="invalid_onnx", hint=_DAMAGED
    )


def parse_onnx(data: bytes, limits: OnnxLimits | None = None) -> ModelProto:
    """The model of an ONNX file's bytes: no other file is opened, sizes are bounded, and names are
    unique. Nodes and tensors are checked by ``check_graph``, once nothing unneeded is among them.

    Raises ModelError (model_too_large, invalid_onnx, external_data, unsupported_operator,
    unsupported_opset).
    """
    limits = limits or OnnxLimits()
    if len(data) > limits.file_bytes:
        raise ModelError(
            f"the file has {len(data)} bytes, more than {limits.file_bytes}", code="model_too_large"
        )
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise damaged() from error
    graph = model.graph
    if not graph.node and graph.output:
        raise ModelError(
            "the graph holds no node: nothing is computed from its input",
            code="invalid_onnx",
            hint="export a network with layers",
        )
    if not graph.node:
        raise ModelError("the file holds no ONNX graph", code="invalid_onnx", hint=_DAMAGED)
    if len(graph.node) > limits.nodes or len(graph.initializer) > limits.tensors:
        raise ModelError(
            f"the graph has {len(graph.node)} nodes and {len(graph.initializer)} tensors; at most "
            f"{limits.nodes} and {limits.tensors} are taken",
            code="model_too_large",
        )
    _refuse_outside_data(model)
    _refuse_names_that_are_no_text(model)
    if model.functions:
        raise ModelError(
            "model-local functions are not supported",
            code="unsupported_operator",
            hint="inline them (onnx.inliner.inline_local_functions)",
        )
    if model.training_info:
        raise ModelError("training information is not taken", code="invalid_onnx")
    opset_of(model)
    _refuse_doubled_names(model)
    return model


def check_graph(model: ModelProto) -> None:
    """Raise ModelError (unsupported_operator, unsupported_dtype, invalid_onnx) where a node or a
    tensor of the model is none that is understood."""
    for tensor in model.graph.initializer:
        _check_tensor(tensor, f"initializer {tensor.name!r}")
    for index, node in enumerate(model.graph.node):
        _check_node(node, index)
        if node.domain == ML_DOMAIN:
            versions = {row.version for row in model.opset_import if row.domain == ML_DOMAIN}
            if len(versions) != 1 or not versions <= set(_ML_VERSIONS):
                raise ModelError(
                    f"the model imports the versions {sorted(versions)} of {ML_DOMAIN}",
                    code="unsupported_opset",
                    hint=f"one from {_ML_VERSIONS[0]} to {_ML_VERSIONS[-1]} is understood",
                )


def opset_of(model: ModelProto) -> int:
    """The opset of the default domain. Raises ModelError (unsupported_opset)."""
    versions = {row.version for row in model.opset_import if row.domain in _DEFAULT_DOMAINS}
    if len(versions) != 1:
        raise ModelError(
            f"the model must import one opset of the ai.onnx domain, not {sorted(versions)}",
            code="unsupported_opset",
        )
    (version,) = versions
    if version not in OPSETS:
        raise ModelError(
            f"opset {version} is not supported",
            code="unsupported_opset",
            hint=f"export with an opset from {OPSETS[0]} to {OPSETS[-1]}",
        )
    return version


def instead_of(element_type: int) -> str:
    """What to do about numbers of this element type, which are not taken."""
    return _INSTEAD.get(element_type, "export the model in float32")


def node_label(node: NodeProto, index: int) -> str:
    """How a node is named in a message."""
    return f"{node.op_type} node {node.name!r}" if node.name else f"{node.op_type} node #{index}"


def _messages(root: Message) -> Iterator[Message]:
    """The message and every message inside it, whatever the field: new fields cannot hide one."""
    stack = [root]
    while stack:
        message = stack.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            if isinstance(value, Message):
                stack.append(value)
            else:
                stack.extend(value)


def _where(tensor: Any) -> str:
    """In which file, if it says so."""
    named = [entry.value for entry in tensor.external_data if entry.key == "location"]
    return f", in {named[0][:200]!r}" if named else ""


def _refuse_outside_data(model: ModelProto) -> None:
    sparse = False
    for message in _messages(model):
        kind = message.DESCRIPTOR.full_name
        sparse = sparse or kind == "onnx.SparseTensorProto"
        if kind != "onnx.TensorProto":
            continue
        tensor: Any = message
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"tensor {tensor.name!r} keeps its data outside the file{_where(tensor)}",
                code="external_data",
                hint="send the file that was written beside the model in the field model_data, or "
                "save the model as one file: onnx.save_model(model, path)",
            )
    if sparse:
        raise ModelError("sparse tensors are not supported", code="unsupported_dtype")


def _refuse_names_that_are_no_text(model: ModelProto) -> None:
    """Raise ModelError (invalid_onnx) where a name is no UTF-8: protobuf then gives its bytes."""
    for message in _messages(model):
        for field, value in message.ListFields():
            if field.message_type is not None or field.name not in _NAMES:
                continue
            for name in [value] if isinstance(value, str | bytes) else value:
                if isinstance(name, bytes):
                    _refuse_name(f"the name {name[:60]!r} is no UTF-8")


def _refuse_doubled_names(model: ModelProto) -> None:
    """Raise ModelError (invalid_onnx) where a name that must be unique is given twice, or lacks."""
    graph = model.graph
    inputs, stored = (
        [value.name for value in graph.input],
        [tensor.name for tensor in graph.initializer],
    )
    for what, names in (
        ("input", inputs),
        ("output", [value.name for value in graph.output]),
        ("initializer", stored),
        ("node", [node.name for node in graph.node if node.name]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                _refuse_name(f"the {what} {name!r} is declared {count} times")
    taken = {**dict.fromkeys(stored, "an initializer"), **dict.fromkeys(inputs, "an input")}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name in taken:
                label = node_label(node, index)
                _refuse_name(f"{label}: the name {name!r} of its output is {taken[name]} already")
            if name:
                taken[name] = "a node's output"
    if not model.ir_version:
        raise ModelError("the file does not say its ir_version", code="invalid_onnx")


def _refuse_name(message: str) -> NoReturn:
    raise ModelError(
        message, code="invalid_onnx", hint="give every value and every node a name of its own"
    )


def _check_node(node: NodeProto, index: int) -> None:
    label = node_label(node, index)
    ours = node.domain == ML_DOMAIN and node.op_type in _ML_OPERATORS
    if node.domain not in _DEFAULT_DOMAINS and not ours:
        raise ModelError(
            f"{label}: this operator of the domain {node.domain!r} is not supported",
            code="unsupported_operator",
            hint=COLUMNS if node.op_type == "FeatureVectorizer" else _DOMAINS.get(node.domain, ""),
        )
    for attribute in node.attribute:
        if attribute.ref_attr_name or attribute.type not in _VALUE_ATTRIBUTES:
            raise ModelError(
                f"{label}: attribute {attribute.name!r} holds a subgraph or another kind of value "
                "that is not supported",
                code="unsupported_operator",
                hint="a network that takes one way or another is not certified: export it with "
                "inputs of one size, so that the exporter sees which way it takes",
            )
        if attribute.type == AttributeProto.TENSOR:
            _check_tensor(attribute.t, f"{label}, attribute {attribute.name!r}")


def possible_shape(dims: Sequence[int]) -> bool:
    """Whether an array can have this shape: also one of no numbers has strides, which are to fit
    into 64 bits."""
    extent = math.prod(size or 1 for size in dims)
    return len(dims) <= MOST_AXES and min(dims, default=0) >= 0 and extent <= MOST_NUMBERS


def _check_tensor(tensor: TensorProto, label: str) -> None:
    """The declared type and shape agree with the data that is really there."""
    if tensor.data_type not in _ELEMENTS:
        known = tensor.data_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(tensor.data_type) if known else str(tensor.data_type)
        raise ModelError(
            f"{label} has element type {name}",
            code="unsupported_dtype",
            hint=instead_of(tensor.data_type),
        )
    if not possible_shape(tensor.dims) or tensor.HasField("segment"):
        raise ModelError(f"{label} has an impossible shape", code="invalid_onnx")
    field, element_bytes = _ELEMENTS[tensor.data_type]
    count = math.prod(tensor.dims)
    present = {name: len(getattr(tensor, name)) for name in _DATA_FIELDS}
    if tensor.HasField("raw_data"):
        agrees = len(tensor.raw_data) == count * element_bytes and not any(present.values())
    else:
        agrees = present.pop(field) == count and not any(present.values())
    if not agrees:
        raise ModelError(
            f"{label} declares shape {tuple(tensor.dims)}, which its data do not have",
            code="invalid_onnx",
        )
    # Of a 256 ONNX Runtime makes true, and onnx's own reader, which keeps its last byte, false.
    numbers = tensor.raw_data or tensor.int32_data
    if tensor.data_type == TensorProto.BOOL and not {0, 1}.issuperset(numbers):
        raise ModelError(
            f"{label} is BOOL and holds others than 0 and 1, which are not read alike",
            code="invalid_onnx",
        )
