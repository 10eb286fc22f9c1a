"""Loss and gradients of one batch: as they stand, or compiled where that works and agrees.

``torch.compile`` makes one graph of bounds and loss, on a GPU a captured CUDA graph. It is a matter
of speed alone: whatever goes wrong with it is logged, and the run goes on without it. The first
steps of every phase are computed both ways, and a compiled one that differs is not used again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workers.training.config import TrainingConfig
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph
from workers.verification.answers import label_leads

if TYPE_CHECKING:
    from workers.training.objectives.objective import Loss

__all__ = ["BACKENDS", "Backend", "TrainingStep"]

logger = logging.getLogger(__name__)

Vectors = dict[str, Tensor]
#: (x, y, where the schedules stand) -> (loss, [correct, robust], vectors of the power steps).
Function = Callable[[Tensor, Tensor, ScheduledWeights], tuple[Tensor, Tensor, Vectors]]

#: Compiled steps per phase that are compared: a CUDA graph is captured at the second call.
COMPARED = 4
#: Largest relative difference of the loss and of a tensor's gradient. Rounding turns the choice of
#: a maximum now and then (2e-3 was seen on cifar-6c2f); float32 on a GPU is TF32.
TOLERANCE = {
    ("cpu", torch.float32): 0.01,
    ("cuda", torch.float32): 0.03,
    ("cpu", torch.bfloat16): 0.2,
    ("cuda", torch.bfloat16): 0.2,
}
#: Gradients of less than this share of the whole count as so large.
MIN_SHARE = 0.01


@dataclass(frozen=True)
class Backend:
    """A backend of ``torch.compile`` and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


#: Per kind of device, in the order in which they are tried. "cudagraphs" needs no compiler.
BACKENDS: dict[str, tuple[Backend, ...]] = {
    "cuda": (Backend("inductor", {"triton.cudagraphs": True}), Backend("cudagraphs")),
    "cpu": (Backend("inductor"),),
}


class _Differs(RuntimeError):
    """The compiled step is not the step."""


