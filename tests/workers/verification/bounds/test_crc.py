"""Curvature certificates: never beyond the true distance, equal to it where the dual is tight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.activations import Softplus
from models.layers.kinds import Linear
from models.layers.one_lipschitz import SummedLinear
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.workers.verification.bounds.smooth_heads import (
    F64,
    head_of,
    logits,
    nearest_moves,
    nearest_wrong,
    smooth_network,
)
from tests.workers.verification.certification import certify
from workers.verification.bounds import crc
from workers.verification.bounds.crc import SmoothHead, boundary_distances, has_smooth_head
from workers.verification.bounds.crc_dual import (
    Boundary,
    Errors,
    certificate,
    closed_form,
    distance,
)
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.curvature import bounds_eigenvalues, largest_eigenvalue
from workers.verification.rounding import Rounding

IGNORED, SOUND = Rounding.ignored(), Rounding.sound(F64)


def boundary(network: Network, h: torch.Tensor, label: int, other: int) -> Boundary:
    """The pair's boundary without errors of rounding."""
    smooth = head_of(network)
    a = smooth.head.weight[label] - smooth.head.weight[other]
    constant = smooth.head.bias[label] - smooth.head.bias[other]
    m = torch.tensor([smooth.curvature(label, other)], dtype=F64)
    nothing = Errors(*(torch.zeros(1, dtype=F64) for _ in range(6)))
    return Boundary(
        smooth.first.weight, smooth.bias, h.to(F64)[None], a[None], constant[None], m, nothing
    )


@given(
    seed=st.integers(0, 10**6),
    classes=st.sampled_from([2, 10]),
    scale=st.sampled_from([0.3, 1.0, 4.0]),
)
@settings(max_examples=examples(8, 1000), deadline=None)
def test_no_certificate_exceeds_the_true_distance_after_any_number_of_steps(
    seed: int, classes: int, scale: float
) -> None:
    network = smooth_network(seed, classes=classes, scale=scale)
    h = torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
    label = int(logits(network, h[None]).argmax())
    true = nearest_wrong(network, h, label, starts=40)
    for other in range(classes):
        if other == label:
            continue
        pair = boundary(network, h, label, other)
        limit = float(true[other]) * (1.0 + 1e-9)
        assert float(closed_form(pair, pair.m)) <= limit
        for steps in (1, 2, 3, 10):
            assert float(distance(pair, steps=steps)) <= limit
    smooth = head_of(network)
    for rounding in (IGNORED, SOUND):
        found = boundary_distances(smooth, h[None].to(F64), torch.tensor([label]), rounding)
        assert 0.0 <= float(found) <= float(true.min()) * (1.0 + 1e-9)


def test_the_certificate_is_the_distance_where_the_dual_is_tight() -> None:
    """eta* < 1 / m: the true distance to 1e-6; so are most random heads of moderate curvature."""
    tight, seeds = 0, examples(16, 160)
    for seed in range(seeds):
        network = smooth_network(seed, scale=0.5)
        h = torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
        label = int(logits(network, h[None]).argmax())
        move = nearest_moves(network, h, label, starts=40)[1 - label]
        true = float(move.norm())
        if not np.isfinite(true):
            continue
        pair = boundary(network, h, label, 1 - label)
        found = float(distance(pair))
        there = pair.at(move[None], torch.zeros(1, dtype=F64))
        # At the nearest point grad f = -d / eta.
        eta = true / float(there.gradient.norm())
        if eta * float(pair.m) < 0.99:
            assert found >= true * (1.0 - 1e-6)
            tight += 1
        # What is served is the best of three.
        smooth = head_of(network)
        sound = float(boundary_distances(smooth, h[None].to(F64), torch.tensor([label]), IGNORED))
        start = pair.at(torch.zeros(1, 16, dtype=F64), torch.zeros(1, dtype=F64))
        linear = float(start.value) / (smooth.spectral * float(pair.a.norm()))
        for bound in (found, float(closed_form(pair, pair.m)), linear):
            assert sound >= bound * (1.0 - 1e-9)
    assert tight >= seeds / 2


