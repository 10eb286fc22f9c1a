"""Random-start norms: they fail less often than stated, and only where they were asked for."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch

from models.layers.kinds import ReLU
from tests.extent import examples
from tests.workers.verification.bounds.masked_maps import masked_case, random_map
from tests.workers.verification.certification import arithmetic, certify, images
from tests.workers.verification.networks import saturated_network
from workers.verification.bounds import local_lipschitz
from workers.verification.bounds.local_lipschitz import local_margins, randomized_local_margins
from workers.verification.forward.local_pass import LocalPass
from workers.verification.graph.affine_maps import Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms import lanczos
from workers.verification.norms.lanczos import (
    FailureBudget,
    lanczos_norms,
    largest_root,
    tridiagonal,
)
from workers.verification.region import Region


def seeds(count: int, offset: int = 0) -> list[bytes]:
    return [hashlib.sha256(f"{offset} {i}".encode()).digest() for i in range(count)]


def diagonal_map(values: torch.Tensor) -> Dense:
    """A dense map with these singular values."""
    size = values.numel()
    zero = torch.zeros((), dtype=torch.float64)
    return Dense((size,), (size,), zero, zero, size + 2, weight=torch.diag(values.double()))


def spectra(size: int) -> dict[str, torch.Tensor]:
    """Spectra whose largest value is easily missed."""
    line = torch.linspace(0, 1, size).double()
    lone = torch.full((size,), 0.5).double()
    lone[0] = 1.0
    near = line * 0.999
    near[-1] = 1.0
    chebyshev = torch.cos(torch.arange(size).double() * math.pi / size).abs() * 0.9
    chebyshev[0] = 1.0
    return {"line": line, "lone": lone, "near": near, "chebyshev": chebyshev}


@pytest.mark.parametrize("name", ["line", "lone", "near", "chebyshev"])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 30])
def test_it_fails_less_often_than_stated(name: str, steps: int) -> None:
    op = diagonal_map(spectra(120)[name])
    count, delta = 400, 0.05
    ones = torch.ones(count, 120, dtype=torch.float64)
    ceiling = torch.full((count,), 1e3, dtype=torch.float64)
    options = {"absolute": 1.0, "delta": delta, "steps": steps}
    found = lanczos_norms(op, ones, ones, seeds(count), ceiling, **options)  # type: ignore[arg-type]
    # The mean is below delta; three standard deviations of a binomial above it would be chance.
    assert int((found < 1.0).sum()) <= count * delta
    if steps == 30:
        assert float(found.median()) < 1.05


def test_one_start_alone_fails_no_more_often_than_its_share() -> None:
    """The single event behind it, without the second start: |v.q| < t."""
    op = diagonal_map(spectra(60)["lone"])
    count, share = 4000, 0.1
    ones = torch.ones(count, 60, dtype=torch.float64)
    start = torch.randn(count, 60, generator=torch.Generator().manual_seed(0)).double()
    small = torch.full((count,), share * math.sqrt(math.pi / 120)).double()
    for steps in (1, 2, 3, 6):
        system = tridiagonal(op, ones, ones, start, steps, 1e-14)
        root = largest_root(system, small, torch.full((count,), 1e4).double())
        assert int((root < 1.0).sum()) <= count * share + 3 * math.sqrt(count * share)


def test_a_start_without_the_top_vector_is_what_may_go_wrong() -> None:
    """A start orthogonal to it finds the second value: the probability is not for show."""
    op = diagonal_map(spectra(60)["lone"])
    ones = torch.ones(1, 60, dtype=torch.float64)
    start = torch.randn(1, 60, generator=torch.Generator().manual_seed(0)).double()
    start[0, 0] = 0.0
    system = tridiagonal(op, ones, ones, start, 6, 1e-16)
    small = torch.full((1,), 1e-3).double()
    assert float(largest_root(system, small, torch.full((1,), 4.0).double())) < 1.0
    # A rounding error as large as the component hides it: then nothing may be concluded.
    blurred = tridiagonal(op, ones, ones, start, 6, 1e-2)
    assert float(largest_root(blurred, small, torch.full((1,), 4.0).double())) >= 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e10])
def test_masked_norms_hold_and_converge_on_random_maps(scale: float) -> None:
    for seed in range(examples(6)):
        op = random_map(seed, scale)
        masked, slopes, exact = masked_case(op, seed, torch.float64)
        least = masked.frobenius(slopes)
        found = lanczos_norms(
            op,
            masked.mask,
            slopes,
            seeds(len(exact), seed),
            least,
            absolute=float(op.weight.abs().sum()),
            delta=1e-13,
            steps=40,
        )
        assert bool((found >= exact * (1 - 1e-12)).all())
        assert bool((torch.minimum(found, least)[:3] <= exact[:3] * 1.1 + scale * 1e-9).all())


def try_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random starts on every layer, however little they promise."""

    def promising(self: LocalPass, rows: torch.Tensor, *, gram: bool) -> dict[int, torch.Tensor]:
        return {index: torch.full((len(rows),), 1e-9).double() for index in self.parts}

    def all_layers(
        self: LocalPass, potentials: dict[int, torch.Tensor], needed: torch.Tensor
    ) -> dict[int, torch.Tensor]:
        return {index: values < 1.0 for index, values in potentials.items()}

    monkeypatch.setitem(local_lipschitz.HOPE, "lanczos", 1e9)
    monkeypatch.setattr(LocalPass, "potentials", promising)
    monkeypatch.setattr(LocalPass, "cheapest", all_layers)


