"""The loop: killed and resumed runs end in the same bits, bad runs end in a stated error."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.network import Network
from tests.extent import part
from tests.workers.training.runs import CPU, config_of, images
from workers.training import checkpoint, loop
from workers.training.config import TrainingError
from workers.training.data import AUGMENTATIONS, TrainingData, seeded, split
from workers.training.lookahead import Lookahead
from workers.training.loop import Paused, train
from workers.training.objectives import OBJECTIVES


def test_a_checkpoint_from_before_there_were_options_is_of_the_same_run() -> None:
    known = "1ecbf5490e12d4b8cba6c6b930855d031f2a46ba7c09af9b5d1490a09d867aae"
    assert loop.run_digest(config_of("bcp"), 100) == known
    for other in (config_of("bcp", options={"steps": 3}), config_of("bcp", seed=1), config_of()):
        assert loop.run_digest(other, 100) != known


@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_resumed_run_ends_in_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    optimizer = {"emma": "nadam", "one-lipschitz": "orthogonal-muon"}.get(method, "adam")
    config, data = config_of(method, optimizer=optimizer), images()
    whole, history = train(config, data, device=CPU)
    path = tmp_path / "checkpoint.safetensors"
    pauses = 0
    for _ in range(20):
        asked = iter([False, True])
        try:
            again, resumed = train(
                config,
                data,
                device=CPU,
                checkpoint=path,
                should_pause=lambda asked=asked: next(asked, True),  # type: ignore[misc]
            )
            break
        except Paused:
            pauses += 1
    assert pauses >= 1
    assert resumed == history
    assert len(history) == config.epochs
    first, second = whole.state_dict(), again.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_seeds_make_a_run_repeatable_and_another_seed_another_run() -> None:
    data = images()
    (first, _), (same, _), (other, _) = (
        train(config_of(seed=seed), data, device=CPU) for seed in (1, 1, 2)
    )
    weights = [torch.cat([p.flatten() for p in n.parameters()]) for n in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("method", "epochs"), part([("standard", 12), ("emma", 25), ("bcp", 20)], 0, 1)
)
def test_training_learns(method: str, epochs: int) -> None:
    config = config_of(method, epochs=epochs, learning_rate=5e-3, augmentation="none")
    _, history = train(config, images(120), device=CPU)
    assert history[-1]["validation_accuracy"] >= 0.9
    if method != "standard":
        assert history[-1]["validation_robust"] >= 0.5


def test_a_diverging_run_is_an_error_and_no_model(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    config = config_of("standard", optimizer="sgd", learning_rate=100.0, epochs=20)
    with pytest.raises(TrainingError) as caught:
        train(config, images(), device=CPU, checkpoint=path, checkpoint_s=0.0)
    assert caught.value.code == "training_diverged"
    assert caught.value.hint


def test_weights_that_no_factorisation_takes_are_divergence_too() -> None:
    """Orthogonal layers raise on the first weight that is no number, before a loss is seen."""
    for method in ("emma", "lmt"):
        orthogonal = {"name": "orthogonal-dense", "input": [1, 28, 28], "widths": [16]}
        config = config_of(
            method,
            architecture=orthogonal if method == "emma" else "mnist-small",
            activation="maxmin",
            optimizer="sgd",
            learning_rate=1e20,
            epochs=9,
        )
        with pytest.raises(TrainingError) as caught:
            train(config, images(), device=CPU)
        assert caught.value.code == "training_diverged"


def test_a_full_disk_is_an_oserror_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    config, data = config_of(epochs=3), images()
    with pytest.raises(Paused):
        train(config, data, device=CPU, checkpoint=path, should_pause=lambda: True)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            train(config, data, device=CPU, checkpoint=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    whole, _ = train(config, data, device=CPU)
    resumed, _ = train(config, data, device=CPU, checkpoint=path)
    assert _same(whole, resumed)


#: Every optimizer with every augmentation; the slice has each of them once.
RESUMED = [
    (optimizer, lookahead, augmentation)
    for optimizer, lookahead in (("adam", 0), ("nadam", 2), ("orthogonal-muon", 0), ("sgd", 0))
    for augmentation in AUGMENTATIONS
]


@pytest.mark.parametrize(("optimizer", "lookahead", "augmentation"), part(RESUMED, 0, 5, 10, 15))
def test_every_optimizer_and_augmentation_resumes_exactly(
    optimizer: str, lookahead: int, augmentation: str, tmp_path: Path
) -> None:
    config = config_of(
        "bcp",
        optimizer=optimizer,
        lookahead=lookahead,
        augmentation=augmentation,
        learning_rate=1e-3,
        clip_norm=0.5,
        weight_decay=1e-3,
        warm_up=0.3,
    )
    data, path = images(), tmp_path / "checkpoint.safetensors"
    whole, history = train(config, data, device=CPU)
    with pytest.raises(Paused):
        train(config, data, device=CPU, checkpoint=path, should_pause=lambda: True)
    resumed, again = train(config, data, device=CPU, checkpoint=path)
    assert again == history
    assert _same(whole, resumed)


def test_lookahead_goes_half_the_way_every_other_step() -> None:
    """With a step of SGD as long as the gradient, which is that of |w|^2 / 2: w <- (1 - lr) w."""
    weight = torch.tensor([8.0, -4.0])
    ahead = Lookahead([weight], 2)
    seen = []
    for _ in range(4):
        weight.mul_(0.5)
        ahead.step()
        seen.append(float(weight[0]))
    # 8 -> 4 -> 2, half the way back to 8: 5 -> 2.5 -> 1.25, half the way back to 5.
    assert seen == [4.0, 5.0, 2.5, 3.125]
    other = Lookahead([torch.zeros(2)], 2)
    other.restore(ahead.state())
    assert (other.steps, other.slow[0].tolist()) == (4, [3.125, -1.5625])


def _same(first: Network, second: Network) -> bool:
    tensors = second.state_dict()
    return all(torch.equal(value, tensors[name]) for name, value in first.state_dict().items())


def test_slow_steps_do_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether to pause is asked after seconds, not only after so many steps: same bits."""
    whole, history = train(config_of(), images(), device=CPU)
    monkeypatch.setattr(loop, "LOOK_AFTER_S", 0.0)
    asked: list[None] = []
    again, same = train(
        config_of(), images(), device=CPU, should_pause=lambda: bool(asked.append(None))
    )
    assert len(asked) == 2 * (50 // 16) - 1
    assert same == history
    assert _same(whole, again)


def test_progress_counts_steps_and_says_where_the_run_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch, told after each of them and while the epoch is validated; a resumed
    run counts on from where it was."""
    monkeypatch.setattr(loop, "LOOK_AFTER_S", 0.0)
    config, data, path = config_of(), images(), tmp_path / "checkpoint.safetensors"
    told: list[tuple[int, int, str]] = []

    def paused_at(step: int) -> None:
        train(
            config,
            data,
            device=CPU,
            checkpoint=path,
            progress=lambda *at: told.append(at),
            should_pause=lambda: told[-1][0] == step,
        )

    with pytest.raises(Paused):
        paused_at(4)
    first = [at for at in told if not at[2].endswith("validating")]
    assert [at[:2] for at in first] == [(1, 6), (2, 6), (3, 6), (4, 6)]
    assert [at[2].partition(",")[0] for at in first] == ["epoch 1 of 2"] * 3 + ["epoch 2 of 2"]
    assert told.index((3, 6, "epoch 1 of 2: validating")) == told.index(first[2]) - 1
    told.clear()
    paused_at(-1)
    assert [at[:2] for at in told] == [(5, 6), (6, 6), (6, 6)]
    assert told[1][2] == "epoch 2 of 2: validating"


def test_the_message_is_of_the_epoch_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """At an epoch's end it says what the curve says."""
    monkeypatch.setattr(loop, "LOOK_AFTER_S", 0.0)
    told: dict[int, str] = {}
    _, history = train(
        config_of(),
        images(),
        device=CPU,
        progress=lambda done, total, text: told.update({done: text}),
    )
    for row in history:
        robust = 100 * row["validation_robust"]
        said = f"loss {row['loss']:.3f}, robust {robust:.1f} % (estimate)"
        assert told[3 * row["epoch"]] == f"epoch {row['epoch']} of 2, {said}"
    # One step into the second epoch nothing of the first is left in it.
    one: dict[int, float] = {}
    monkeypatch.setattr(loop.Trainer, "train_on", _remember(one, loop.Trainer.train_on))
    train(
        config_of(),
        images(),
        device=CPU,
        progress=lambda done, total, text: told.update({done: text}),
    )
    assert told[4].startswith(f"epoch 2 of 2, loss {one[4]:.3f}, ")


def _remember(losses: dict[int, float], step: Callable[..., torch.Tensor]) -> Callable[..., object]:
    def train_on(*given: object) -> torch.Tensor:
        sums = step(*given)
        losses[len(losses) + 1] = float(sums[0])
        return sums

    return train_on


def test_plain_training_claims_no_robustness() -> None:
    _, history = train(config_of("standard", validation_samples=0), images(), device=CPU)
    assert history[-1]["accuracy"] > 0
    assert [row["robust"] for row in history] == [0.0, 0.0]


def test_data_that_do_not_fit_are_refused() -> None:
    data = images()
    cases = {
        "shape_mismatch": (config_of(architecture="cifar-small"), data),
        "label_out_of_range": (config_of(), TrainingData(data.x, data.y + 1)),
        "too_few_samples": (config_of(validation_samples=60), data),
    }
    # Nothing that could be trained, whatever the last layer is.
    nothing = {"input": list(data.x.shape[1:]), "layers": [{"kind": "flatten"}, {"kind": "relu"}]}
    cases["unsupported_architecture"] = (config_of(architecture=nothing), data)
    for code, (config, given) in cases.items():
        with pytest.raises(TrainingError) as caught:
            train(config, given, device=CPU)
        assert caught.value.code == code
        assert caught.value.field or code == "label_out_of_range"
    with pytest.raises(ModelError):
        train(config_of(architecture="no-such-net"), data, device=CPU)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(config_of(epochs=1), images(), device=CPU, checkpoint=path)
    with pytest.raises(TrainingError) as caught:
        train(config_of(epochs=1, seed=5), images(), device=CPU, checkpoint=path)
    assert caught.value.code == "bad_checkpoint"
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(TrainingError) as caught:
        train(config_of(epochs=1), images(), device=CPU, checkpoint=path)
    assert caught.value.code == "bad_checkpoint"


def test_thresholds_stay_at_least_zero() -> None:
    config = config_of("local-lip-b", theta=1e-4, learning_rate=0.05, epochs=3)
    network, _ = train(config, images(), device=CPU)
    thresholds = [p for name, p in network.named_parameters() if name.endswith("theta")]
    assert thresholds
    assert all(theta.min().item() >= 0.0 for theta in thresholds)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_move_pixels_and_invent_none(name: str) -> None:
    x = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    moved = AUGMENTATIONS[name](x, seeded(0, 2, 5))
    again = AUGMENTATIONS[name](x, seeded(0, 2, 5))
    assert torch.equal(moved, again)
    assert moved.shape == x.shape
    for before, after in zip(x, moved, strict=True):
        known = set(before.flatten().tolist()) | {0.0}
        assert set(after.flatten().tolist()) <= known


def test_validation_samples_are_not_trained_on() -> None:
    data = images(50)
    kept, held = split(data, 20, seed=3)
    rows = {tuple(image.flatten().tolist()) for image in data.x}
    assert len(rows) == 50
    assert not {tuple(i.flatten().tolist()) for i in kept.x} & {
        tuple(i.flatten().tolist()) for i in held.x
    }
    assert (len(kept.x), len(held.x)) == (30, 20)