def test_an_uncorrected_dual_would_be_wrong_after_one_step() -> None:
    """The residual is what makes an iterate that has not converged a proof."""
    wrong = 0
    for seed in range(examples(20, 200)):
        network = smooth_network(seed)
        h = torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
        label = int(logits(network, h[None]).argmax())
        true = float(nearest_wrong(network, h, label, starts=30)[1 - label])
        pair = boundary(network, h, label, 1 - label)
        zero = pair.at(torch.zeros(1, 16, dtype=F64), torch.zeros(1, dtype=F64))
        eta = torch.minimum(zero.value.abs(), pair.largest_eta)
        start = pair.at(torch.zeros(1, 16, dtype=F64), eta)
        step = pair.at(-eta[:, None] * start.gradient, eta)
        value = float((step.d.square().sum(1) + 2 * eta * step.value).clamp_min(0).sqrt())
        assert float(certificate(pair, step)) <= true * (1.0 + 1e-9)
        wrong += value > true * (1.0 + 1e-6)
    assert wrong > 0


@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), rows=st.integers(1, 60))
@settings(max_examples=examples(60), deadline=None)
def test_a_curvature_that_is_too_low_never_passes(seed: int, n: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    matrix = torch.from_numpy(random.standard_normal((rows, n)) * 10.0 ** random.uniform(-3, 3))
    if seed % 3 == 0:
        matrix[:, 0] = matrix[:, -1] * (1 + 1e-9)
    gram = matrix.T @ matrix
    largest = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    for share in (0.5, 0.9, 1.0 - 1e-6, 1.0 - 1e-9):
        assert not bounds_eigenvalues(gram, rows, largest * share)
    assert bounds_eigenvalues(gram, rows, largest * (1.0 + 1e-6))
    assert largest <= largest_eigenvalue(matrix) <= largest * (1.0 + 2e-6)
    assert largest_eigenvalue(matrix.T) == pytest.approx(largest, rel=2e-6)


def test_large_curvatures_are_guessed_by_lanczos() -> None:
    matrix = torch.randn(300, 200, dtype=F64, generator=torch.Generator().manual_seed(0))
    largest = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    assert largest <= largest_eigenvalue(matrix) <= largest * (1.0 + 2e-6)
    assert largest_eigenvalue(torch.zeros(3, 4, dtype=F64)) == 0.0
    assert largest_eigenvalue(torch.zeros(0, 4, dtype=F64)) == 0.0


def fifteen_classes() -> Network:
    """The 15th logit is the lowest and by far the steepest: its boundary is the nearest."""
    network = smooth_network(3, classes=15)
    last = network.layer("last")
    assert isinstance(last, Linear)
    with torch.no_grad():
        last.weight[14] = 30 * torch.randn(64, generator=torch.Generator().manual_seed(9))
        last.bias[14] = 0.0
        assert last.bias is not None
        h = torch.zeros(1, 16)
        value = network(h)[0]
        last.bias[14] += value[:14].min() - 1.0 - value[14]
    return network


def test_the_nearest_boundary_may_belong_to_the_lowest_of_fifteen_logits() -> None:
    network = fifteen_classes()
    h = torch.zeros(16)
    value = logits(network, h[None])[0]
    label = int(value.argmax())
    assert int(value.argmin()) == 14
    true = nearest_wrong(network, h, label, starts=60)
    assert int(true.argmin()) == 14
    smooth = head_of(network)
    found = float(boundary_distances(smooth, h[None].to(F64), torch.tensor([label]), SOUND))
    others = [float(distance(boundary(network, h, label, j))) for j in range(14) if j != label]
    assert found <= float(true[14])
    assert min(others) > 1.2 * float(true[14])


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("clip", [True, False])
def test_radii_hold_and_beat_the_lipschitz_radius(classes: int, norm: str, clip: bool) -> None:
    """Through an import of the exported file, behind a layer that moves the ball."""
    network = smooth_network(7, classes=classes, scale=0.5)
    x = np.random.default_rng(0).random((6, 16)).astype(np.float32)
    network = import_onnx_bytes(export_onnx(network))
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    by = {
        method: certify(network, x, ("1/10",), norm=norm, method=method, clip=clip, attack=None)
        for method in ("crc", "lipschitz", "auto")
    }
    assert (by["crc"].radius >= by["lipschitz"].radius * (1 - 1e-5)).all()
    assert (by["crc"].radius > by["lipschitz"].radius * 1.2).any()
    if norm == "l2":
        assert (by["auto"].radius >= by["crc"].radius).all()
        for row, radius in enumerate(by["crc"].radius):
            label = int(by["crc"].label[row])
            true = nearest_wrong(_named(network), torch.from_numpy(x[row]), label, starts=30)
            if np.isinf(radius):
                # Two points of the pixel box are no farther apart than 4.
                assert clip
                assert float(true.min()) > 4.0
                continue
            assert 0.5 * float(true.min()) <= radius <= float(true.min())
    random = np.random.default_rng(1)
    for row, radius in enumerate(np.minimum(by["crc"].radius, 5.0)):
        step = random.standard_normal((500, 16))
        length = np.linalg.norm(step, axis=1) if norm == "l2" else abs(step).max(1)
        step /= length[:, None]
        points = (x[row] + 0.999 * radius * step).astype(np.float32)
        points = points.clip(0, 1) if clip else points
        assert (deployed(points).argmax(1) == by["crc"].label[row]).all()


def _named(network: Network) -> Network:
    """The same layers under the names of ``smooth_network``."""
    layers = [network.layer(node.name) for node in network.nodes]
    names = ("first", "soft", "last")
    sources = ("input", *names[:2])
    rows = [(n, x, (p,)) for n, x, p in zip(names, layers, sources, strict=True)]
    return Network(network.input_shape, rows).eval()


def test_a_factor_in_the_softplus_is_part_of_the_dense_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [
        ("first", Linear(torch.randn(20, 8, generator=generator), torch.randn(20)), ("input",)),
        ("soft", Softplus(beta=4.0), ("first",)),
        ("last", Linear(torch.randn(3, 20, generator=generator), torch.randn(3)), ("soft",)),
    ]
    network = Network((8,), rows).deployed()
    compiled = CompiledNetwork.compile(network)
    assert has_smooth_head(compiled)
    assert len(compiled.steps) == 2
    x = np.random.default_rng(0).random((4, 8)).astype(np.float32)
    found = certify(network, x, ("1/1000",), method="crc", attack=None)
    assert (found.radius > 0).any()


def test_a_wide_head_in_partial_sums_loses_less_by_rounding() -> None:
    """The same weights, deployed as one sum and as sums of sums, behind an export."""
    found = {}
    for kind in (Linear, SummedLinear):
        generator = torch.Generator().manual_seed(4)
        first, last = (
            kind(torch.randn(out, into, generator=generator) * into**-0.5, torch.zeros(out))
            for out, into in ((256, 144), (5, 256))
        )
        rows = [("a", first, ("input",)), ("s", Softplus(), ("a",)), ("b", last, ("s",))]
        network = import_onnx_bytes(export_onnx(Network((144,), rows).deployed()))
        smooth = head_of(network)
        h = torch.randn(4, 144, generator=generator).to(F64)
        labels = logits(network, h).argmax(1)
        exact = boundary_distances(smooth, h, labels, IGNORED)
        found[kind] = exact - boundary_distances(smooth, h, labels, SOUND), exact
    assert torch.allclose(found[Linear][1], found[SummedLinear][1], rtol=1e-9)
    assert bool((found[SummedLinear][0] > 0).all())
    assert bool((found[SummedLinear][0] < 0.4 * found[Linear][0]).all())


def test_curvatures_are_kept_for_other_processes_and_estimates_for_nobody(tmp_path: Path) -> None:
    network = smooth_network(11, classes=4)
    crc._HEADS.clear()
    first = SmoothHead.of(CompiledNetwork.compile(network, cache_dir=tmp_path))
    h = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).to(F64)
    labels = logits(network, h).argmax(1)
    found = boundary_distances(first, h, labels, SOUND)
    assert first.curvatures
    crc._HEADS.clear()
    again = SmoothHead.of(CompiledNetwork.compile(network, cache_dir=tmp_path))
    assert again is not first
    assert again.curvatures == first.curvatures
    assert torch.equal(boundary_distances(again, h, labels, SOUND), found)
    # The norms of an estimate are too small for a proof: a head of its own.
    estimate = CompiledNetwork.compile(network, cache_dir=tmp_path, estimate=True)
    assert SmoothHead.of(estimate) is not again
    assert SmoothHead.of(estimate).spectral <= again.spectral
    (path,) = tmp_path.glob("curvatures-*.json")
    for damaged in ("{", "[]", '{"0,1": "x"}', '{"0,1": -1.0}', '{"0,1": NaN}'):
        path.write_text(damaged)
        crc._HEADS.clear()
        assert not SmoothHead.of(CompiledNetwork.compile(network, cache_dir=tmp_path)).curvatures


def test_rounding_is_taken_off_and_grows_with_the_weights() -> None:
    network = smooth_network(5, classes=10)
    h = torch.randn(1, 16, generator=torch.Generator().manual_seed(6)).to(F64)
    label = logits(network, h).argmax(1)
    smooth = head_of(network)
    exact = float(boundary_distances(smooth, h, label, IGNORED))
    sound = float(boundary_distances(smooth, h, label, SOUND))
    assert exact * (1 - 1e-3) < sound < exact