def test_starts_depend_on_the_sample_and_not_on_its_batch_and_failures_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try_everywhere(monkeypatch)
    network = saturated_network(1, ReLU())
    compiled = CompiledNetwork.compile(network)
    x = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = network(x).argmax(1)
    epsilon = torch.full((4,), 0.8, dtype=torch.float64)
    failure_budget = FailureBudget()
    with torch.no_grad():
        plain = local_margins(
            compiled, Region(x, epsilon, "l2", True), labels, *arithmetic(torch.float64)
        )
        together = randomized_local_margins(
            failure_budget,
            compiled,
            Region(x, epsilon, "l2", True),
            labels,
            *arithmetic(torch.float64),
        )
        open_rows = ~(plain > 0).all(1)
        assert int(open_rows.sum()) > 0
        assert failure_budget.failure_probability == pytest.approx(1e-10 * int(open_rows.sum()))
        for row in range(4):
            one = slice(row, row + 1)
            alone = randomized_local_margins(
                FailureBudget(),
                compiled,
                Region(x[one], epsilon[one], "l2", True),
                labels[one],
                *arithmetic(torch.float64),
            )
            assert torch.allclose(alone[0], together[row], rtol=1e-6)
    assert bool((together >= plain).all())


def test_starts_depend_on_everything_that_slopes_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a bias could turn the top vector of known weights away from known starts."""
    try_everywhere(monkeypatch)
    seen: list[list[bytes]] = []

    def recorded(*args: Any, **options: Any) -> torch.Tensor:
        seen[-1].extend(args[3])
        return torch.full_like(args[4], torch.inf)

    monkeypatch.setattr(lanczos, "lanczos_norms", recorded)
    x = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    epsilon = torch.full((1,), 0.8, dtype=torch.float64)
    for bias, clip in ((0.0, True), (1e-3, True), (0.0, False)):
        network = saturated_network(1, ReLU())
        biases = [t for name, t in network.state_dict().items() if name.endswith("bias")]
        biases[0] += bias
        seen.append([])
        with torch.no_grad():
            randomized_local_margins(
                FailureBudget(),
                CompiledNetwork.compile(network),
                Region(x, epsilon, "l2", clip),
                network(x).argmax(1),
                *arithmetic(torch.float64),
            )
    assert all(seen)
    first, second, third = map(set, seen)
    assert not (first | third) & second
    assert not first & third


def test_what_is_deterministic_takes_no_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(FailureBudget, "norms", never)
    network = saturated_network(2, ReLU())
    compiled = CompiledNetwork.compile(network)
    x = torch.rand(4, 2, 8, 8)
    region = Region(x, torch.full((4,), 0.8, dtype=torch.float64), "l2", True)
    with torch.no_grad():
        local_margins(compiled, region, network(x).argmax(1), *arithmetic(torch.float64))


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_cascade_reports_the_failure_probability(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_everywhere(monkeypatch)
    network, x = saturated_network(1, ReLU()), images(1, 2)
    found = certify(
        network, x, ("1/2",), method="local-lip", deterministic=deterministic, attack=None
    )
    if deterministic:
        assert "failure_probability" not in found.notes
    else:
        assert 0 < found.notes["failure_probability"] <= 1e-10 * len(x)
