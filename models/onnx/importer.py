"""ONNX files as networks: an operator is translated exactly, or refused by its name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.errors import ModelError
from models.layers.kinds import Layer, Reshape
from models.network import INPUT, Network
from models.onnx.constant_rules import CONSTANT_OPERATORS, SUMS_HINT
from models.onnx.constants import (
    check_repeated,
    evaluate,
    read_tensor,
    require_one_shape,
    shape_of,
    zero_product,
)
from models.onnx.declarations import refuse_contradictions
from models.onnx.forms.endings import refuse_joined_rows, refuse_other_axes
from models.onnx.forms.plain import Asked, PlainForm, plain_form
from models.onnx.forms.signature import InputSignature, signatures
from models.onnx.graph import (
    SYMBOLIC_BATCH,
    Activation,
    Choice,
    Comparison,
    Constant,
    Normaliser,
    Operation,
    Squares,
    Translation,
    Value,
)
from models.onnx.operators.curved.folds import as_numbers, chosen, keep_spreads, refuse_choice
from models.onnx.operators.euclidean import SQUARE_OPERATORS
from models.onnx.operators.layout.elsewhere import MOVED, with_leading_batch
from models.onnx.operators.layout.merged import MERGED, with_rows_apart
from models.onnx.operators.normalized.in_parts import in_parts
from models.onnx.operators.registry import OPERATORS, UNBATCHED
from models.onnx.operators.supported import (
    ADVICE,
    SUPPORTED_OPERATORS,
    refuse_unknown_operators,
)
from models.onnx.operators.views import settled
from models.onnx.safety import OnnxLimits

__all__ = [
    "SUPPORTED_OPERATORS",
    "ImportedOnnx",
    "import_onnx",
    "import_onnx_bytes",
    "read_onnx",
    "read_onnx_bytes",
    "refuse_unknown_operators",
]


@dataclass(frozen=True)
class ImportedOnnx:
    """A file's network, and the plain form of the file that is deployed in its place.

    batch: rows that the file takes at once, row by row: nothing in it lets them depend on each
    other. None: any number. deployed: the bytes of the plain form. output, others: the file's
    output that was taken, and those that were left out. binary: whether that is one score z of two
    classes, whose logits are (0, z). takes_bytes: the file takes uint8, the network the same
    numbers as floats. values: what the values of the plain form are in the network.
    """

    network: Network
    batch: int | None
    deployed: bytes
    output: str
    others: tuple[str, ...] = ()
    binary: bool = False
    takes_bytes: bool = False
    values: Mapping[str, Activation] = field(default_factory=dict)


def import_onnx(path: Path, limits: OnnxLimits | None = None) -> Network:
    """The network of an ONNX file (opset 7 to 26), operator by operator. Raises ModelError."""
    return read_onnx(path, limits).network


def import_onnx_bytes(data: bytes, limits: OnnxLimits | None = None) -> Network:
    """The network of an ONNX file's bytes; no other file is ever opened. Raises ModelError."""
    return read_onnx_bytes(data, limits).network


def read_onnx(
    path: Path, limits: OnnxLimits | None = None, asked: Asked | None = None
) -> ImportedOnnx:
    """An ONNX file (opset 7 to 26) as a network, operator by operator. Raises ModelError."""
    limits = limits or OnnxLimits()
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise ModelError(
            f"the file has {size} bytes, more than {limits.file_bytes}", code="model_too_large"
        )
    return read_onnx_bytes(path.read_bytes(), limits, asked)


def read_onnx_bytes(
    data: bytes, limits: OnnxLimits | None = None, asked: Asked | None = None
) -> ImportedOnnx:
    """The same from the file's bytes; no other file is ever opened. Raises ModelError.

    What only makes another form of the answer at the very end is left out (``models.onnx.forms``):
    ``Network.dropped_output`` names it. One score behind a Sigmoid is a binary classifier.
    """
    limits, asked = limits or OnnxLimits(), asked or Asked()
    form = plain_form(data, limits, asked)
    network, batch, values = _read(form, limits, asked)
    one_score = asked.classifier and network.classes == 1
    if one_score and form.ends_in_sigmoid and form.dropped is None:
        asked = replace(asked, binary=True)
        form = plain_form(data, limits, asked)
        network, batch, values = _read(form, limits, asked)
    if network.classes < 2 and asked.classifier:
        raise ModelError(
            "the network has one output: a classifier needs at least two",
            code="invalid_network",
            hint='one score of two classes is certified with "binary": true in the spec (class 1 '
            "where it is above 0); a regression has no classes: state what its output must keep "
            "to as a property (field property, VNN-LIB)",
        )
    return ImportedOnnx(
        network=network,
        batch=batch,
        deployed=form.model.SerializeToString(),
        output=form.output,
        others=form.others,
        binary=form.score is not None,
        takes_bytes=form.takes_bytes,
        values=values,
    )


