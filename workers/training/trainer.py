"""The trainer: network, optimiser and running norms of a run, advanced batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures.published import build
from models.network import Network
from workers.training.config import TrainingConfig, TrainingError
from workers.training.data import seeded
from workers.training.distributed.ranks import ALONE, Ranks
from workers.training.lookahead import Lookahead
from workers.training.objectives import OBJECTIVES, ScheduledWeights
from workers.training.optimizers import OPTIMIZERS, set_rate
from workers.training.precision import dtype_of, wants_compilation
from workers.training.step import TrainingStep
from workers.training.training_graph import TrainingGraph

__all__ = ["Trainer", "build_network", "network_in"]

Parameters = Iterable[nn.Parameter]


def build_network(config: TrainingConfig) -> Network:
    """The run's network with its first weights. Raises ModelError."""
    generator = seeded(config.seed, 3, 0)
    initial: dict[str, Any] = {}
    if config.theta is not None:
        initial["theta"] = config.theta
    if config.init is not None:
        initial["init"] = config.init
    network = build(
        config.architecture, activation=config.activation, generator=generator, initial=initial
    )
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def network_in(config: TrainingConfig, tensors: Mapping[str, Tensor]) -> Network:
    """The network of a checkpoint, whose tensors are ``Trainer.state()``, on the CPU."""
    network = build_network(config)
    own = ((name.partition("."), tensor) for name, tensor in tensors.items())
    network.load_state_dict({name: tensor for (part, _, name), tensor in own if part == "network"})
    return network


class Trainer:
    """Trains ``network`` in place, on its own device, together with the other ``ranks``."""

    def __init__(self, config: TrainingConfig, network: Network, ranks: Ranks = ALONE) -> None:
        if config.method not in OBJECTIVES:
            raise TrainingError("unknown_method", f"there is no training method {config.method!r}")
        self.config = config
        self.network = network
        self.ranks = ranks
        # Raises for networks that cannot be trained, so below there are parameters.
        self.graph = TrainingGraph(
            network,
            power_steps=config.power_steps,
            generator=seeded(config.seed, 4, 0),
            ranks=ranks,
        )
        self.device = self.graph.head.weight.device
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[config.optimizer](
            network, self.parameters, config.learning_rate, config.weight_decay
        )
        objective = OBJECTIVES[config.method]
        self.stages = objective.stages(self.graph, config)
        self.lookahead = Lookahead(self.parameters, config.lookahead) if config.lookahead else None
        self.dtype = dtype_of(config, self.device)
        self.step = TrainingStep(
            self.graph,
            objective.loss,
            config,
            # Messages between ranks are no part of a compiled graph.
            compiles=ranks.alone and wants_compilation(config, self.device),
        )

    def train_on(self, x: Tensor, y: Tensor, progress: float, step: int) -> Tensor:
        """Do the step of this number, at ``progress`` (0 to 1) of the run, on the whole batch.

        Returns this rank's part of (loss, correct, robust), float32 [3], on the device: nothing
        waits for it.
        """
        set_rate(self.optimizer, self.config.rate(progress))
        if self._begins_stage(progress, step):
            self.optimizer.state.clear()
        rows = len(x)
        part, share = self.ranks.part(rows), self.ranks.share(rows)
        at = ScheduledWeights.at(self.config, progress, step).within(part.start, rows)
        with self.graph.computing_in(self.dtype):
            loss, counts = self.step(x[part], y[part], at, share)
        self.graph.keep_statistics()
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        if self.lookahead is not None:
            self.lookahead.step()
        with torch.no_grad():
            for node in self.network.nodes:
                self.network.layer(node.name).project()
            return torch.cat([loss.reshape(1), counts])

    def _begins_stage(self, progress: float, step: int) -> bool:
        """Whether the step of this number is the first one of a stage but the first."""
        if self.stages == 1 or step == 0:
            return False
        before = (step - 1) / round(step / progress)
        return self.stage(progress) != self.stage(before)

    def stage(self, progress: float) -> int:
        """The stage, from 0, at ``progress`` of the run."""
        return min(int(progress * self.stages), self.stages - 1)

    def end_epoch(self) -> None:
        """Prepare for validation: slow weights of Lookahead become those of the network."""
        if self.lookahead is not None:
            self.lookahead.look()

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the rest of the run depends on."""
        tensors = {f"network.{k}": v.detach() for k, v in self.network.state_dict().items()}
        tensors |= {f"vectors.{name}": vector for name, vector in self.graph.vectors.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        if self.lookahead is not None:
            tensors |= self.lookahead.state()
        if self.step.given_up:
            tensors["step.given_up"] = torch.tensor(self.step.given_up)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` returned. Raises TrainingError if it does not fit."""
        network: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part == "network":
                network[name] = tensor
            elif part == "vectors" and name in self.graph.vectors:
                self.graph.vectors[name] = tensor.to(self.device)
            elif part == "optimizer":
                index, _, field = name.partition(".")
                # Counters of steps are read by the host: on a GPU each read would wait for it.
                moments.setdefault(int(index), {})[field] = (
                    tensor.cpu() if field == "step" else tensor
                )
        try:
            self.network.load_state_dict(network)
            known = self.optimizer.state_dict()
            self.optimizer.load_state_dict({**known, "state": moments})
            for moment in self.optimizer.state.values():
                # NAdam's running product is read by the host too, but is moved to the device.
                if "mu_product" in moment:
                    moment["mu_product"] = moment["mu_product"].cpu()
            if self.lookahead is not None:
                self.lookahead.restore(tensors)
            self.step.restore(int(tensors.get("step.given_up", 0)))
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(
                "bad_checkpoint", f"the checkpoint does not fit: {error}"
            ) from error
        self.graph.refresh()
