"""One sample's condensed network for tests, and what deployed executions make of its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.network import INPUT, Network
from tests.workers.verification.regions import points_of
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.condensation import Units, units_of
from workers.verification.bounds.crown import refined_pass
from workers.verification.complete.condensed_network import CondensedNetwork
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["Sample", "sample_of"]


@dataclass(frozen=True)
class Sample:
    """The label's margins over all other classes, condensed over CROWN's boxes."""

    network: Network
    compiled: CompiledNetwork
    region: Region
    label: int
    backward: BackwardPass
    condensed: CondensedNetwork

    def executed(self, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """(input and units after the activation, units before it, margins), float64, at points of
        the region as float32 computes them: [points, ...]."""
        generator = torch.Generator().manual_seed(seed)
        points = torch.cat(points_of(self.region, generator, count))
        values = {INPUT: points}
        with torch.no_grad():
            for node in self.network.nodes:
                layer = self.network.layer(node.name)
                values[node.name] = layer(*(values[source] for source in node.inputs))
        logits = values[self.network.nodes[-1].name].double()
        before, after = [], []
        for held in units_of(self.backward):
            before.append(self._unit(held, values, result=not held.lines))
            after.append(self._unit(held, values, result=True))
        margins = logits[:, self.label, None] - logits[:, self.condensed.classes]
        flat = points.flatten(1).double()
        return torch.cat([flat, *after], 1), torch.cat([flat[:, :0], *before], 1), margins

    def _unit(self, held: Units, values: dict[str, Tensor], *, result: bool) -> Tensor:
        (source,) = self.backward.compiled.steps[held.step].sources
        value = self._value(held.step + 1 if result else source, values)
        return value.flatten(1)[:, held.places].double()

    def _value(self, value: int, values: dict[str, Tensor]) -> Tensor:
        """What an execution has there; of turned pairs, the real numbers that its own make."""
        if value == 0:
            return values[INPUT]
        step = self.backward.compiled.steps[value - 1]
        name = step.name.split("+")[-1]
        if name in values:
            return values[name]
        return forward_step(step, [self._value(source, values).double() for source in step.sources])


def sample_of(
    network: Network,
    x: Tensor,
    epsilon: float,
    norm: str = "linf",
    *,
    clip: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Sample:
    """x [1, *shape]; the label is what the network answers there."""
    compiled = CompiledNetwork.compile(network)
    region = Region(x, torch.tensor([epsilon], dtype=torch.float64), norm, clip)
    with torch.no_grad():
        labels = network(x).argmax(1)
        classes = torch.arange(network.classes)
        classes = classes[classes != labels]
        backward, _ = refined_pass(compiled, region, labels, Rounding.sound(dtype), dtype, "crown")
        condensed = CondensedNetwork.of(backward, int(labels), classes)
    return Sample(network, compiled, region, int(labels), backward, condensed)