#: A network, the rows that it takes at once, and what the file's values are in it.
_Found = tuple[Network, int | None, dict[str, Activation]]


def _read(form: PlainForm, limits: OnnxLimits, asked: Asked) -> _Found:
    """The network of a plain form, under the likelier reading of its input, or the other one."""
    first, *others = signatures(form.graph)
    refuse_unknown_operators(form.graph)
    try:
        return _as_network(form, first, limits, asked)
    except ModelError as error:
        for signature in others:
            try:
                return _as_network(form, signature, limits, asked)
            except ModelError:
                continue
        raise error


def _as_network(
    form: PlainForm, signature: InputSignature, limits: OnnxLimits, asked: Asked
) -> _Found:
    graph, opset, batch = form.graph, form.opset, signature.batch
    output = graph.output[0].name
    uses = Counter(source for node in graph.node for source in node.input)
    uses[output] += 1
    sizes = SYMBOLIC_BATCH if batch is None else (batch, batch)
    translation = Translation(sizes, limits, uses)
    given = Activation(INPUT, signature.shape, signature.has_batch_axis)
    values: dict[str, Value] = {signature.name: given}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in values:
            raise ModelError(f"the name {tensor.name!r} is defined twice", code="invalid_onnx")
        values[tensor.name] = Constant.of(read_tensor(tensor))
    for index, node in enumerate(graph.node):
        if form.score is not None and form.score in node.input:
            _require_one_score(form.score, values.get(form.score))
        operation = Operation.read(node, index, opset, values)
        results = _translate(operation, translation)
        keep_spreads(operation, results, translation)
        named = [name for name in operation.outputs if name]
        if (
            not operation.outputs[0]
            or len(set(named)) < len(named)
            or any(name in values for name in named)
        ):
            operation.refuse("an output has no name or one that is taken", code="invalid_onnx")
        values.update(zip(operation.outputs, results, strict=False))
        values.pop("", None)
    logits = values.get(output)
    if isinstance(logits, Squares):
        logits = logits.plain
    refuse_choice(logits, translation)
    if not isinstance(logits, Activation) or logits.name == INPUT:
        raise ModelError(
            f"the output {output!r} is not computed from the input by any layer",
            code="invalid_network",
        )
    if logits.batch_axis or logits.merged:
        raise ModelError(
            f"the first axis of the output {output!r} is not the batch axis",
            code="batch_dependent",
            hint="transpose or reshape the output, so that it is [batch, classes]",
        )
    for node in form.nodes:
        refuse_other_axes(
            Operation.read(node, len(graph.node), opset, {**values, node.input[0]: logits}), logits
        )
    if form.pair is not None and form.score is not None:
        score = values[form.score]
        joined = Operation.read(
            form.pair, len(graph.node), opset, {**values, **dict.fromkeys(form.pair.input, score)}
        )
        refuse_joined_rows(joined, joined.activation())
    taken = [name for name in form.alike if name in values]
    if taken:
        raise ModelError(f"the name {taken[0]!r} is defined twice", code="invalid_onnx")
    values.update(dict.fromkeys(form.alike, logits))
    refuse_contradictions(form.declared, values)
    rows = _flatten_output(translation.rows, logits, classifier=asked.classifier)
    network = Network(signature.shape, _leading_to(rows), dropped_output=form.dropped).eval()
    held = {name: value for name, value in values.items() if isinstance(value, Activation)}
    for name in translation.without_bias:
        del held[name]
    if not translation.one_row_only:
        return network, batch, held
    if batch not in (None, 1):
        raise ModelError(
            f"the batch is fixed to {batch}, but the graph runs one row only", code="shape_mismatch"
        )
    return network, 1, held


def _require_one_score(name: str, value: Value | None) -> None:
    if not isinstance(value, Activation) or math.prod(value.shape) != 1:
        shape = list(value.shape) if isinstance(value, Activation) else None
        raise ModelError(
            f"a binary classifier has one score; {name!r} has shape {shape} for each sample",
            code="invalid_network",
            hint='leave "binary" out of the spec',
        )


