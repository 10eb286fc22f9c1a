"""What float32 takes of radii in closed form is noted, and what keeps them is said."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from models.layers.kinds import Linear, ReLU
from models.network import INPUT, Network
from service.contract.schemas.submissions import Spec
from tests.workers.verification.certification import certify
from workers.jobs.report.remarks import MUCH, lost_to_float32

WIDE, NARROW = 1024, 16


def orthogonal_network(width: int) -> Network:
    """Three orthogonal layers between ReLUs, and a head of small margins."""
    torch.manual_seed(width)
    rows = []
    last = INPUT
    for number in range(3):
        weight = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0].float()
        rows.append((f"dense{number}", Linear(weight, torch.zeros(width)), (last,)))
        rows.append((f"relu{number}", ReLU(), (f"dense{number}",)))
        last = f"relu{number}"
    head = torch.randn(3, width) / width**0.5
    rows.append(("head", Linear(1e-3 * head, torch.zeros(3)), (last,)))
    return Network((width,), rows).eval()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_share_of_every_eighth_sample_is_noted(width: int) -> None:
    x = np.random.default_rng(0).random((17, width)).astype(np.float32)
    found = certify(
        orthogonal_network(width), x, ("1/1000",), method="lipschitz", clip=False, attack=None
    )
    notes = found.notes["lost_to_float32"]
    assert [note["index"] for note in notes] == [0, 8, 16]
    shares = [note["share"] for note in notes]
    assert all(0.0 <= share <= 1.0 for share in shares)
    if width == NARROW:
        assert max(shares) < MUCH
        return
    # The radius that is certified is the rest of what exact arithmetic would have.
    exact = certify(
        orthogonal_network(width), x, ("1/1000",), method="lipschitz", clip=False, attack=None,
        soundness="estimate",
    )  # fmt: skip
    assert "lost_to_float32" not in exact.notes
    kept = found.radius[[0, 8, 16]] / exact.radius[[0, 8, 16]]
    assert np.abs(1.0 - kept - shares).max() < 0.02
    assert min(shares) > MUCH


def test_no_share_without_radii() -> None:
    x = np.random.default_rng(0).random((1, NARROW)).astype(np.float32)
    found = certify(orthogonal_network(NARROW), x, (Fraction(1, 100),), clip=False, radius=False)
    assert "lost_to_float32" not in found.notes


@pytest.mark.parametrize(
    ("summation", "shares", "said"),
    [
        ("as-uploaded", (0.3, 0.37, 0.9), "37%"),
        ("as-uploaded", (0.0, 0.01, 0.9), None),
        ("as-uploaded", (), None),
        ("partial-sums", (0.3, 0.37, 0.9), None),
    ],
)
def test_the_report_says_what_to_do(
    summation: str, shares: tuple[float, ...], said: str | None
) -> None:
    spec = Spec.model_validate({"norm": "l2", "epsilons": ["1/10"], "summation": summation})
    notes = [
        {"index": 8 * place, "by": "lipschitz", "share": share}
        for place, share in enumerate(shares)
    ]
    found = lost_to_float32(spec, {"lost_to_float32": notes})
    assert len(found) == (said is not None)
    if said is not None:
        assert said in found[0]
        assert '"summation": "partial-sums"' in found[0]
