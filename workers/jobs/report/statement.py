"""What a report guarantees and what it does not, in words for the person who relies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

__all__ = ["claim_about", "claim_of_rewritten", "statement"]

_SOUND = (
    "Every sample counted as certified is classified correctly, and no input within the stated "
    "{norm} distance of it{clip} changes the answer. This is proved, not sampled, and it holds for "
    "the float32 network as ONNX Runtime runs it on a CPU with graph optimisations off, the "
    "normalisation included, in any order of summation."
)
_UNLABELLED = (
    "The data set has no labels: what is certified is that no input within the stated {norm} "
    "distance of a sample{clip} changes the network's own prediction, right or wrong. This is "
    "proved, not sampled, and it holds for the float32 network as ONNX Runtime runs it on a CPU "
    "with graph optimisations off, the normalisation included, in any order of summation."
)
_ESTIMATE = (
    "ESTIMATE - NOT A PROOF. The figures follow a published method's own arithmetic, which may "
    'overstate what is certified. Nothing is guaranteed; ask for soundness "sound" instead.'
)
_PROBABLE = (
    " The statements about all samples hold together except with probability at most {probability}."
)
_ANY_BATCH = " It holds for every row of a batch of any size."
_ONE_ROW = " It holds for batch 1: the file runs one input at a time."
_ROWS = " It holds for every row of a batch of {batch}, the only size that the file takes."
_REWRITTEN = (
    " It is about the file {id}, which is NOT the uploaded one: this service made it of the upload "
    "{upload}, wide sums written as sums of partial sums, and the order of summation is any inside "
    "each of its operators. Of the uploaded file nothing is guaranteed: deploy the rewritten one, "
    "GET /models/{id}/onnx."
)
_LIMITS = (
    "Nothing is said about inputs farther away, about other kinds of change ({changes}), about "
    "{inputs} outside this data set, or about the network on other hardware "
    "or in lower precision. An undecided sample may be robust or not: no bound proved it and no "
    "attack broke it. An accuracy that an attack left over is no guarantee; it only shows how much "
    "more could be proved at best."
)

#: Classes whose names a statement lists.
_NAMED = 10
#: Words for what an image is made of and may suffer, and for any other input.
_IMAGE = {"parts": "pixels", "inputs": "images", "changes": "rotation, blur, another camera"}
_FEATURES = {
    "parts": "features",
    "inputs": "inputs",
    "changes": "missing values, other units, another source of the data",
}


def statement(
    *,
    norm: str,
    soundness: str,
    valid: str | None,
    labelled: bool,
    failure_probability: float,
    batch: Literal["any"] | int = "any",
    about: str = "",
    file: str = "",
    image: bool = True,
) -> str:
    """Two paragraphs, an empty line between them: what is guaranteed, and what is not.

    ``valid``: the range that inputs stay in, in words; ``batch``: the batches that the deployed
    file takes; ``about``: which of its answers it is about (``claim_about``); ``file``: which file
    it is about, where that is not the uploaded one (``claim_of_rewritten``); ``image``: the samples
    are images, not features of any other kind.
    """
    words = _IMAGE if image else _FEATURES
    limits = _LIMITS.format(**words)
    if soundness != "sound":
        return f"{_ESTIMATE}{file}\n\n{limits}"
    text = (_SOUND if labelled else _UNLABELLED).format(
        norm=norm, clip=f" whose {words['parts']} stay in {valid}" if valid else ""
    )
    text += _ANY_BATCH if batch == "any" else _ONE_ROW if batch == 1 else _ROWS.format(batch=batch)
    text += about + file
    if failure_probability > 0:
        text += _PROBABLE.format(probability=f"{failure_probability:.2g}")
    return f"{text}\n\n{limits}"


def claim_of_rewritten(made: Mapping[str, Any] | None) -> str:
    """Sentences on the file that was certified in place of the uploaded one; empty without one.

    made: its id, and ``from``: id and name of the upload.
    """
    return "" if made is None else _REWRITTEN.format(id=made["id"], upload=made["from"]["id"])


def claim_about(
    output: str | None,
    others: Sequence[str],
    *,
    binary: bool,
    dropped: str | None,
    names: Sequence[str] = (),
) -> str:
    """Sentences on what the answer is, where the file has several outputs or one score, or names
    its classes; else empty.

    output, others: the file's output with the scores, and those left out; dropped: what was left
    out behind the logits; names: of the classes, in the order of their numbers.
    """
    text = ""
    if names:
        listed = [f"class {place} is {name[:60]!a}" for place, name in enumerate(names[:_NAMED])]
        more = ", and so on" if len(names) > _NAMED else ""
        text += f" The file names its classes: {', '.join(listed)}{more}."
    if others:
        text += (
            f" It is about the output {output!r} of the file, and says nothing about its other "
            f"outputs ({', '.join(map(repr, others))})."
        )
    if binary:
        above = "0.5 after the Sigmoid, 0 before it" if dropped else "0"
        text += (
            f" The file gives one score: the answer is class 1 where it is above {above}, class 0 "
            "where it is below, and neither where it is equal."
        )
    if dropped is not None and "ArgMax" in dropped:
        text += (
            " The file answers with the number of a class: it is certified through the scores "
            "before the final ArgMax, of which the class's is strictly the largest."
        )
    return text