def _translate(operation: Operation, translation: Translation) -> Sequence[Value]:
    """The operator's outputs, in order."""
    if any(isinstance(value, Normaliser) for value in operation.inputs):
        return [in_parts(operation, translation)]
    if any(isinstance(value, Squares) for value in operation.inputs):
        return _on_squares(operation, translation)
    if any(isinstance(value, Choice | Comparison) for value in operation.inputs):
        check_repeated(operation)
        found = chosen(operation, translation)
        if found is not None:
            return [found]
        return _translate(as_numbers(operation, translation), translation)
    if not any(isinstance(value, Activation) for value in operation.inputs):
        if operation.op_type in CONSTANT_OPERATORS:
            return evaluate(operation, translation)
        zeros = zero_product(operation)
        if zeros is not None:
            return [zeros]
        operation.refuse(
            "this operator is not supported on constants alone",
            hint=SUMS_HINT,
        )
    check_repeated(operation)
    if operation.op_type == "Shape":
        return [shape_of(operation, translation.batch)]
    require_one_shape(operation, translation)
    if not operation.batched:
        return _without_batch_axis(operation, translation)
    translator = OPERATORS.get(operation.op_type)
    for moved, table, translate in (
        ("batch_axis", MOVED, with_leading_batch),
        ("merged", MERGED, with_rows_apart),
    ):
        if any(isinstance(v, Activation) and getattr(v, moved) for v in operation.inputs):
            if translator is None or operation.op_type not in table:
                operation.refuse_batch(
                    "the first axis of its input is not the batch axis",
                    hint="bring the input into the form [batch, ...] before this operator",
                )
            return translate(operation, translation, translator)
    if translator is None:
        operation.refuse(
            "this operator is supported on constants or sums of squares only",
            hint=ADVICE.get(
                operation.op_type, "supported operators: " + ", ".join(sorted(OPERATORS))
            ),
        )
    result = translator(operation, translation)
    return result if isinstance(result, list) else [result]


def _on_squares(operation: Operation, translation: Translation) -> Sequence[Value]:
    """The outputs of an operator on squares: on the way to a Euclidean norm, and as plain numbers
    as long as it may come out that there is no root."""
    check_repeated(operation)
    found: Value | None = None
    refusal: ModelError | None = None
    plain = tuple(v.plain if isinstance(v, Squares) else v for v in operation.inputs)
    lacking = any(
        value is None and given is not None
        for value, given in zip(plain, operation.inputs, strict=True)
    )
    if operation.op_type in SQUARE_OPERATORS:
        try:
            found = SQUARE_OPERATORS[operation.op_type](operation, translation)
        except ModelError as error:
            refusal = error
        if isinstance(found, Activation | Normaliser):
            return [found]
    elif lacking or operation.op_type not in OPERATORS:
        operation.refuse("squares are supported on the way to a Euclidean norm only")
    if not lacking and operation.op_type in OPERATORS:
        try:
            results = _translate(replace(operation, inputs=plain), translation)
        except ModelError:
            if found is None:
                raise
        else:
            (first, *_) = results
            if isinstance(found, Squares) and isinstance(first, Activation):
                return [replace(found, plain=first)]
            return results
    if found is None:
        assert refusal is not None
        raise refusal
    return [replace(found, plain=None) if isinstance(found, Squares) else found]


def _without_batch_axis(operation: Operation, translation: Translation) -> Sequence[Value]:
    """The outputs of an operator on activations that have no batch axis in the file."""
    translator = UNBATCHED.get(operation.op_type)
    if translator is None:
        operation.refuse(
            "this operator is not supported on an input without a batch axis",
            hint="export the model with a batch axis; without one, supported are "
            + ", ".join(sorted(UNBATCHED)),
        )
    result = translator(operation, translation)
    results = result if isinstance(result, list) else [result]
    return [settled(operation, translation, value) for value in results]


Rows = list[tuple[str, Layer, tuple[str, ...]]]


def _flatten_output(rows: Rows, logits: Activation, *, classifier: bool) -> Rows:
    """Rows that end in outputs [N]: others get an explicit reshape, row by row as they are
    numbered. What holds more than one axis of classes is no classifier's."""
    if len(logits.shape) == 1:
        return [*_up_to(rows, logits.name)]
    classes = math.prod(logits.shape)
    if classifier and classes != max(logits.shape, default=1):
        raise ModelError(
            f"the output must be [batch, classes], not [batch, "
            f"{', '.join(map(str, logits.shape))}]",
            code="shape_mismatch",
        )
    return [*_up_to(rows, logits.name), ("logits", Reshape(shape=(classes,)), (logits.name,))]


def _up_to(rows: Rows, name: str) -> Rows:
    index = next(i for i, row in enumerate(rows) if row[0] == name)
    return rows[: index + 1]


def _leading_to(rows: Rows) -> Rows:
    """The rows that the last one depends on (some rows were used only for their shape)."""
    needed = {rows[-1][0]}
    kept: Rows = []
    for row in reversed(rows):
        if row[0] in needed:
            kept.append(row)
            needed.update(row[2])
    return kept[::-1]
