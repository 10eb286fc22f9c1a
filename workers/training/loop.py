"""The training loop of all methods: epochs, schedules, curve, checkpoints, resumption.

A step depends only on the run's settings, its own number and the tensors of the checkpoint. So a
run that was killed and resumed ends in the same bits as one that was not (same machine and
threads).
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.network import Network
from workers.training.checkpoint import Checkpoint, run_digest
from workers.training.config import TrainingConfig, TrainingError
from workers.training.data import TrainingData, check_data, pixels, split
from workers.training.distributed.ranks import ALONE, Ranks
from workers.training.objectives import OBJECTIVES
from workers.training.trainer import Trainer, build_network
from workers.verification.answers import label_leads

__all__ = ["History", "Paused", "Report", "train"]

#: The curve: one row per epoch.
History = list[dict[str, Any]]
#: Told how far a run is: (steps done, of how many, where it stands in words).
Report = Callable[[int, int, str], None]
#: Most steps between two looks at the loss, and seconds after which one is due: a look waits for
#: the device, and only there can a run be paused.
LOOK_EVERY = 20
LOOK_AFTER_S = 1.0
#: Seconds between two checkpoints.
CHECKPOINT_S = 30.0
VALIDATION_BATCH = 500


class Paused(Exception):
    """The run was asked to stop; its checkpoint is written."""


def train(
    config: TrainingConfig,
    data: TrainingData,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: Report = lambda done, total, message: None,
    on_epoch: Callable[[History], None] = lambda history: None,
    on_checkpoint: Callable[[], None] = lambda: None,
    should_pause: Callable[[], bool] = lambda: False,
    checkpoint_s: float = CHECKPOINT_S,
    ranks: Ranks = ALONE,
) -> tuple[Network, History]:
    """Train to the end and return the network (on the CPU, as trained) and the curve.

    ``progress(steps done, of how many, message)`` is called every few steps and while an epoch is
    validated, ``on_epoch(curve so far)`` after every epoch. ``should_pause`` is asked every few
    steps. Checkpoints are written to ``checkpoint`` every ``checkpoint_s`` seconds, before a pause
    and at the end, and ``on_checkpoint`` is called; where one is there, the run goes on from it.
    Of several ``ranks`` each calls this with the same settings and data; the first one's answers
    count, and it alone writes checkpoints.
    Raises TrainingError (training_diverged, shape_mismatch, label_out_of_range, too_few_samples,
    bad_checkpoint), ModelError, Paused, OSError (a full disk), RanksLost.
    """
    kept = _Kept(checkpoint, checkpoint_s, on_checkpoint)
    with _arithmetic(device):
        return _train(config, data, device, kept, progress, on_epoch, should_pause, ranks)


@contextlib.contextmanager
def _arithmetic(device: torch.device) -> Iterator[None]:
    """Set a GPU to repeatable algorithms and give it all its memory; TF32 for convolutions alone.

    TF32 in the factorisation of an orthogonal layer would train another network than the one that
    is deployed. At the end the GPU memory is released, because a certification may follow.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    torch.cuda.set_per_process_memory_fraction(1.0, device.index)
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Kept:
    """Where and how often a checkpoint is written, and whom to notify."""

    path: Path | None
    every_s: float
    told: Callable[[], None]


