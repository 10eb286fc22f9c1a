"""What a report guarantees and what it does not, in words for the person who relies on it."""

from __future__ import annotations

from typing import Literal

__all__ = ["statement"]

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
_BATCH = {
    "any": " It holds for every row of a batch of any size.",
    1: " It holds for batch 1: the file runs one input at a time.",
}
_LIMITS = (
    "Nothing is said about inputs farther away, about other kinds of change (rotation, blur, "
    "another camera), about images outside this data set, or about the network on other hardware "
    "or in lower precision. An undecided sample may be robust or not: no bound proved it and no "
    "attack broke it. An accuracy that an attack left over is no guarantee; it only shows how much "
    "more could be proved at best."
)


def statement(
    *,
    norm: str,
    soundness: str,
    clip: bool,
    labelled: bool,
    failure_probability: float,
    batch: Literal["any", 1] = "any",
) -> str:
    """Two paragraphs, an empty line between them: what is guaranteed, and what is not.

    ``batch``: the batches that the deployed file takes.
    """
    if soundness != "sound":
        return f"{_ESTIMATE}\n\n{_LIMITS}"
    text = (_SOUND if labelled else _UNLABELLED).format(
        norm=norm, clip=" whose pixels stay in [0, 1]" if clip else ""
    )
    text += _BATCH[batch]
    if failure_probability > 0:
        text += _PROBABLE.format(probability=f"{failure_probability:.2g}")
    return f"{text}\n\n{_LIMITS}"
