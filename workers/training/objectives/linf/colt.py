"""COLT: adversarial training layer by layer (Balunovic and Vechev, ICLR 2020).

Stage by stage the adversary moves inward: from the natural images to the pixels' box, then to the
set that a zonotope has behind the first ReLU, and so on. What lies before it is frozen, so that at
the end the layers left face what a zonotope will later prove them against. Widths of the sets are
estimates (``workers.training.bounds.latent``): they train, and prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.bounds.box import Box, pixel_box
from workers.training.bounds.last_layer import pair_differences
from workers.training.bounds.latent import (
    Lines,
    Widths,
    activations_of,
    draw_cauchy,
    latent_points,
    term_shapes,
)
from workers.training.config import TrainingConfig, TrainingError
from workers.training.objectives.bounded import Bounded, reference_of
from workers.training.objectives.linf.attack import ascended
from workers.training.objectives.linf.boxes import option
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "LatentSets", "Stage", "colt", "estimated_bound", "stages_of"]

#: Purposes of the random numbers: starts of the two attacks, then a set of terms each.
ATTACK, EARLIER_ATTACK, PROJECTIONS = 0, 1, 2
#: The adversary's place before the first ReLU, and none at all.
PIXELS, NATURAL = -1, -2
#: Projections of the estimate on validation samples, and samples at once.
VALIDATION_PROJECTIONS, VALIDATION_ROWS = 10, 50


@dataclass(frozen=True)
class Stage:
    """One stage: ReLUs by number, PIXELS and NATURAL beside them.

    attacked: behind which the adversary is, and up to which all is frozen; before: where it was;
    stable: the ReLU whose unstable neurons are punished (None: none); share: weight of the new
    adversary, the rest is the earlier one's; places: positions of all ReLUs.
    """

    number: int
    attacked: int
    before: int
    stable: int | None
    share: float
    places: tuple[int, ...]

    @classmethod
    def at(cls, graph: TrainingGraph, config: TrainingConfig, progress: float) -> Stage:
        """At ``progress`` (0 to 1) of the run, of which all stages have an equal part.

        In ``mix`` of a stage the new adversary takes over.
        """
        places, stages = tuple(activations_of(graph)), stages_of(graph, config)
        number = min(int(progress * stages), stages - 1)
        within = progress * stages - number
        mix = option(config, "mix", 0.3)
        return cls(
            number,
            number - 1,
            number - 2,
            number if number < stages - 1 else None,
            min(1.0, within / mix) if mix > 0.0 else 1.0,
            places,
        )

    def frozen(self) -> int:
        """How many steps are frozen."""
        return 0 if self.attacked == PIXELS else self.places[self.attacked] + 1


def stages_of(graph: TrainingGraph, config: TrainingConfig) -> int:
    """One for the pixels and one for each ReLU but the last, or as many as ``latent_layers`` says.

    Raises TrainingError where there are not so many, or for a network that COLT does not train.
    """
    places = activations_of(graph)
    asked = config.options.get("latent_layers")
    latent = len(places) - 1 if asked is None else int(asked)
    if latent > len(places):
        raise TrainingError(
            "unsupported_architecture",
            f"{latent} latent layers are asked for, and the network has {len(places)} ReLUs",
            hint="a smaller latent_layers, or none at all",
            field="recipe.options.latent_layers",
        )
    return latent + 1


@dataclass
class LatentSets:
    """The adversary's sets of one batch."""

    graph: TrainingGraph
    y: Tensor
    box: Box
    at: ScheduledWeights
    config: TrainingConfig
    stage: Stage
    widths: Widths = field(init=False)
    lines: list[Lines] = field(default_factory=list)

    def __post_init__(self) -> None:
        like = self.box.lower

        def draw(number: int, shape: tuple[int, ...]) -> Tensor:
            generator = self.at.generator(self.config, PROJECTIONS + number)
            return draw_cauchy(generator, like, shape)

        count = int(option(self.config, "projections", 50))
        self.widths = Widths(self.graph, self.box, draw, count)
        # All of it is frozen.
        with torch.no_grad():
            for place in self.stage.places[: self.stage.attacked + 1]:
                self.lines.append(self.widths.until(place))
                self.widths.through(self.lines[-1])
            if self.stage.stable is not None:
                self.widths.settle()

    def attacked(self, relu: int, purpose: int) -> Tensor:
        """Points behind a ReLU (PIXELS: pixels) with a large cross-entropy, carried on, frozen, to
        where the stage's own adversary is."""
        last = PIXELS if relu == PIXELS else self.stage.places[relu]
        lines = self.lines[: relu + 1]
        shapes = term_shapes(self.graph, lines)
        total = sum(torch.Size(shape).numel() for shape in shapes)
        ones = torch.ones(len(self.y), total, device=self.y.device)

        def height(terms: Tensor) -> Tensor:
            points = latent_points(self.graph, self.box, lines, terms, last)
            return F.cross_entropy(self.logits(points, last + 1), self.y, reduction="none")

        terms = ascended(
            height,
            Box(-ones, ones),
            lambda restart: self.at.uniform(self.config, ones, purpose),
            steps=int(option(self.config, "attack_steps", 8)) - 1,
            restarts=1,
            step_size=option(self.config, "attack_step_size", 0.25),
        )
        with torch.no_grad():
            return self.carried(latent_points(self.graph, self.box, lines, terms, last), last + 1)

    def carried(self, points: Tensor, first: int) -> Tensor:
        """Points before the step ``first`` to where the trained steps begin."""
        for step in self.graph.steps[first : self.stage.frozen()]:
            points = self.graph.run(step, points)
        return points

    def logits(self, points: Tensor, first: int) -> Tensor:
        """From points before the step ``first``."""
        for step in self.graph.steps[first:]:
            points = self.graph.run(step, points)
        return self.graph.logits(points)

    def instability(self, relu: int) -> Tensor:
        """Mean over the batch of sum_i max(-l_i, 0) max(u_i, 0) before the ReLU, with gradient."""
        lines = self.widths.until(self.stage.places[relu])
        gap: Tensor = ((-lines.lower).relu() * lines.upper.relu()).flatten(1).sum(1)
        return gap.mean()


