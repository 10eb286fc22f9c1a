"""A network while it is trained: weights as they act, and running estimates of operator norms.

Weights are read once per step (``refresh``), so that what is computed from them (orthogonal and
residual kernels, norms) is computed once. Norms are warm-started power steps with a gradient
through the last one only: LOWER estimates, good for training and for nothing else. What is
certified is the deployed network, by ``workers.verification``.

Batch norm takes the statistics of the batch inside ``by_batch`` (a training step), for clean inputs
and bounds alike, and its running ones outside it: a validation, the deployed network and a
certificate never see a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.layers.affine import Conv2d, Linear
from models.layers.joins import Concat, Maximum, Minimum, ReduceMean, ReduceSum
from models.layers.kinds import AvgPool2d, BatchNorm, Layer, Normalize, Shift
from models.layers.reparametrized import OrthogonalConv2d, OrthogonalLinear
from models.network import INPUT, Network, Node
from workers.training.config import TrainingError
from workers.training.transposed import transposed_convolution
from workers.verification.forward.ball import ball_rule
from workers.verification.graph.affine import Affine
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.rounding import Rounding

__all__ = ["TrainingGraph"]

#: Power steps before the first training step.
FIRST_STEPS = 30
#: Layers whose norm is 1 by construction.
ORTHOGONAL = (OrthogonalConv2d, OrthogonalLinear)
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

    def __init__(self, network: Network, *, power_steps: int, generator: torch.Generator) -> None:
        self.network = network
        self.power_steps = power_steps
        self.nodes: list[Node] = list(network.nodes)
        self.shapes = {INPUT: network.input_shape, **{n.name: n.shape for n in self.nodes}}
        head = network.layer(self.nodes[-1].name)
        if not isinstance(head, Linear):
            raise TrainingError(
                "unsupported_architecture",
                f"the last layer must be linear, not {head.kind}",
                hint="end the layer list with the dense layer of the classes",
                field="architecture",
            )
        self.head = head
        self.body = self.nodes[:-1]
        self.steps = {node.name: self._step(node) for node in self.body}
        #: Fixed linear maps; for the box of a ball their row norms, which broadcast to a value.
        self.sums = {
            node.name: self._sum(node)
            for node in self.body
            if isinstance(network.layer(node.name), SUMS)
        }
        self.rows = {n: op.row_norms().to(head.weight) for n, op in self.sums.items()}
        self.factors = {node.name: self._fixed_factor(node) for node in self.body}
        self.sources = {node.name: node.inputs[0] for node in self.nodes}
        #: What the plain forward pass computes in (``computing_in``); all else is float32.
        self.dtype = torch.float32
        self.vectors: dict[str, Tensor] = {}
        for node in self.body:
            layer = network.layer(node.name)
            if isinstance(layer, WEIGHTED) and not isinstance(layer, ORTHOGONAL):
                shape = (1, *self.shapes[node.inputs[0]])
                start = torch.randn(shape, generator=generator)
                self.vectors[node.name] = (start / start.norm()).to(layer.weight)
        self.weights: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._norms: dict[str, Tensor] = {}
        self._by_batch = False
        with torch.no_grad():
            self.refresh()
            for name in self.vectors:
                self._iterate(name, FIRST_STEPS)
        self._norms = {}

    def _step(self, node: Node) -> GraphStep:
        """The node for the rules of ``workers.verification``, which are those of training too."""
        layer = self.network.layer(node.name)
        rules = rules_of(layer)
        maps = (*WEIGHTED, *SUMS, BatchNorm, Normalize, Shift)
        if not isinstance(layer, maps) and rules.forward is None:
            raise TrainingError(
                "unsupported_architecture",
                f"layer {node.name} ({layer.kind}) cannot be trained here",
                hint="convolutions, dense layers, batch norm, activations, pools and joins can",
                field="architecture",
            )
        shape = self.shapes[node.inputs[0]]
        overlap = 1 if rules.overlap is None else rules.overlap(layer, shape)
        return GraphStep(node.name, layer, (), node.shape, overlap=overlap)

    def _sum(self, node: Node) -> Affine:
        """A fixed linear layer as the map that verification makes of it."""
        layer = self.network.layer(node.name)
        translate = rules_of(layer).affine
        assert translate is not None
        return translate(layer, self.shapes[node.inputs[0]])

    def refresh(self) -> None:
        """Read the weights anew; call it before every step."""
        self.weights = {}
        self.forget()
        for node in self.nodes:
            layer = self.network.layer(node.name)
            if isinstance(layer, WEIGHTED):
                self.weights[node.name] = layer.tensors()

    def forget(self) -> None:
        """Compute norms anew when they are asked for."""
        self._norms = {}

    def run(self, node: Node, *inputs: Tensor) -> Tensor:
        """The node's value."""
        layer = self.network.layer(node.name)
        if isinstance(layer, WEIGHTED):
            return layer.apply_weight(inputs[0], *self.weights[node.name])
        if isinstance(layer, BatchNorm):
            scale, shift = self.scale_and_shift(node.name, inputs[0])
            return inputs[0] * scale + shift
        result: Tensor = layer(*inputs)
        return result

    def logits(self, features: Tensor) -> Tensor:
        """[batch, classes] from what the last layer takes."""
        return self.head.apply_weight(features, *self.weights[self.nodes[-1].name])

    def features(self, x: Tensor) -> Tensor:
        """What the last layer takes, [batch, features], float32."""
        values = {INPUT: x}
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            for node in self.body:
                values[node.name] = self.run(node, *(values[source] for source in node.inputs))
        return values[self.body[-1].name].to(x.dtype) if self.body else x

    @contextlib.contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, convolutions and dense layers of ``features`` multiply in ``dtype``."""
        before, self.dtype = self.dtype, dtype
        try:
            yield
        finally:
            self.dtype = before

    @contextlib.contextmanager
    def by_batch(self) -> Iterator[None]:
        """Inside, batch norm takes the statistics of the batch that it is given."""
        self._by_batch = True
        try:
            yield
        finally:
            self._by_batch = False

    def scale_and_shift(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Batch norm's scale and shift, [channels, 1, ...], for its clean input x [batch, ...]."""
        layer = self.network.layer(name)
        assert isinstance(layer, BatchNorm)
        mean, var = layer.mean, layer.var
        if self._by_batch:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            # Not in bfloat16: a mean over a batch is a long sum.
            var, mean = torch.var_mean(x.to(layer.mean.dtype), axes, correction=0)
            count = x.numel() // x.shape[1]
            unbiased = var.detach() * (count / max(count - 1, 1))
            # What a step computes is functional: ``keep_statistics`` writes them to the layer.
            self.vectors[f"{name}.mean"] = layer.mean.lerp(mean.detach(), MOMENTUM)
            self.vectors[f"{name}.var"] = layer.var.lerp(unbiased, MOMENTUM)
        scale = layer.weight / torch.sqrt(var + layer.eps)
        self._norms[name] = scale.abs().amax()
        shift = layer.bias - mean * scale
        ones = [1] * (x.dim() - 2)
        return scale.reshape(-1, *ones), shift.reshape(-1, *ones)

    @torch.no_grad()
    def keep_statistics(self) -> None:
        """Write the running statistics that the last step moved to their batch norms."""
        for node in self.body:
            layer = self.network.layer(node.name)
            if isinstance(layer, BatchNorm) and f"{node.name}.mean" in self.vectors:
                layer.mean.copy_(self.vectors.pop(f"{node.name}.mean"))
                layer.var.copy_(self.vectors.pop(f"{node.name}.var"))

    @property
    def head_weight(self) -> Tensor:
        """[classes, features]."""
        return self.weights[self.nodes[-1].name][0]

    def lipschitz(self) -> Tensor:
        """Estimate of the l2 Lipschitz constant before the last layer, a scalar with gradient."""
        one = self.head_weight.new_ones(())
        slopes = {INPUT: one}
        for node in self.body:
            factor = self.factor(node)
            slopes[node.name] = factor * self._joined(node, [slopes[s] for s in node.inputs])
        return slopes[self.body[-1].name] if self.body else one

    def _joined(self, node: Node, slopes: Sequence[Tensor]) -> Tensor:
        if len(slopes) == 1:
            return slopes[0]
        stacked = torch.stack(list(slopes))
        if isinstance(self.network.layer(node.name), Concat | Maximum | Minimum):
            return stacked.square().sum().sqrt()
        return stacked.sum()

    def factor(self, node: Node) -> Tensor | float:
        """By how much the node may stretch distances."""
        fixed = self.factors[node.name]
        return self.norm(node.name) if fixed is None else fixed

    def _fixed_factor(self, node: Node) -> float | None:
        """The factor of a layer that is not trained: known once for all, read without waiting."""
        layer = self.network.layer(node.name)
        if isinstance(layer, (*WEIGHTED, BatchNorm)):
            return None
        if node.name in self.sums:
            return self.sums[node.name].spectral()
        if isinstance(layer, Normalize):
            return float(layer.std.abs().min().reciprocal())
        if isinstance(layer, Shift):
            return 1.0
        zero = torch.zeros(1, dtype=torch.float64)
        return float(ball_rule(self.steps[node.name], zero, Rounding.ignored())[0])

    def norm(self, name: str) -> Tensor:
        """Estimate of the norm of a convolution, dense layer or batch norm, once per step.

        Batch norm's is that of its last input in this step; without one, of running statistics.
        """
        if name not in self._norms:
            layer = self.network.layer(name)
            if isinstance(layer, BatchNorm):
                self._norms[name] = (layer.weight / torch.sqrt(layer.var + layer.eps)).abs().amax()
            elif isinstance(layer, ORTHOGONAL):
                self._norms[name] = layer.weight.new_ones(())
            else:
                with torch.no_grad():
                    self._iterate(name, self.power_steps)
                self._norms[name] = self.apply(name, self.vectors[name]).norm()
        return self._norms[name]

    def _iterate(self, name: str, steps: int) -> None:
        vector = self.vectors[name]
        for _ in range(steps):
            found = self.adjoint(name, self.apply(name, vector))
            length = found.norm()
            # A weight of zero has no direction: keep the one there is.
            vector = torch.where(length > _TINY, found / length.clamp_min(_TINY), vector)
        self.vectors[name] = vector

    def apply(self, name: str, x: Tensor) -> Tensor:
        """The layer without its bias."""
        layer = self.network.layer(name)
        assert isinstance(layer, WEIGHTED)
        return layer.apply_weight(x, self.weights[name][0], None)

    def adjoint(self, name: str, y: Tensor) -> Tensor:
        """The transposed layer: [batch, *output] -> [batch, *input]."""
        layer = self.network.layer(name)
        weight = self.weights[name][0]
        if isinstance(layer, Linear):
            return y @ weight
        assert isinstance(layer, Conv2d)
        _, height, width = self.shapes[self.sources[name]]
        return transposed_convolution(layer, weight, y, (height, width))

    def layer(self, node: Node) -> Layer:
        """The node's layer."""
        return self.network.layer(node.name)
