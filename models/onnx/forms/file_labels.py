"""The labels that a file gives beside its scores, on the samples themselves.

``models.onnx.forms.answers`` follows what stands between scores and labels as far as it can be
followed. Of the rest nothing is known from the graph alone, so the file is run: where the label of
a sample is not the class of its largest score, the file's answer is not the one that would be
certified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto

from models.errors import ModelError
from models.onnx.forms.inputs import take_floats
from models.onnx.forms.outputs import choose_output, cut_away_unneeded
from models.onnx.forms.signature import signature_for
from models.onnx.operators.supported import SUPPORTED_OPERATORS
from models.onnx.safety import parse_onnx
from models.onnx.session import open_session

__all__ = ["StatedLabels", "refuse_other_labels"]

#: Types that a label may have, whatever the scores' is. A truth value is one of two classes; beside
#: more classes it is a remark.
_TYPES = (
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    *(TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL),
)
#: What stands between scores and labels, beside the operators of networks. All of them end at once
#: and make nothing much larger than what they are given.
_OF_LABELS = (
    *("And", "ArgMax", "ArgMin", "ArrayFeatureExtractor", "Binarizer", "BitShift", "BitwiseAnd"),
    *("BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "CumSum", "Equal", "Gather"),
    *("GatherElements", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "LabelEncoder"),
    *("Less", "LessOrEqual", "Mod", "Normalizer", "Not", "OneHot", "Or", "Size", "TopK", "Where"),
    "Xor",
)
#: A class is beyond doubt where its score leads by so much of the largest score.
CLEAR = 1e-3
#: Samples that are looked at, inputs with shuffled numbers beside them, and rows of one run.
MOST, SHUFFLED, ROWS = 192, 64, 32


@dataclass(frozen=True)
class StatedLabels:
    """file: an ONNX file that holds all its weights; output: the one of its outputs that was taken
    for the scores; others: those that were left out; names: of the classes, in the order of the
    scores, by which such an output may call them."""

    file: bytes
    output: str
    others: Sequence[str]
    names: Sequence[str] = ()


def refuse_other_labels(
    stated: StatedLabels,
    x: NDArray[np.float32],
    deployed: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    given: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    gap: float = 0.0,
    seed: int = 0,
) -> None:
    """Raise ModelError (other_labels) where a label that the file gives is not the class of the
    largest score, on these samples or on such whose numbers are shuffled.

    x: float32 [N, ...]; deployed: their logits [N, classes], which are what is certified; given:
    what the file is given for them; gap: by how much a logit must lead to be the file's answer. An
    output of whole numbers of any type or of names, one for each sample, is its label, unless its
    numbers are no classes, do not follow the class either, and are not the class where they are
    one (a file that declines to answer elsewhere); inputs without a clear class are left out.
    """
    x = x[:MOST]
    rows = np.resize(x.reshape(len(x), -1), (SHUFFLED, x[0].size))
    rows = np.random.default_rng(seed).permuted(rows, axis=1)
    x = np.concatenate([x, rows.reshape(-1, *x.shape[1:])])
    logits, x = deployed(x), given(x)
    top = np.sort(logits, axis=1)[:, -2:]
    lead = top[:, 1].astype(np.float64) - top[:, 0]
    # Behind a softmax or a sigmoid less than the gap may be a tie, of which the first is named.
    clear = (lead > CLEAR * np.abs(logits).max(axis=1)) & (lead > gap)
    classes, count = logits.argmax(axis=1), logits.shape[1]
    for name in stated.others:
        labels = _labels(stated, name, x)
        if labels is None or (labels.dtype == np.bool_ and count != 2):
            continue
        known = clear[: len(labels)]
        theirs, own = labels.astype(np.int64)[known], classes[: len(labels)][known]
        wrong = theirs != own
        is_label = _are_classes(theirs, count) or _follow(theirs, own)
        is_label = is_label or _declines(theirs, own, count)
        if not wrong.any() or not is_label:
            continue
        first = int(np.flatnonzero(known)[wrong.argmax()])
        raise ModelError(
            f"the output {name!r} of the file gives the label {int(labels[first])} where the "
            f"largest score in {stated.output!r} is that of class {classes[first]} (so it is with "
            f"{int(wrong.sum())} of {len(wrong)} inputs that were tried)",
            code="other_labels",
            hint="certified is the class of the largest score: number the classes by place and let "
            "the label be that class, or, if the label means something else, name the output with "
            f'the scores in the spec: "output": "{stated.output}"',
        )


def _are_classes(labels: NDArray[np.int64], count: int) -> bool:
    return bool(((labels >= 0) & (labels < count)).all())


def _follow(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> bool:
    """Whether each of several classes has a label of its own."""
    pairs = {*zip(classes.tolist(), labels.tolist(), strict=True)}
    seen, called = ({pair[place] for pair in pairs} for place in range(2))
    return 1 < len(pairs) == len(seen) == len(called)


def _declines(labels: NDArray[np.int64], classes: NDArray[np.int64], count: int) -> bool:
    """Whether it is the class of several where it is one at all: what a file says of the others,
    -1 for one, is its answer, too."""
    given = (labels >= 0) & (labels < count)
    same = bool((labels[given] == classes[given]).all())
    return same and len(np.unique(classes[given])) > 1


def _reads_input(graph: GraphProto) -> bool:
    """Whether the output is computed from the input's numbers, and not from its sizes alone."""
    makers = {name: node for node in graph.node for name in node.output if name}
    wanted, seen = [value.name for value in graph.output], set[str]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        node = makers.get(name)
        if node is not None and node.op_type not in ("Shape", "Size"):
            wanted.extend(node.input)
    constants = {tensor.name for tensor in graph.initializer}
    return any(value.name in seen for value in graph.input if value.name not in constants)