def colt(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """kappa CE(new adversary) + (1 - kappa) CE(the one before) + l1 |W|_1 + kappa rho instability.

    kappa rises from 0 to 1 in the first ``mix`` of each stage; rho grows from stage to stage.
    """
    stage = Stage.at(graph, config, at.progress)
    sets = LatentSets(graph, y, pixel_box(x, at.epsilon), at, config, stage)
    kappa, first = stage.share, stage.frozen()
    points = [sets.attacked(stage.attacked, ATTACK)]
    if kappa < 1.0:
        natural = stage.before == NATURAL
        points.append(
            sets.carried(x, 0) if natural else sets.attacked(stage.before, EARLIER_ATTACK)
        )
    logits = sets.logits(torch.cat(points), first).split(len(x))
    loss = F.cross_entropy(logits[0], y)
    if kappa < 1.0:
        loss = kappa * loss + (1.0 - kappa) * F.cross_entropy(logits[1], y)
    l1 = option(config, "l1", 0.0)
    if l1 > 0.0:
        frozen = {step.name for step in graph.steps[:first]}
        trained = [w for name, (w, _) in graph.weights.items() if name not in frozen]
        loss = loss + l1 * torch.stack([weight.abs().sum() for weight in trained]).sum()
    weight = option(config, "stability", 0.0) * option(config, "stability_growth", 1.5) ** (
        stage.number
    )
    if stage.stable is not None and weight > 0.0 and kappa > 0.0:
        loss = loss + kappa * weight * sets.instability(stage.stable)
    with torch.no_grad():
        clean = graph.logits(graph.features(x))
    return loss, Bounded(clean, logits[0].detach())


def estimated_bound(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """Worst logits of the zonotope over the whole network, by projections: an estimate."""
    found = []
    chosen = reference_of(graph.logits(graph.features(x)), reference)
    at = ScheduledWeights.of(0.0, 0.0, 0.0)
    numbers: dict[int, Tensor] = {}

    def draw(number: int, shape: tuple[int, ...]) -> Tensor:
        if number not in numbers:
            generator = at.generator(config, PROJECTIONS + number)
            numbers[number] = draw_cauchy(generator, x, shape)
        return numbers[number]

    for rows, labels in zip(x.split(VALIDATION_ROWS), chosen.split(VALIDATION_ROWS), strict=True):
        widths = Widths(graph, pixel_box(rows, epsilon), draw, VALIDATION_PROJECTIONS)
        for place in activations_of(graph):
            widths.through(widths.until(place))
        widths.until(len(graph.steps))
        gaps = widths.gaps(pair_differences(graph.head_weight, labels))
        logits = graph.logits(graph.features(rows))
        middle = graph.logits(widths.centre)
        worst = middle - middle.gather(1, labels[:, None]) + gaps
        found.append(Bounded(logits, logits.gather(1, labels[:, None]) + worst))
    return Bounded(
        torch.cat([part.logits for part in found]), torch.cat([part.worst for part in found])
    )


OBJECTIVES = {"colt": Objective(colt, estimated_bound, stages_of)}
