"""A step may be compiled and may multiply in bfloat16; neither changes what a run comes to."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from service.contract.catalogue.training_methods import TRAINING_METHODS, TrainingMethod
from tests.extent import ALL, part
from tests.workers.training.runs import CPU, config_of, images
from workers.training import loop, step
from workers.training.bounds.last_layer import ball_logits
from workers.training.config import TrainingConfig, TrainingError
from workers.training.loop import Paused, train
from workers.training.objectives import ScheduledWeights
from workers.training.precision import dtype_of, has_bfloat16_products, wants_compilation
from workers.training.schedules import Schedule
from workers.training.step import Backend
from workers.training.trainer import Trainer, build_network

#: No C++ compiler is needed, and no minute either: what is captured runs as it is.
PLAIN = {"cpu": (Backend("aot_eager"),)}
SMALL = {
    "input": [1, 28, 28],
    "layers": [
        {"kind": "conv2d", "out": 4, "kernel": 4, "stride": 4},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "linear", "out": 10},
    ],
}


def small(method: str, **changes: object) -> TrainingConfig:
    """Weights move far in a few steps; every schedule changes with every step."""
    settings = {"architecture": SMALL, "optimizer": "sgd", "learning_rate": 0.02, **changes}
    kappa = Schedule(((0.3, 1.0), (0.6, 0.0)))
    epsilon = Schedule(((0.2, 0.0), (0.8, 1.0)))
    return config_of(method, kappa_schedule=kappa, epsilon_schedule=epsilon, **settings)


def steps_of(config: TrainingConfig, count: int = 12) -> tuple[Trainer, Tensor]:
    """The trainer after some steps, and what they gave."""
    trainer, data = Trainer(config, build_network(config)), images(64)
    rows = []
    for index in range(count):
        taken = torch.arange(16) + 16 * (index % 4)
        x, y = data.batch(taken, "none", 0, index)
        rows.append(trainer.train_on(x, y, index / count, index))
    return trainer, torch.stack(rows)


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


@pytest.mark.parametrize("method", part(["emma", "lmt", "bcp", "local-lip-g", "ibp"], 0, 2, 4))
def test_a_compiled_step_is_the_step_and_is_compiled_once_a_phase(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "BACKENDS", PLAIN)
    expected, rows = steps_of(small(method))
    counters.clear()
    compiled, found = steps_of(small(method, compiled=True))
    assert compiled.step.compiled == "aot_eager"
    # epsilon, kappa and learning rate are others at every step, and nothing is compiled for them.
    phases = len(
        {ScheduledWeights.at(compiled.config, index / 12, index).phase for index in range(12)}
    )
    assert counters["stats"]["unique_graphs"] <= phases
    torch.testing.assert_close(found, rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(compiled), weights(expected), rtol=1e-5, atol=1e-5)
    for name, vector in expected.graph.vectors.items():
        torch.testing.assert_close(compiled.graph.vectors[name], vector, rtol=1e-4, atol=1e-5)


#: Half a minute of compiling each, whatever is compiled.
needs_compiler = pytest.mark.skipif(
    not ALL or shutil.which("g++") is None,
    reason="takes a C++ compiler, and time: CERTSERVE_TEST_ALL",
)


@needs_compiler
def test_machine_code_of_the_last_layer_has_its_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every operation's gradient is right in Inductor: ``diagonal``'s was 11 % off."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    logits, weight = (torch.randn(size, 10, generator=generator) for size in (16, 8))
    given = [logits, weight.T.contiguous(), torch.tensor(0.3)]
    labels = torch.arange(16) % 10

    def loss(logits: Tensor, weight: Tensor, radius: Tensor) -> Tensor:
        return F.cross_entropy(ball_logits(logits, weight, radius, labels), labels)

    found = []
    for function in (loss, step._compile(loss, Backend("inductor"))):
        tensors = [tensor.clone().requires_grad_(True) for tensor in given]
        function(*tensors).backward()
        found.append([tensor.grad for tensor in tensors])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_a_step_of_machine_code_is_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected, rows = steps_of(small("emma"), 6)
    compiled, found = steps_of(small("emma", compiled=True), 6)
    assert compiled.step.compiled == "inductor"
    torch.testing.assert_close(found, rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(compiled), weights(expected), rtol=1e-5, atol=1e-5)


def _no_compiler(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("no compiler was found")


def test_without_a_compiler_training_goes_on_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, rows = steps_of(small("emma"), 3)
    monkeypatch.setattr(torch, "compile", _no_compiler)
    with caplog.at_level(logging.WARNING):
        trainer, found = steps_of(small("emma", compiled=True), 3)
    assert trainer.step.compiled is None
    assert "no compiler was found" in caplog.text
    assert torch.equal(found, rows)
    assert torch.equal(weights(trainer), weights(plain))


def test_the_next_backend_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Backend("no such backend")
    monkeypatch.setattr(step, "BACKENDS", {"cpu": (first, *PLAIN["cpu"])})
    trainer, _ = steps_of(small("emma", compiled=True), 2)
    assert trainer.step.compiled == "aot_eager"


@pytest.mark.parametrize("wrong", ["loss", "gradient", "late"])
def test_a_compiled_step_that_differs_is_not_used(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is right at its first call only, as of a graph captured wrongly."""
    calls = []

    def broken(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(None)
            loss, counts, vectors = function(*arguments)
            if wrong == "loss":
                loss = loss + 1.0
            if wrong == "gradient" or (wrong == "late" and len(calls) > 1):
                loss = 3.0 * loss - 2.0 * loss.detach()
            return loss, counts, vectors

        return call

    plain, rows = steps_of(small("emma"), 4)
    monkeypatch.setattr(step, "_compile", broken)
    trainer, found = steps_of(small("emma", compiled=True), 4)
    assert trainer.step.compiled is None
    assert len(calls) == (2 if wrong == "late" else 1)
    assert "gradient" in caplog.text
    torch.testing.assert_close(found, rows, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights(trainer), weights(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_resumed_bfloat16_run_ends_in_the_same_bits(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "BACKENDS", PLAIN)
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    config = small("emma", precision="bfloat16", compiled=compiled, optimizer="nadam")
    whole, history = train(config, images(), device=CPU)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Paused):
        train(config, images(), device=CPU, checkpoint=path, should_pause=lambda: True)
    resumed, again = train(config, images(), device=CPU, checkpoint=path)
    assert again == history
    used = {(row["precision"], row["compiled"]) for row in history}
    assert used == {("bfloat16", "aot_eager" if compiled else None)}
    tensors = resumed.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in whole.state_dict().items())


def test_a_resumed_run_does_not_compile_again_what_differed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would end in other bits: what differs in one batch may agree in the next ones."""
    monkeypatch.setattr(step, "BACKENDS", PLAIN)
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    path = tmp_path / "checkpoint.safetensors"
    config = small("emma", compiled=True)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", _no_compiler)
        with pytest.raises(Paused):
            train(config, images(), device=CPU, checkpoint=path, should_pause=lambda: True)
    _, history = train(config, images(), device=CPU, checkpoint=path)
    assert {row["compiled"] for row in history} == {None}


def test_bfloat16_is_for_the_forward_pass_alone() -> None:
    trainer, rows = steps_of(small("emma", precision="bfloat16", optimizer="adam"))
    _, exact = steps_of(small("emma", optimizer="adam"))
    assert not torch.equal(rows, exact)
    torch.testing.assert_close(rows[:, 0], exact[:, 0], rtol=0.05, atol=0.01)
    assert {tensor.dtype for tensor in trainer.state().values()} == {torch.float32}
    graph, x = trainer.graph, images(8).x.float() / 255
    # Norms and what a validation sees are the same as ever.
    with torch.no_grad(), graph.computing_in(torch.bfloat16):
        graph.refresh()
        coarse, norm = graph.features(x), graph.lipschitz()
    with torch.no_grad():
        fine = graph.features(x)
        graph.power_steps = 0
        graph.refresh()
        assert torch.equal(graph.lipschitz(), norm)
    assert coarse.dtype == fine.dtype == torch.float32
    assert not torch.equal(coarse, fine)
    torch.testing.assert_close(coarse, fine, rtol=0.05, atol=0.05)


BFLOAT16 = [row.name for row in TRAINING_METHODS.values() if row.bfloat16]


# Of both methods for skew convolutions by day one, and of the others every second.
@pytest.mark.parametrize(
    "method", part(BFLOAT16, *(i for i, name in enumerate(BFLOAT16) if i % 2 or name == "soc-crc"))
)
def test_bfloat16_learns_what_float32_learns(method: str) -> None:
    shares = []
    for precision in ("float32", "bfloat16"):
        config = config_of(
            method,
            epochs=15,
            learning_rate=5e-3,
            augmentation="none",
            epsilon=0.1,
            precision=precision,
        )
        _, history = train(config, images(120), device=CPU)
        shares.append((history[-1]["validation_accuracy"], history[-1]["validation_robust"]))
    assert shares[1][0] >= shares[0][0] - 0.1
    assert shares[1][1] >= shares[0][1] - 0.1


@pytest.mark.parametrize("row", TRAINING_METHODS.values(), ids=lambda row: row.name)
def test_a_run_computes_as_its_methods_row_says(row: TrainingMethod) -> None:
    gpu = torch.device("cuda")
    config = config_of(row.name, precision="auto", compiled="auto")
    gains = row.bfloat16_on_cpu and has_bfloat16_products()
    assert dtype_of(config, CPU) == (torch.bfloat16 if gains else torch.float32)
    assert not wants_compilation(config, CPU)
    assert wants_compilation(config, gpu) == row.compiled
    forced = config_of(row.name, precision="bfloat16")
    if row.bfloat16:
        assert dtype_of(forced, CPU) == torch.bfloat16
    else:
        with pytest.raises(TrainingError) as caught:
            dtype_of(forced, CPU)
        assert caught.value.code == "unsupported_precision"
