"""The head of a compiled network: the last dense map, or none at all.

A network may also end in another layer; its logits are then the values themselves. That is the
identity, which nothing here writes out: of 40,000 outputs it would take 12.8 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from workers.verification.graph.affine import FLOAT32_SAFE, Inner
from workers.verification.numerics import MANY, raised, up
from workers.verification.rounding import Rounding
from workers.verification.summation import Summation

__all__ = ["Head"]

#: Classes of which all pairs of rows are held; of more, those of the labels asked for are made.
ALL_PAIRS = 1024
#: Numbers of a weight whose absolute values and squares are held too; of a larger one these are
#: made anew each time, so many numbers at once.
HELD, PART = 2**24, 2**20


@dataclass(frozen=True)
class Head:
    """The last dense map: logits = weight z + bias, float64.

    ``dense`` [classes, features]: the weight; None: the identity, the logits are z itself;
    ``terms`` rounding steps of the deployed evaluation (0: the logits are z itself), ``inner`` what
    it holds in between, ``gap`` by how much a logit must lead for the deployed answer to be its.
    ``magnitude`` [classes, features] >= 0: what the deployed evaluation multiplies |z| with, where
    that is more than |weight| (None: it is |weight|). summation, bias_square: as an ``Affine`` has
    them; None: not known.
    """

    dense: Tensor | None
    bias: Tensor
    bias_magnitude: Tensor
    terms: float
    inner: Inner = field(default_factory=Inner)
    gap: float = 0.0
    magnitude: Tensor | None = None
    summation: Summation | None = None
    bias_square: Tensor | None = None
    _copies: dict[torch.device, Head] = field(default_factory=dict, repr=False, compare=False)

    @property
    def floor(self) -> float:
        """What underflow may change in one logit, in units of ``rounding.UNDERFLOW``."""
        return self.terms + 1.0 + self.inner.lost

    def min_lead(self, rounding: Rounding) -> float:
        """What a margin loses beside relative errors: by underflow, and behind the logits."""
        return rounding.underflow * self.floor + self.gap if rounding.is_sound else 0.0

    @property
    def classes(self) -> int:
        """Logits."""
        return len(self.bias)

    @property
    def features(self) -> int:
        """Numbers that each logit is made of."""
        return len(self.bias) if self.dense is None else self.dense.shape[1]

    @property
    def multiplications(self) -> int:
        """Of one sample."""
        return 0 if self.dense is None else self.dense.numel()

    @cached_property
    def weight(self) -> Tensor:
        """The weight [classes, features], written out: for bounds of small networks."""
        if self.dense is not None:
            return self.dense
        return torch.eye(self.classes, dtype=torch.float64, device=self.bias.device)

    def logits(self, values: Tensor) -> Tensor:
        """[..., classes] float64 of values [..., features] float64."""
        return (values if self.dense is None else values @ self.dense.T) + self.bias

    def spread(self, sizes: Tensor) -> Tensor:
        """What values of these sizes [batch, features] make of each logit at most, bias apart."""
        if self.dense is None:
            return sizes
        if self.dense.numel() <= HELD:
            return sizes @ self.absolute
        rows = self.dense if self.magnitude is None else self.magnitude
        return torch.cat([sizes @ rows[part].abs().T for part in self.parts()], dim=-1)

    def sizes(self, sizes: Tensor) -> Tensor:
        """The same, the bias included."""
        return self.spread(sizes) + self.bias_magnitude

    def root_of_squares(self, values: Tensor) -> Tensor:
        """(sum_i w_i^2 z_i^2)^1/2 of values [..., features], [..., classes]."""
        squares = values.square()
        if self.dense is None:
            return squares.sqrt()
        if self.dense.numel() <= HELD:
            return (squares @ self.squares).sqrt()
        parts = [squares @ self.dense[part].square().T for part in self.parts()]
        return torch.cat(parts, dim=-1).sqrt()

    def parts(self, each: int | None = None) -> Iterator[slice]:
        """All classes, some at a time: so many, or what ``PART`` numbers of a dense weight are."""
        size = max(1, PART // self.features) if each is None else each
        for start in range(0, self.classes, size):
            yield slice(start, min(start + size, self.classes))

    def combined(self, factors: Tensor) -> Tensor:
        """factors [n, classes] times the weight, [n, features]."""
        return factors if self.dense is None else factors @ self.dense

    def differences(self, first: Tensor, second: Tensor) -> Tensor:
        """w_i - w_j for classes i of ``first`` and j of ``second`` [n], [n, features]."""
        if self.dense is not None:
            return self.dense[first] - self.dense[second]
        rows = torch.zeros(len(first), self.classes, dtype=torch.float64, device=first.device)
        place = torch.arange(len(first), device=first.device)
        rows[place, first] += 1.0
        rows[place, second] -= 1.0
        return rows

    def float32_safe(self) -> bool:
        """Whether a float32 copy of the weights loses no more than one rounding each."""
        if self.dense is None:
            return True
        low, high = FLOAT32_SAFE
        size = self.dense.abs()
        return not bool((((size > 0) & (size < low)) | (size > high)).any())

    @cached_property
    def absolute(self) -> Tensor:
        """|weight|, or ``magnitude``, transposed: [features, classes]."""
        size = self.weight.abs() if self.magnitude is None else self.magnitude
        return size.T.contiguous()

    @cached_property
    def squares(self) -> Tensor:
        """weight squared, transposed: [features, classes]."""
        return self.weight.square().T.contiguous()

    @cached_property
    def row_norms(self) -> Tensor:
        """|w_j|_2, or of ``magnitude``, for every class, [classes], rounded up."""
        rows = self.dense if self.magnitude is None else self.magnitude
        norms = torch.ones_like(self.bias) if rows is None else rows.norm(dim=1)
        return raised(norms, MANY)

    @cached_property
    def pair_norms(self) -> Tensor:
        """|w_i - w_j|_2 for every pair of classes, [classes, classes], rounded up."""
        return self._distances(torch.arange(self.classes, device=self.bias.device))

    def pair_norms_of(self, labels: Tensor) -> Tensor:
        """The same for pairs with these labels [batch], [batch, classes]."""
        if self.dense is not None and self.classes <= ALL_PAIRS:
            return self.pair_norms[labels]
        return self._distances(labels)

    def _distances(self, labels: Tensor) -> Tensor:
        if self.dense is None:
            pairs = torch.full((len(labels), self.classes), 2.0, device=labels.device).double()
            pairs = pairs.sqrt().scatter(1, labels[:, None], 0.0)
        else:
            exact = "donot_use_mm_for_euclid_dist"
            pairs = torch.cdist(self.dense[labels], self.dense, compute_mode=exact)
        # Weights of fused maps are rounded themselves.
        return raised(pairs, MANY) + self.row_norms.max() * (up(64) - 1.0)

    def on(self, device: torch.device) -> Head:
        """The same head with its tensors on ``device``."""
        if device == self.bias.device:
            return self
        if device not in self._copies:
            self._copies[device] = Head(
                None if self.dense is None else self.dense.to(device),
                self.bias.to(device),
                self.bias_magnitude.to(device),
                self.terms,
                self.inner,
                self.gap,
                None if self.magnitude is None else self.magnitude.to(device),
                self.summation,
                None if self.bias_square is None else self.bias_square.to(device),
            )
        return self._copies[device]
