"""Training of 1-Lipschitz networks: the optimiser on the group, the loss, and all the way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.layers.one_lipschitz import OrthogonalChannels
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.workers.training.runs import CPU, SHIFTNET, attacked_in_vain, config_of, images
from workers.training import precision
from workers.training.config import TrainingConfig
from workers.training.data import AUGMENTATIONS, pixels, seeded
from workers.training.loop import Paused, train
from workers.training.objectives import OBJECTIVES
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.optimizers import OPTIMIZERS, set_rate
from workers.training.optimizers.orthogonal_muon import OTHERS, OrthogonalMuon, near_orthogonal
from workers.training.precision import dtype_of, has_bfloat16_products
from workers.training.schedules import Schedule
from workers.training.trainer import Trainer, build_network
from workers.verification.bounds.lipschitz import lipschitz_constant, lipschitz_radius
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.rounding import Rounding


def small(**changes: object) -> TrainingConfig:
    settings: dict[str, object] = {
        "architecture": SHIFTNET,
        "optimizer": "orthogonal-muon",
        "learning_rate": 0.03,
        "augmentation": "reflect-flip",
        "options": {"temperature": 0.25},
        "epsilon_schedule": Schedule.constant(1.0),
        **changes,
    }
    return config_of("one-lipschitz", **settings)


def rotations(network: Network) -> list[torch.Tensor]:
    layers = (network.layer(node.name) for node in network.nodes)
    return [
        layer.weight.detach().flatten(1).double()
        for layer in layers
        if isinstance(layer, OrthogonalChannels)
    ]


def off_the_group(network: Network) -> float:
    """Largest distance of a singular value from 1."""
    return max(float((torch.linalg.svdvals(w) - 1).abs().max()) for w in rotations(network))


def test_weights_stay_on_the_group_and_move() -> None:
    network = build_network(small())
    before = rotations(network)
    assert off_the_group(network) < 1e-6
    trainer = Trainer(small(), network)
    data = images(64)
    assert isinstance(trainer.optimizer, OrthogonalMuon)
    for step in range(12):
        trainer.train_on(pixels(data.x), data.y, step / 40, step)
        # Between two repairs a few steps of rate r leave about r^2 / 2 each.
        assert off_the_group(network) < 4e-3
    assert step % 4 == 3
    assert off_the_group(network) < 1e-4
    moved = rotations(network)
    for old, new in zip(before, moved, strict=True):
        assert float((old - new).norm()) > 0.05


def test_each_step_is_a_rotation_in_the_direction_of_descent() -> None:
    """W^T (change) is skew up to second order, and the loss falls along it."""
    weight = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    target = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]
    target[0] *= torch.sign(torch.linalg.det(weight) * torch.linalg.det(target))
    parameter = torch.nn.Parameter(weight[:, :, None, None].clone())
    rest = torch.nn.Parameter(torch.zeros(3))
    optimizer = OrthogonalMuon([parameter], [rest], lr=0.01)
    losses = []
    for _ in range(400):
        before = parameter.detach().clone().flatten(1)
        distance = (parameter.flatten(1) - target).square().sum()
        losses.append(float(distance.detach()))
        loss = distance + (rest - 1.0).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        change = before.T @ (parameter.detach().flatten(1) - before)
        assert float((change + change.T).abs().max()) < 5e-3
    assert losses[1] < losses[0]
    assert losses[-1] < 0.02 * losses[0]
    assert float(rest.detach().min()) > 0.1


@pytest.mark.parametrize("size", [2, 16, 64])
def test_newton_schulz_brings_singular_values_of_a_skew_matrix_near_one(size: int) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
    skew = matrix - matrix.T
    found = near_orthogonal(skew, torch.float32)
    assert torch.allclose(found, -found.T, atol=1e-5)
    # Singular values that are not far below the largest get there in four steps.
    values = torch.linalg.svdvals(found)
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.6
    # The same planes, turned the same way.
    assert float((found * skew).sum()) > 0
    assert float(near_orthogonal(torch.zeros(4, 4), torch.float32).abs().max()) == 0.0


def test_others_get_nadam_at_their_own_rate() -> None:
    network = build_network(small())
    parameters = list(network.parameters())
    made = OPTIMIZERS["orthogonal-muon"](network, parameters, 0.03, 0.0)
    first, second = made.param_groups
    assert {len(first["params"]), len(second["params"])} == {3, 5}
    set_rate(made, 0.06)
    assert (first["lr"], second["lr"]) == (0.06, pytest.approx(0.06 * OTHERS))
    bias = second["params"][0]
    twin = torch.nn.Parameter(bias.detach().clone())
    plain = torch.optim.NAdam([twin], lr=0.06 * OTHERS, betas=(0.9, 0.99))
    for step in range(3):
        bias.grad = torch.full_like(bias, 0.1 + step)
        twin.grad = bias.grad.clone()
        made.step()
        plain.step()
    assert torch.equal(bias, twin)
    # A network without such layers has no rotations.
    other = build_network(small(architecture="mnist-small"))
    made = OPTIMIZERS["orthogonal-muon"](other, list(other.parameters()), 0.1, 0.0)
    assert not made.param_groups[0]["params"]


def test_a_killed_run_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    """Momentum and the count of steps between two repairs are part of a checkpoint."""
    config, data, path = small(epochs=3), images(), tmp_path / "checkpoint.safetensors"
    whole, history = train(config, data, device=CPU)
    pauses = 0
    while True:
        try:
            asked = iter([False])
            resumed, again = train(
                config,
                data,
                device=CPU,
                checkpoint=path,
                should_pause=lambda asked=asked: next(asked, True),  # type: ignore[misc]
            )
            break
        except Paused:
            pauses += 1
    assert pauses
    assert again == history
    first, second = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_the_margin_cross_entropy_with_a_table_of_norms() -> None:
    config = small(epsilon=0.4, options={"temperature": 0.5})
    trainer = Trainer(config, build_network(config))
    data = images(12)
    trainer.graph.refresh()
    x, y = pixels(data.x), data.y
    at = ScheduledWeights.of(0.8, 0.0, 1.0)
    loss, found = OBJECTIVES["one-lipschitz"].loss(trainer.graph, x, y, at, config)
    weight = trainer.graph.head_weight.detach()
    assert torch.allclose(weight.norm(dim=1), torch.ones(10), atol=1e-6)
    logits = trainer.network(x)
    assert torch.allclose(found.logits, logits, atol=1e-6)
    added = 0.8 * torch.cdist(weight, weight)[y]
    expected = 0.5 * F.cross_entropy((logits + added) / 0.5, y)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    # No gradient through the table: the offsets are constants of the loss.
    parameters = list(trainer.network.parameters())
    mine = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_trained_network_is_certified_from_its_file_and_withstands_attacks() -> None:
    """Train, export, import again: one set of radii, below every wrong answer that is found."""
    config = small(epochs=8, epsilon=0.5, augmentation="none", batch_size=20)
    data = images(120)
    network, history = train(config, data, device=CPU)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["validation_accuracy"] >= 0.8
    assert off_the_group(network) < 4e-3
    deployed = network.deployed()
    file = export_onnx(deployed)
    x, y = pixels(data.x)[:10], data.y[:10]
    radii = []
    for form in (deployed, import_onnx_bytes(file)):
        compiled = CompiledNetwork.compile(form)
        assert 1.0 <= lipschitz_constant(compiled) <= 1.001
        sound, estimate = (
            lipschitz_radius(compiled, x, y, norm="l2", rounding=rounding, dtype=torch.float64)
            for rounding in (Rounding.sound(torch.float64), Rounding.ignored())
        )
        # What float32 may hide costs a few thousandths.
        assert bool((sound < estimate).all())
        assert float((estimate - sound).max()) < 0.01
        radii.append(sound)
    assert float((radii[0] - radii[1]).abs().max()) <= 1e-5
    runtime = OnnxRuntimeModel(file, (1, 28, 28))
    logits = torch.from_numpy(runtime(x.numpy()))
    right = logits.argmax(1) == y
    assert int(right.sum()) >= 6
    assert bool((radii[1][~right] <= 0).all())
    rows = np.flatnonzero((right & (radii[1] > 0)).numpy())
    assert rows.size >= 5
    # The radius is the margin over |w_y - w_j|, no more and hardly less.
    head = CompiledNetwork.compile(deployed).head
    margins = logits.gather(1, y[:, None]) - logits
    share = (margins / head.pair_norms[y].clamp_min(1e-9)).scatter(1, y[:, None], math.inf)
    deserved = share.amin(1)
    assert bool((radii[1][rows] <= deserved[rows] + 1e-5).all())
    assert bool((radii[1][rows] >= deserved[rows] - 0.01).all())
    attacked_in_vain(network, x.numpy(), radii[1].numpy())


def test_mirrored_crops_invent_no_black_border() -> None:
    x = torch.rand(30, 3, 9, 9, generator=torch.Generator().manual_seed(0)) + 0.5
    moved = AUGMENTATIONS["reflect-flip"](x, seeded(0, 2, 5))
    assert float(moved.min()) >= 0.5
    assert not torch.equal(moved, x)
    assert float(AUGMENTATIONS["crop-flip"](x, seeded(0, 2, 5)).min()) == 0.0


def test_bfloat16_is_taken_where_the_processor_multiplies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    for flags, able in (
        ("fpu avx2 amx_bf16 avx512_bf16 amx_tile", True),
        ("fpu avx2 avx512_bf16", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu amx_tile amx_int8", False),
    ):
        info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 1\n")
        has_bfloat16_products.cache_clear()
        assert has_bfloat16_products(info) is able
    assert has_bfloat16_products(tmp_path / "missing") is False
    monkeypatch.setattr(precision, "has_bfloat16_products", lambda: True)
    auto = small(precision="auto")
    assert auto.bfloat16_on_cpu
    assert dtype_of(auto, CPU) == torch.bfloat16
    assert dtype_of(config_of("emma", precision="auto"), CPU) == torch.float32
    assert dtype_of(config_of("bcp", precision="auto"), CPU) == torch.float32
    monkeypatch.setattr(precision, "has_bfloat16_products", lambda: False)
    assert dtype_of(auto, CPU) == torch.float32
    # bfloat16 by force computes about the same, whatever the processor.
    data = images(20)
    losses = [
        float(
            Trainer(small(precision=name), build_network(small())).train_on(
                pixels(data.x), data.y, 0.5, 0
            )[0]
        )
        for name in ("float32", "bfloat16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
