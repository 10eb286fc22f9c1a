"""Checks a node's attributes and numbers of inputs and outputs against its operator's schema."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, NodeProto, helper

from models.errors import ModelError
from models.onnx.safety import ML_DOMAIN

__all__ = ["checked_attributes"]

#: The version of that domain whose schemas are looked up: of what is understood of it there is one.
_ML_VERSION = 5
#: Attributes that must be 0 or 1, because runtimes differ on other numbers.
_SWITCHES = (
    "allowzero",
    "ceil_mode",
    "count_include_pad",
    "keepdims",
    "noop_with_empty_axes",
    # With another number a Cast in ONNX Runtime leaves its output unwritten.
    "saturate",
    "select_last_index",
    "storage_order",
    "training_mode",
    "transA",
    "transB",
)


def checked_attributes(node: NodeProto, label: str, opset: int) -> dict[str, Any]:
    """Attributes by name, defaults filled in; raises ModelError if the schema forbids the node."""
    try:
        version, domain = (_ML_VERSION, ML_DOMAIN) if node.domain == ML_DOMAIN else (opset, "")
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError as error:
        raise ModelError(
            f"{label}: opset {opset} has no such operator", code="unsupported_operator"
        ) from error
    least, most = schema.min_input, schema.max_input
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    if schema.inputs and schema.inputs[-1].option == variadic:
        least = max(least, len(node.input))
    if not least <= len(node.input) <= most or any(not name for name in node.input[:least]):
        raise ModelError(
            f"{label} has {len(node.input)} inputs, or one without a name", code="invalid_onnx"
        )
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise ModelError(f"{label} has {len(node.output)} outputs", code="invalid_onnx")
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for place, name in enumerate(node.output):
        formal = schema.outputs[min(place, len(schema.outputs) - 1)]
        if not name and (place == 0 or formal.option != optional):
            # ONNX Runtime accepts a Split with such an output, then crashes.
            raise ModelError(
                f"{label}: output {place} has no name",
                code="invalid_onnx",
                hint="give every output a name, also one that nothing uses",
            )
    values: dict[str, Any] = {}
    for name, declared in schema.attributes.items():
        if declared.default_value.type != AttributeProto.UNDEFINED:
            values[name] = helper.get_attribute_value(declared.default_value)
    seen: set[str] = set()
    for attribute in node.attribute:
        declared_type = schema.attributes.get(attribute.name)
        if declared_type is None or attribute.name in seen:
            raise ModelError(
                f"{label}: attribute {attribute.name!r} is unknown in opset {opset} or given twice",
                code="invalid_onnx",
            )
        if int(declared_type.type.value) != attribute.type:
            raise ModelError(
                f"{label}: attribute {attribute.name!r} has the wrong type", code="invalid_onnx"
            )
        seen.add(attribute.name)
        value = helper.get_attribute_value(attribute)
        if attribute.name in _SWITCHES and value not in (0, 1):
            raise ModelError(
                f"{label}: attribute {attribute.name!r} is {value}, not 0 or 1",
                code="invalid_onnx",
            )
        values[attribute.name] = value
    lacking = [n for n, a in schema.attributes.items() if a.required and n not in values]
    if lacking:
        raise ModelError(f"{label} lacks the attribute {lacking[0]!r}", code="invalid_onnx")
    return values
