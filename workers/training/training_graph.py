"""A network while it is trained: weights as they act, and running estimates of operator norms.

Weights are read once per step (``refresh``), so that what is computed from them (orthogonal and
residual kernels, norms) is computed once. Norms are warm-started power steps with a gradient
through the last one only: LOWER estimates, good for training and for nothing else. What is
certified is the deployed network, by ``workers.verification``. A layer that is 1-Lipschitz by
construction (``Layer.one_lipschitz``) needs no estimate, and nothing else of it has to be known:
its deployed form may be a sub-graph.

Batch norm takes the statistics of the batch inside ``by_batch`` (a training step; of several ranks
those of the batch of them all), and its running ones outside it: a validation, the deployed network
and a certificate never see a batch. Within a step the first pass counts, which is that of the clean
samples: bounds and attacks that follow it see the same affine map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from models.layers.affine import Conv2d, Linear
from models.layers.joins import ReduceMean, ReduceSum
from models.layers.kinds import AvgPool2d, BatchNorm, Layer, Normalize, Shift
from models.network import INPUT, Network, Node
from workers.training.config import TrainingError
from workers.training.distributed.ranks import ALONE, Ranks
from workers.training.trained_maps import ScaledMap, SumMap, WeightedMap
from workers.verification.forward.ball import ball_rule, joined_radius
from workers.verification.graph.affine import Affine
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.rounding import Rounding

__all__ = ["TrainingGraph"]

#: Power steps before the first training step.
FIRST_STEPS = 30
WEIGHTED = (Conv2d, Linear)
#: Fixed linear maps without a negative entry: they are monotone, and their norms are known.
SUMS = (AvgPool2d, ReduceMean, ReduceSum)
#: Share of a batch in batch norm's running statistics.
MOMENTUM = 0.1
_TINY = 1e-12


class TrainingGraph:
    """``network`` in training; ``vectors`` (name -> [1, *input of the layer]) belong to its state.

    During a step they hold the running statistics of batch norm too, until ``keep_statistics``.

    Raises TrainingError where a layer cannot be trained with certificates.
    """

    def __init__(
        self,
        network: Network,
        *,
        power_steps: int,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
    ) -> None:
        self.network = network
        self.ranks = ranks
        self.power_steps = power_steps
        last = network.nodes[-1]
        head = network.layer(last.name)
        if not isinstance(head, Linear):
            raise TrainingError(
                "unsupported_architecture",
                f"the last layer must be linear, not {head.kind}",
                hint="end the layer list with the dense layer of the classes",
                field="architecture",
            )
        self.head, self._head_name = head, last.name
        self.shapes = {INPUT: network.input_shape, **{n.name: n.shape for n in network.nodes}}
        #: Shapes of (first) inputs, by the name of the step.
        self.in_shapes = {node.name: self.shapes[node.inputs[0]] for node in network.nodes}
        positions = {name: place for place, name in enumerate(self.shapes)}
        #: All but the last layer; value i + 1 is step i's result.
        self.steps = tuple(self._step(node, positions) for node in network.nodes[:-1])
        #: Convolutions that are read by a batch norm alone, by their places: to the batch norm's.
        #: A dense layer has more weights than results: scaling those is no gain.
        self.folded = self._folded()
        self._before = {norm: place for place, norm in self.folded.items()}
        #: Fixed linear maps as verification has them.
        self.sums = {s.name: self._sum(s.op, s.name) for s in self.steps if isinstance(s.op, SUMS)}
        self._rows = {n: op.row_norms().to(head.weight) for n, op in self.sums.items()}
        self._factors = {step.name: self._fixed_factor(step) for step in self.steps}
        #: What the plain forward pass computes in (``computing_in``); all else is float32.
        self.dtype = torch.float32
        self.vectors: dict[str, Tensor] = {}
        for step in self.steps:
            if isinstance(step.op, WEIGHTED) and not step.op.one_lipschitz:
                shape = (1, *self.in_shapes[step.name])
                start = torch.randn(shape, generator=generator)
                self.vectors[step.name] = (start / start.norm()).to(step.op.weight)
        self.weights: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._norms: dict[str, Tensor] = {}
        #: Batch norms' scale and shift, [channels] each, that this step's first pass has found.
        self._scales: dict[str, tuple[Tensor, Tensor]] = {}
        #: This rank's share of the batch in a training step, whose statistics batch norm takes.
        self._share: float | None = None
        with torch.no_grad():
            self.refresh()
            for name in self.vectors:
                self._iterate(name, FIRST_STEPS)
        self._norms = {}

    def _step(self, node: Node, positions: dict[str, int]) -> GraphStep:
        """The node for the rules of ``workers.verification``, which are those of training too."""
        layer = self.network.layer(node.name)
        rules = rules_of(layer)
        maps = (*WEIGHTED, *SUMS, BatchNorm, Normalize, Shift)
        known = rules.forward is not None and rules.ball is not None
        if not (isinstance(layer, maps) or layer.one_lipschitz or known):
            raise TrainingError(
                "unsupported_architecture",
                f"layer {node.name} ({layer.kind}) cannot be trained here",
                hint="convolutions, dense layers, batch norm, activations, pools and joins can",
                field="architecture",
            )
        sources = tuple(positions[source] for source in node.inputs)
        overlap = 1
        if rules.overlap is not None:
            overlap = rules.overlap(layer, self.in_shapes[node.name])
        return GraphStep(node.name, layer, sources, node.shape, overlap=overlap)

    def _folded(self) -> dict[int, int]:
        readers: dict[int, list[int]] = {}
        for index, step in enumerate(self.steps):
            for source in step.sources:
                readers.setdefault(source - 1, []).append(index)
        return {
            place: found[0]
            for place, found in readers.items()
            if len(found) == 1
            and place >= 0
            and isinstance(self.steps[place].op, Conv2d)
            and isinstance(self.steps[found[0]].op, BatchNorm)
        }

    def _sum(self, layer: Layer, name: str) -> Affine:
        translate = rules_of(layer).affine
        assert translate is not None
        return translate(layer, self.in_shapes[name])

    def refresh(self) -> None:
        """Read the weights anew; call it before every step."""
        self.forget()
        self.weights = {}
        for node in self.network.nodes:
            layer = self.network.layer(node.name)
            if isinstance(layer, WEIGHTED):
                self.weights[node.name] = layer.tensors()

    def forget(self) -> None:
        """Compute norms, and the statistics of a batch, anew when they are asked for."""
        self._norms = {}
        self._scales = {}

    def map_at(self, step: GraphStep, x: Tensor) -> WeightedMap | ScaledMap | SumMap | None:
        """The step as an affine map for its clean input x [batch, ...]; None for other layers."""
        if isinstance(step.op, WEIGHTED):
            return self.weighted(step.name)
        if isinstance(step.op, BatchNorm):
            return ScaledMap(*self.scale_and_shift(step.name, x))
        if isinstance(step.op, SUMS):
            return SumMap(step.op, self._rows[step.name])
        return None

    def sources(self, index: int) -> tuple[int, ...]:
        """The values that ``affine_at`` reads, or the step itself where that is None."""
        return self.steps[self._before.get(index, index)].sources

    def affine_at(self, index: int, x: Tensor) -> WeightedMap | ScaledMap | SumMap | None:
        """``map_at`` of the step ``index``, for x of its ``sources``; a batch norm together with
        the convolution that is folded into it. In a training step the clean pass comes first."""
        step = self.steps[index]
        if index not in self._before:
            return self.map_at(step, x)
        assert self._share is None or step.name in self._scales, "the clean pass comes first"
        scaling = ScaledMap(*self.scale_and_shift(step.name, x))
        return self.weighted(self.steps[self._before[index]].name).scaled(scaling)

    def weighted(self, name: str) -> WeightedMap:
        """A convolution or dense layer with the weights of this step."""
        layer = self.network.layer(name)
        assert isinstance(layer, WEIGHTED)
        return WeightedMap(layer, self.in_shapes[name], *self.weights[name])

    def run(self, step: GraphStep, *inputs: Tensor) -> Tensor:
        """The step's value."""
        op = self.map_at(step, inputs[0])
        if op is not None:
            return op.apply(inputs[0])
        assert isinstance(step.op, Layer)
        result: Tensor = step.op(*inputs)
        return result

    def logits(self, features: Tensor) -> Tensor:
        """[batch, classes] from what the last layer takes."""
        return self.head.apply_weight(features, *self.weights[self._head_name])

    def features(self, x: Tensor) -> Tensor:
        """What the last layer takes, [batch, features], float32."""
        return self.values(x)[-1].to(x.dtype)

    def values(self, x: Tensor) -> list[Tensor]:
        """The input and every step's value, in what the forward pass computes in."""
        values = [x]
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            for step in self.steps:
                values.append(self.run(step, *(values[source] for source in step.sources)))
        return values

    @contextlib.contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, convolutions and dense layers of ``features`` multiply in ``dtype``."""
        before, self.dtype = self.dtype, dtype
        try:
            yield
        finally:
            self.dtype = before

    @contextlib.contextmanager
    def by_batch(self, share: float = 1.0) -> Iterator[None]:
        """Inside, batch norm takes the statistics of the first batch that it sees there, of which
        this rank has a ``share``."""
        self._share, self._scales = share, {}
        try:
            yield
        finally:
            self._share, self._scales = None, {}

    def scale_and_shift(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Batch norm's scale and shift, [channels, 1, ...], for its input x [batch, ...]. Of
        several inputs in a training step the first one counts, which is to be the clean one."""
        found = self._scales.get(name) or self._scale_and_shift(name, x)
        if self._share is not None:
            self._scales[name] = found
        ones = [1] * (x.dim() - 2)
        return found[0].reshape(-1, *ones), found[1].reshape(-1, *ones)

    def _scale_and_shift(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, [channels] each."""
        layer = self.network.layer(name)
        assert isinstance(layer, BatchNorm)
        mean, var = layer.mean, layer.var
        if self._share is not None:
            # Not in bfloat16: a mean over a batch is a long sum.
            mean, var = self.ranks.statistics(x.to(layer.mean.dtype), self._share)
            count = round(x.numel() / x.shape[1] / self._share)
            unbiased = var.detach() * (count / max(count - 1, 1))
            # What a step computes is functional: ``keep_statistics`` writes them to the layer.
            self.vectors[f"{name}.mean"] = layer.mean.lerp(mean.detach(), MOMENTUM)
            self.vectors[f"{name}.var"] = layer.var.lerp(unbiased, MOMENTUM)
        scale = layer.weight / torch.sqrt(var + layer.eps)
        self._norms[name] = scale.abs().amax()
        return scale, layer.bias - mean * scale

    @torch.no_grad()
    def keep_statistics(self) -> None:
        """Write the running statistics that the last step moved to their batch norms."""
        for step in self.steps:
            if isinstance(step.op, BatchNorm) and f"{step.name}.mean" in self.vectors:
                step.op.mean.copy_(self.vectors.pop(f"{step.name}.mean"))
                step.op.var.copy_(self.vectors.pop(f"{step.name}.var"))

    def batch_mean(self, x: Tensor) -> Tensor:
        """The mean of x [batch, ...] over the whole batch, of which this rank has its share."""
        return x.mean() if self._share is None else self.ranks.total(x.mean() * self._share)

    @property
    def head_weight(self) -> Tensor:
        """[classes, features]."""
        return self.weights[self._head_name][0]

    def lipschitz(self, value: int | None = None) -> Tensor:
        """Estimate of the l2 Lipschitz constant before the last layer, or up to ``value`` (0 is the
        input, i + 1 step i's result); a scalar with gradient."""
        slopes = [self.head_weight.new_ones(())]
        for step in self.steps[:value]:
            joined = [slopes[source] for source in step.sources]
            slope = joined[0] if len(joined) == 1 else joined_radius(step, joined)
            slopes.append(self.factor(step) * slope)
        return slopes[-1]

    def factor(self, step: GraphStep) -> Tensor | float:
        """By how much the step may stretch distances."""
        fixed = self._factors[step.name]
        return self.norm(step.name) if fixed is None else fixed

    def _fixed_factor(self, step: GraphStep) -> float | None:
        """The factor of a layer that is not trained: known once for all, read without waiting."""
        layer = step.op
        assert isinstance(layer, Layer)
        if layer.one_lipschitz or isinstance(layer, Shift):
            return 1.0
        if isinstance(layer, (*WEIGHTED, BatchNorm)):
            return None
        if step.name in self.sums:
            return self.sums[step.name].spectral()
        if isinstance(layer, Normalize):
            return float(layer.std.abs().min().reciprocal())
        return float(ball_rule(step, torch.zeros(1, dtype=torch.float64), Rounding.ignored())[0])

    def norm(self, name: str) -> Tensor:
        """Estimate of the norm of a convolution, dense layer or batch norm, once per step.

        Batch norm's is that of its last input in this step; without one, of running statistics.
        """
        if name not in self._norms:
            layer = self.network.layer(name)
            if isinstance(layer, BatchNorm):
                self._norms[name] = (layer.weight / torch.sqrt(layer.var + layer.eps)).abs().amax()
            else:
                with torch.no_grad():
                    self._iterate(name, self.power_steps)
                self._norms[name] = self.weighted(name).linear(self.vectors[name]).norm()
        return self._norms[name]

    def _iterate(self, name: str, steps: int) -> None:
        vector, op = self.vectors[name], self.weighted(name)
        for _ in range(steps):
            found = op.adjoint(op.linear(vector))
            length = found.norm()
            # A weight of zero has no direction: keep the one there is.
            vector = torch.where(length > _TINY, found / length.clamp_min(_TINY), vector)
        self.vectors[name] = vector