def _whole(labels: NDArray[Any], places: Mapping[str, int]) -> NDArray[Any] | None:
    """Numbers as int64, names as their places, truth values as they are; None: some number is not
    whole."""
    if labels.dtype.kind not in "biuf":
        return np.array([places.get(str(label), -1) for label in labels.tolist()], np.int64)
    if labels.dtype == np.bool_:
        return labels
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    return whole if bool((whole == labels).all()) else None


def _labels(stated: StatedLabels, name: str, x: NDArray[np.float32]) -> NDArray[Any] | None:
    """An output's whole numbers or truth values, whatever their type, or the places of its names,
    one for each sample; None: it is another one, or is not run."""
    model = parse_onnx(stated.file)
    graph = model.graph
    declared = {value.name: value for value in graph.output}[name]
    if declared.type.WhichOneof("value") != "tensor_type":
        return None
    kind = declared.type.tensor_type.elem_type
    if kind not in _TYPES and not (kind == TensorProto.STRING and stated.names):
        return None
    places = {name: place for place, name in enumerate(stated.names)}
    choose_output(graph, name)
    cut_away_unneeded(graph)
    if any(node.op_type not in (*SUPPORTED_OPERATORS, *_OF_LABELS) for node in graph.node):
        return None
    if not _reads_input(graph):
        return None
    try:
        take_floats(graph)
        signature = signature_for(graph, x.shape[1:])
        session = open_session(model.SerializeToString())
    except Exception:  # noqa: BLE001 - whatever ONNX Runtime raises
        return None

    for step in dict.fromkeys((signature.batch or ROWS, signature.batch or 1)):
        found = list[NDArray[Any]]()
        for start in range(0, len(x) // step * step, step):
            rows = x[start : start + step]
            try:
                (labels,) = session.run(
                    None, {signature.name: rows.reshape(signature.of_graph(step))}
                )
            except Exception:  # noqa: BLE001 - the same
                break
            whole = _whole(labels.reshape(-1), places) if labels.size == step else None
            if whole is None:
                return None
            found.append(whole)
        else:
            return np.concatenate(found) if found else None
    return None
