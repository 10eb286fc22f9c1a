"""The answer of a network: one rule for clean accuracy, rows of a report, attack and training.

A class is the answer where its logit is strictly the largest. Where two classes share the largest
logit there is no answer: programs differ in which of them they name, so the sample counts as wrong,
whatever its label. The same holds where a logit is NaN or infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NO_ANSWER", "answers", "label_leads"]

#: The prediction where no class is the answer.
NO_ANSWER = -1


def answers(logits: Tensor, *, gap: float = 0.0) -> Tensor:
    """The class whose logit leads every other one by more than ``gap``, else -1: int64 [N].

    logits [N, classes], two classes or more. A row that is not finite has no answer. ``gap`` is
    more than 0 behind a softmax, which may round a smaller lead to a tie.
    """
    values = logits.to(torch.float64)
    largest, classes = values.nan_to_num().topk(2, dim=1)
    leads = torch.isfinite(values).all(1) & (largest[:, 0] - largest[:, 1] > gap)
    return torch.where(leads, classes[:, 0], NO_ANSWER)


def label_leads(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label's logit is strictly the largest, bool [N]; NaN leads nothing.

    The same rule for a training step (any device, no gap, no copy in float64): logits
    [N, classes]; labels [N].
    """
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return logits.gather(1, labels[:, None])[:, 0] > others
