"""Which operators a graph may hold, and what to do about others."""

from __future__ import annotations

from onnx import GraphProto, defs

from models.errors import ModelError
from models.onnx.constant_rules import CONSTANT_OPERATORS
from models.onnx.forms.endings import FINAL_OPERATORS
from models.onnx.operators.curved.choices import JUMPS
from models.onnx.operators.euclidean import SQUARE_OPERATORS
from models.onnx.operators.registry import OPERATORS

__all__ = ["ADVICE", "SUPPORTED_OPERATORS", "refuse_unknown_operators"]

#: Who translates what, beside the very last operator.
_TABLES = (OPERATORS, SQUARE_OPERATORS, CONSTANT_OPERATORS)
#: Names of the operators that an uploaded graph may hold.
SUPPORTED_OPERATORS = tuple(sorted({*FINAL_OPERATORS}.union(*_TABLES)))
_QUANTISED = "this is a quantised network: send the float32 one that it was made from"
_STEP = (
    "remainders of activations have no bound (Floor, Ceil, Round and Sign do): leave them out of "
    "the network, or out of the export"
)
_POLES = (
    "what has poles, or no value on a part of the line, has no bounds: Sin, Cos, Atan and Tanh are "
    "taken; compute other such features outside the model, and send them"
)
_HYPERBOLIC = "write it with Exp, Log and Sqrt, which are taken, or train with Tanh in its place"
_RECURRENT = (
    "recurrent layers and control flow are not certified: unroll them before the export (Keras "
    "with torch's backend does so by itself: KERAS_BACKEND=torch, model.export)"
)
_NO_OPERATOR = (
    "ONNX has no operator of this name: the exporter left it as it was, and nothing runs the file "
    "(Keras: model.export with KERAS_BACKEND=torch writes other operators)"
)
#: What to do about operators that are not supported.
ADVICE = {
    **dict.fromkeys(("Equal", "Or", "Xor"), JUMPS),
    "And": f"{JUMPS}; orthogonium's HouseHolder_Order_2 is 0 where an angle is rounded to the end "
    "of its last sector: HouseHolder, of order 1, is taken",
    "Not": f"{JUMPS}; scikit-learn's SGDClassifier of three classes or more: export its scores "
    '(skl2onnx: options={id(model): {"raw_scores": True}}), for its sigmoids are often alike',
    "Einsum": "write it as a product with a matrix (torch: x @ weight)",
    "Mod": _STEP,
    **dict.fromkeys(("Acos", "Acosh", "Asin", "Atanh", "Tan"), _POLES),
    **dict.fromkeys(("Asinh", "Cosh", "Sinh"), _HYPERBOLIC),
    **dict.fromkeys(("GRU", "If", "LSTM", "Loop", "RNN", "Scan"), _RECURRENT),
    **dict.fromkeys(
        ("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"), _QUANTISED
    ),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QuantizeLinear"), _QUANTISED),
}
#: How many kinds of unknown operators an error names.
NAMED_OPERATORS = 8


def refuse_unknown_operators(graph: GraphProto) -> None:
    """Raise ModelError (unsupported_operator) that names every operator that is not supported."""
    unknown: dict[str, list[str]] = {}
    for index, node in enumerate(graph.node):
        if not any(node.op_type in table for table in _TABLES):
            where = f"node {node.name!r}" if node.name else f"node #{index}"
            unknown.setdefault(node.op_type, []).append(where)
    if not unknown:
        return
    named = [_named(kind, places) for kind, places in [*unknown.items()][:NAMED_OPERATORS]]
    if len(unknown) > len(named):
        named.append(f"{len(unknown) - len(named)} more")
    many = len(named) > 1
    advice = dict.fromkeys(
        ADVICE.get(kind) or (_NO_OPERATOR if not defs.has(kind) else "") for kind in unknown
    )
    advice.pop("", None)
    hint = "; ".join([*advice, "supported operators: " + ", ".join(SUPPORTED_OPERATORS)])
    if all(kind in FINAL_OPERATORS for kind in unknown):
        hint = "export the logits, before any softmax"
    raise ModelError(
        f"the operator{'s' * many} {', '.join(named)} {'are' if many else 'is'} not supported",
        code="unsupported_operator",
        hint=hint,
    )


def _named(kind: str, places: list[str]) -> str:
    where = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
    if kind in FINAL_OPERATORS:
        where += "; it is supported only as the very last one, when nothing else reads its output"
    return f"{kind!r} ({where})"