def _train(
    config: TrainingConfig,
    data: TrainingData,
    device: torch.device,
    kept_at: _Kept,
    progress: Report,
    on_epoch: Callable[[History], None],
    should_pause: Callable[[], bool],
    ranks: Ranks,
) -> tuple[Network, History]:
    network = build_network(config).to(device)
    check_data(network, data)
    kept, held = split(data, config.validation_samples, config.seed)
    kept, held = kept.to(device), held.to(device)
    trainer = Trainer(config, network, ranks)
    digest = run_digest(config, len(data.x))
    at = Checkpoint()
    if kept_at.path is not None:
        at = Checkpoint.load(kept_at.path, digest, device) or at
        if at.step:
            trainer.restore(at.tensors)
    loop = _Loop(config, trainer, kept, held, at, ranks)
    if not ranks.alone:
        # All have begun with the same checkpoint, or without one.
        ranks.check_equal({"loop.step": torch.tensor(loop.step), **loop.state()}, device)
    began, saved = time.monotonic() - at.seconds, time.monotonic()
    while loop.step < loop.total:
        if loop.advance(progress):
            on_epoch(loop.history)
        ended = loop.step == loop.total
        pausing = not ended and should_pause()
        due = ended or pausing or time.monotonic() - saved > kept_at.every_s
        pausing, due = loop.decided(pausing=pausing, due=due)
        if kept_at.path is not None and due:
            state, spent = loop.state(), time.monotonic() - began
            ranks.check_equal(state, device)
            if ranks.first:
                Checkpoint(loop.step, state, loop.history, spent).save(kept_at.path, digest)
                kept_at.told()
            saved = time.monotonic()
        if pausing:
            raise Paused
    network = network.cpu()
    if ranks.first and network.deployed().non_finite():
        raise loop.diverged()
    return network, loop.history