class TrainingStep:
    """One objective on one network. ``compiled``: the backend in use, None where there is none."""

    def __init__(
        self, graph: TrainingGraph, loss: Loss, config: TrainingConfig, *, compiles: bool
    ) -> None:
        self.graph, self.config = graph, config
        self.loss = loss
        self.ranks = graph.ranks
        self.parameters = [p for p in graph.network.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self._backends = list(BACKENDS.get(self.device.type, ())) if compiles else []
        #: How many backends failed or differed.
        self.given_up = 0
        self._compiled: Function | None = None
        self._compared: Counter[tuple[bool, bool, bool]] = Counter()

    @property
    def compiled(self) -> str | None:
        """The backend in use."""
        return self._backends[0].name if self._backends else None

    def restore(self, given_up: int) -> None:
        """Go on as the run went on: a backend that differed once is not used by its later part."""
        del self._backends[:given_up]
        self.given_up = given_up

    def __call__(
        self, x: Tensor, y: Tensor, at: ScheduledWeights, share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(loss, [correct, robust]) of this rank's ``share`` of the batch; the gradients of the
        whole batch are the parameters'. The ranks' results add up to those of the batch.
        """
        while self._backends:
            try:
                return self._by_compiler(x, y, at)
            # Any: a compiler may fail in many ways, and what is wrong with the step shows below.
            except Exception as error:  # noqa: BLE001
                self._give_up(error)
                # A lost device fails every call: that is no fault of the compiler's.
                torch.zeros((), device=self.device).item()
        return self._run(self._function, x, y, at, share)

    def _function(
        self, x: Tensor, y: Tensor, at: ScheduledWeights
    ) -> tuple[Tensor, Tensor, Vectors]:
        """Pure but for ``graph.vectors`` and what ``graph`` remembers of the step."""
        graph = self.graph
        graph.vectors = dict(graph.vectors)
        loss, found = self.loss(graph, x, y, at, self.config)
        with torch.no_grad():
            right = label_leads(found.logits, y)
            robust = right & label_leads(found.worst, y)
            counts = torch.stack([right.float().sum(), robust.float().sum()])
        graph.forget()
        return loss, counts, graph.vectors

    def _run(
        self,
        function: Function,
        x: Tensor,
        y: Tensor,
        at: ScheduledWeights,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        graph = self.graph
        for parameter in self.parameters:
            parameter.grad = None
        graph.refresh()
        with graph.by_batch(share):
            loss, counts, vectors = function(x, y, at)
        if not self.ranks.alone:
            loss = loss * share
        loss.backward()
        self.ranks.add_gradients(self.parameters)
        graph.vectors = vectors
        return loss.detach(), counts

    def _by_compiler(self, x: Tensor, y: Tensor, at: ScheduledWeights) -> tuple[Tensor, Tensor]:
        if self._compiled is None:
            self._compiled = _compile(self._function, self._backends[0])
        before = self.graph.vectors
        expected = None
        if self._compared[at.phase] < COMPARED:
            loss, _ = self._run(self._function, x, y, at)
            expected = loss, _gradients(self.parameters)
            self.graph.vectors = before
        try:
            torch.compiler.cudagraph_mark_step_begin()
            loss, counts = self._run(self._compiled, x, y, at.on(self.device))
            # What a captured graph returns lies where its next run writes.
            self.graph.vectors = {name: v.clone() for name, v in self.graph.vectors.items()}
            if expected is not None:
                self._compared[at.phase] += 1
                self._compare(*expected, loss)
        except BaseException:
            self.graph.vectors = before
            raise
        return loss.clone(), counts.clone()

    def _compare(self, loss: Tensor, gradients: list[Tensor], found: Tensor) -> None:
        """Raise _Differs where the compiled step's loss or a gradient is another one."""
        if not bool(torch.isfinite(loss)):
            return  # the run diverges, compiled or not
        off = (found - loss).abs() / loss.abs().clamp_min(1e-3)
        sizes = torch.stack([gradient.norm() for gradient in gradients])
        pairs = zip(_gradients(self.parameters), gradients, strict=True)
        turned = torch.stack([(mine - theirs).norm() for mine, theirs in pairs])
        turned = (turned / (sizes + MIN_SHARE * sizes.norm()).clamp_min(1e-9)).max()
        if not bool(torch.maximum(off, turned) <= TOLERANCE[self.device.type, self.graph.dtype]):
            raise _Differs(f"loss off by {float(off):.1e}, a gradient by {float(turned):.1e}")

    def _give_up(self, error: Exception) -> None:
        """On to the next backend, or to none."""
        backend = self._backends.pop(0)
        self.given_up += 1
        self._compiled = None
        self._compared.clear()
        torch.compiler.reset()
        reason = next(iter(str(error).strip().splitlines()), "")[:300]
        logger.warning(
            "the step is not compiled by %s, training goes on with %s: %s: %s",
            backend.name,
            self.compiled or "no compiler",
            type(error).__name__,
            reason,
        )


def _compile(function: Function, backend: Backend) -> Function:
    """One whole graph or an error; nothing compiled for an earlier run is left."""
    import torch._inductor.config

    # Compiling processes of its own would outlive a worker that is killed.
    torch._inductor.config.compile_threads = 1
    # Headers compiled beforehand would lie in /tmp, wherever all else is told to go, under a name
    # that anybody can guess.
    torch._inductor.config.cpp_cache_precompile_headers = False
    # Else kernels are chosen by a clock, and a resumed run may add in another order.
    torch._inductor.config.deterministic = True
    torch.compiler.reset()
    compiled: Function = torch.compile(
        function,
        backend=backend.name,
        options=backend.options or None,
        fullgraph=True,
        dynamic=False,
    )
    return compiled


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """What the last run gave; a further run gives others."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
