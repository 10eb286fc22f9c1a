"""The model of floating-point errors: unit roundoffs, gamma_n, and the switches that must be off.

Every enclosure of this package holds for the DEPLOYED float32 network: one that evaluates each
layer in float32 in any summation order, with or without fused multiply-add. A dot product of n
terms then differs from the real one by at most gamma_n sum |w_i x_i| (Higham 2002, section 3.1).
The verifier's own arithmetic (float32 or float64) is bounded the same way; docs/soundness.md says
where each error is paid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

__all__ = [
    "FLOAT32_MAX",
    "SIGMOID_GAP",
    "SOFTMAX_GAP",
    "Rounding",
    "answer_gap",
    "exact_arithmetic",
    "gamma",
    "overflow_ceiling",
    "unit_roundoff",
]

#: Unit roundoff of IEEE binary32 and binary64, round to nearest.
U32 = 2.0**-24
U64 = 2.0**-53

#: Unit roundoff of a deployed network that does not round: not 0, which stands for estimates.
NO_ROUNDING = 2.0**-500

#: Largest finite float32, a little rounded down: beyond it the deployed network may overflow.
FLOAT32_MAX = 3.4e38

#: A logit that leads by more than this is strictly on top behind a float32 Softmax or LogSoftmax,
#: too: exp(-2^-18) is 64 unit roundoffs below exp(0) = 1, of which exp, sum and division take a
#: few; and a LogSoftmax of up to 2^23 classes rounds to 2^-20 at most.
SOFTMAX_GAP = 2.0**-18

#: Behind a Sigmoid, where scores are (0, z) or (-z, z): then |z| > 2^-17, and a float32 Sigmoid
#: that is off by 1e-6 (``layers.smooth.s_shaped``) is on z's side of 1/2 by more than 8e-7.
SIGMOID_GAP = 2.0**-16

#: By how much a logit must lead, by the operator at the end that was left out.
ANSWER_GAPS = {
    "ArgMax": 0.0,
    "LogSoftmax": SOFTMAX_GAP,
    # Of probabilities, which it divides by their sum: two roundings more.
    "Normalizer": SOFTMAX_GAP,
    "Sigmoid": SIGMOID_GAP,
    "Softmax": SOFTMAX_GAP,
}

#: Absolute error that underflow (gradual or flushed to zero) may add per term of a dot product.
UNDERFLOW = 2.0**-120


def answer_gap(dropped_output: str | None) -> float:
    """A logit that leads by more than this is the file's answer, whatever of ``ANSWER_GAPS`` stands
    behind the logits (``Network.dropped_output``: names joined by "and"). Raises KeyError."""
    names = [] if dropped_output is None else dropped_output.split(" and ")
    return max([0.0, *(ANSWER_GAPS[name] for name in names)])


def unit_roundoff(dtype: torch.dtype) -> float:
    """2^-24 for float32, 2^-53 for float64."""
    return {torch.float32: U32, torch.float64: U64}[dtype]


def gamma(terms: float, unit: float) -> float:
    """gamma_n = n u / (1 - n u), a little rounded up; infinite where n u is not small."""
    product = terms * unit
    if not product < 0.5:
        return float("inf")
    return product / (1.0 - product) * (1.0 + 1e-12)


def overflow_ceiling(terms: float) -> float:
    """The largest |W| |z| + |b| at which no partial sum of a deployed operator overflows float32.

    terms: its rounding steps. Two percent are left for computing that magnitude.
    """
    return FLOAT32_MAX / (1.02 + gamma(terms, U32))


@dataclass(frozen=True)
class Rounding:
    """Unit roundoffs of the deployed network and of the verifier's own arithmetic.

    Both zero is the papers' arithmetic (``soundness: "estimate"``): no rounding is accounted for.
    """

    #: Roundings of the verifier's bookkeeping beside those of an operator.
    BOOKKEEPING: ClassVar[int] = 8

    deployed: float
    own: float

    @classmethod
    def sound(cls, dtype: torch.dtype) -> Rounding:
        """Deployed in float32, verified in ``dtype``."""
        return cls(U32, unit_roundoff(dtype))

    @classmethod
    def real(cls, dtype: torch.dtype) -> Rounding:
        """The network in exact arithmetic, verified in ``dtype``: evaluations with next to no error
        of their own, of which the exact one is one."""
        return cls(NO_ROUNDING, unit_roundoff(dtype))

    @classmethod
    def ignored(cls) -> Rounding:
        """No rounding at all: an estimate, never a certificate."""
        return cls(0.0, 0.0)

    @property
    def is_sound(self) -> bool:
        """Whether rounding is accounted for."""
        return self.deployed > 0.0

    def deployed_gamma(self, terms: float) -> float:
        """Relative error of one deployed operator with ``terms`` rounding steps."""
        return gamma(terms, self.deployed)

    def own_gamma(self, terms: float) -> float:
        """The same for the verifier's arithmetic, with room for its bookkeeping."""
        return gamma(terms + self.BOOKKEEPING, self.own) if self.own else 0.0

    @property
    def single_operation(self) -> float:
        """Relative error of one deployed operation and of the same one here, 3 (u + u_own).

        Twice as much again is left for computing with it.
        """
        return 3 * (self.deployed + self.own)

    @property
    def underflow(self) -> float:
        """Absolute error per term through underflow."""
        return UNDERFLOW if self.is_sound else 0.0


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """IEEE arithmetic inside: no TF32, no denormals flushed to zero, no cuDNN and no NNPACK.

    The error model above covers plain dot products only; those two may choose algorithms outside it
    (Winograd, FFT).
    """
    precision = torch.get_float32_matmul_precision()
    # "highest" is IEEE on CUDA too; the switch of its own would leave torch unable to tell.
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)
    try:
        nnpack = torch.backends.nnpack.flags(enabled=False)
        with torch.backends.cudnn.flags(enabled=False), nnpack, torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