class _Loop:
    """The state of a run: the step, the order of the epoch and its sums (loss, correct, robust)."""

    def __init__(
        self,
        config: TrainingConfig,
        trainer: Trainer,
        data: TrainingData,
        held: TrainingData,
        at: Checkpoint,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.config, self.trainer, self.data, self.held = config, trainer, data, held
        self.batch_size = min(config.batch_size, len(data.x))
        if self.batch_size < ranks.size:
            raise TrainingError(
                "too_few_samples",
                f"a batch of {self.batch_size} samples cannot be shared by {ranks.size} devices",
                hint="fewer devices, or a larger batch",
                field="devices",
            )
        self.per_epoch = data.steps(self.batch_size)
        self.total = config.epochs * self.per_epoch
        self.step = at.step
        self.history: History = list(at.history)
        #: Sums of the epoch so far, of every rank: [ranks, 3]; this rank's own are its row.
        sums = at.tensors.get("loop.sums")
        self.table = (
            torch.zeros(ranks.size, 3, device=trainer.device)
            if sums is None
            else sums.reshape(ranks.size, 3)
        )
        self.sums = self.table[ranks.rank]
        #: Steps until the ranks look at the loss again: a clock of their own none of them has.
        self._stride, self._step_s = LOOK_EVERY if ranks.alone else 1, 0.0
        self._order: tuple[int, Tensor] | None = None

    def state(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint."""
        sums = self.table[0] if self.ranks.alone else self.table
        return {**self.trainer.state(), "loop.sums": sums}

    def decided(self, *, pausing: bool, due: bool) -> tuple[bool, bool]:
        """What the first rank says of both, for all of them; and how far they go until they look
        again."""
        if self.ranks.alone:
            return pausing, due
        stride = min(float(LOOK_EVERY), LOOK_AFTER_S / max(self._step_s, 1e-6))
        told = self.ranks.decided([pausing, due, max(1.0, stride)], self.trainer.device)
        self._stride = int(told[2])
        return bool(told[0]), bool(told[1])

    def advance(self, progress: Report) -> bool:
        """Do some steps of the epoch. Returns whether it ended; its row is then on the curve."""
        epoch, first = divmod(self.step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.data.order(self.config.seed, epoch))
        order = self._order[1]
        last = min(self.per_epoch, (first // LOOK_EVERY + 1) * LOOK_EVERY, first + self._stride)
        began = time.monotonic()
        try:
            for index in range(first, last):
                self._step(order, index)
                if self.ranks.alone and time.monotonic() - began > LOOK_AFTER_S:
                    break
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            # Singular values raise on the first weight that is not finite, before a loss is seen.
            raise self.diverged() from error
        # The only look: it waits for the device.
        self.table = self.ranks.table(self.sums)
        sums = self.table.sum(0).tolist()
        self._step_s = (time.monotonic() - began) / (last - first)
        if not all(map(math.isfinite, sums)):
            raise self.diverged()
        standing = f"epoch {epoch + 1} of {self.config.epochs}"
        stages = self.trainer.stages
        if stages > 1:
            stage = self.trainer.stage((self.step - 1) / self.total)
            standing = f"stage {stage + 1} of {stages}, {standing}"
        ended = self.step % self.per_epoch == 0
        if ended:
            self.trainer.end_epoch()
            validating = lambda: progress(self.step, self.total, f"{standing}: validating")  # noqa: E731
            self.history.append(self._row(epoch, validating))
            self.table = torch.zeros_like(self.table)
            self.sums = self.table[self.ranks.rank]
        progress(self.step, self.total, f"{standing}, {self._message(sums, ended=ended)}")
        return ended

    def _step(self, order: Tensor, index: int) -> None:
        """Train on the batch at ``index`` of the epoch."""
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        x, y = self.data.batch(rows, self.config.augmentation, self.config.seed, self.step)
        self.sums = self.sums + self.trainer.train_on(x, y, self.step / self.total, self.step)
        self.step += 1

    def _row(self, epoch: int, validating: Callable[[], None]) -> dict[str, Any]:
        """The row of one epoch on the curve. Accuracies lie in [0, 1].

        robust: the method's own estimate, not a certificate, at the current epsilon; for validation
        samples at the full epsilon. precision, compiled: as at the end of the epoch.
        """
        progress = self.step / self.total
        loss, correct, robust = (float(value) for value in self.table.sum(0))
        seen = self.per_epoch * self.batch_size
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": loss / self.per_epoch,
            "accuracy": correct / seen,
            "robust": robust / seen,
            "epsilon": self.config.epsilon * self.config.epsilon_schedule.at(progress),
            "learning_rate": self.config.rate((self.step - 1) / self.total),
            "precision": str(self.trainer.dtype).removeprefix("torch."),
            "compiled": self.trainer.step.compiled,
        }
        if len(self.held.x):
            row["validation_accuracy"], row["validation_robust"] = self._validate(validating)
        return row

    @torch.no_grad()
    def _validate(self, validating: Callable[[], None]) -> tuple[float, float]:
        graph, config, samples = self.trainer.graph, self.config, len(self.held.x)
        bound = OBJECTIVES[config.method].bound
        graph.refresh()
        part = self.ranks.part(samples)
        # A rank that has none looks at one all the same: a bound moves the graph's vectors.
        seen = part if part.stop > part.start else slice(0, 1)
        counts = torch.zeros(2, dtype=torch.int64, device=self.trainer.device)
        for x, y in zip(
            self.held.x[seen].split(VALIDATION_BATCH),
            self.held.y[seen].split(VALIDATION_BATCH),
            strict=True,
        ):
            validating()
            found = bound(graph, pixels(x), y, config.epsilon, config)
            right = label_leads(found.logits, y)
            robust = right & label_leads(found.worst, y)
            if seen is part:
                counts += torch.stack([right.sum(), robust.sum()])
        correct, sure = self.ranks.table(counts).sum(0).tolist()
        return correct / samples, sure / samples

    def _message(self, sums: list[float], *, ended: bool) -> str:
        """Progress message: loss and the estimate so far; at the end that on validation samples."""
        steps = (self.step - 1) % self.per_epoch + 1
        loss, robust = sums[0] / steps, sums[2] / (steps * self.batch_size)
        if ended:
            robust = self.history[-1].get("validation_robust", robust)
        return f"loss {loss:.3f}, robust {100 * robust:.1f} % (estimate)"

    def diverged(self) -> TrainingError:
        """The error for a loss or a weight that is not finite."""
        epoch = max(self.step - 1, 0) // self.per_epoch + 1
        return TrainingError(
            "training_diverged",
            f"the loss or a weight is not finite in epoch {epoch}",
            hint="a lower learning_rate, a longer warm-up, or clip_norm in the recipe",
        )
