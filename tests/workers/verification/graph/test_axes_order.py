"""Fewer changes of the order of axes, the same numbers: on random networks."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.base import Layer
from models.layers.kinds import (
    Abs,
    Add,
    Concat,
    Conv2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Multiply,
    Permute,
    PReLU,
    ReLU,
    Reshape,
    Shift,
)
from models.network import INPUT, Network
from tests.extent import examples
from tests.workers.verification.certification import certify
from workers.verification.graph.axes_order import rows_of
from workers.verification.graph.compiled_network import CompiledNetwork

#: What Keras writes around each convolution, and back.
LAST, FIRST = (1, 2, 0), (2, 0, 1)


class Drawn:
    """A network that is drawn row by row; every value has three axes."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.generator = torch.Generator().manual_seed(int(random.integers(2**31)))
        self.rows: list[tuple[str, Layer, tuple[str, ...]]] = []
        self.shapes = {INPUT: (2, 5, 3)}

    def add(self, layer: Layer, *inputs: str) -> str:
        name = f"n{len(self.rows)}"
        self.rows.append((name, layer, inputs))
        self.shapes[name] = layer.output_shape(*(self.shapes[source] for source in inputs))
        return name

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def constant(self, shape: tuple[int, ...]) -> torch.Tensor:
        """For values of this shape: of one axis, of some or of all."""
        sizes = [size if self.random.integers(2) else 1 for size in shape]
        return self.normal(*sizes[int(self.random.integers(len(shape))) :])

    def step(self, last: str) -> str:
        shape, kind = self.shapes[last], int(self.random.integers(10))
        if kind <= 3:
            return self.add(Permute(axes=tuple(self.random.permutation(3).tolist())), last)
        if kind == 4:
            value = self.constant(shape)
            layers = (Shift(value), Multiply(value), PReLU(torch.sigmoid(value)))
            return self.add(layers[int(self.random.integers(3))], last)
        if kind == 5:
            count = int(self.random.integers(shape[0])) or None
            layers = (ReLU(), LeakyReLU(slope=0.25), Abs(channels=count))
            return self.add(layers[int(self.random.integers(3))], last)
        if kind == 6:
            weight = self.normal(3, shape[0], 1, 1)
            return self.add(Conv2d(weight, None), last)
        if kind == 7 and min(shape[1:]) > 1:
            return self.add(MaxPool2d(kernel=(2, 2), stride=(1, 1), padding=(0, 0, 0, 0)), last)
        alike = [name for name, other in self.shapes.items() if other == shape]
        other = alike[int(self.random.integers(len(alike)))]
        return self.add(
            Add() if kind == 8 else Concat(axis=int(self.random.integers(3))), last, other
        )

    def network(self) -> Network:
        last = self.add(ReLU(), INPUT)
        for _ in range(int(self.random.integers(1, 12))):
            last = self.step(last)
        size = int(np.prod(self.shapes[last]))
        last = self.add(Reshape(shape=(size,)), last)
        if self.random.integers(2):
            last = self.add(Linear(self.normal(3, size), None), last)
        needed, rows = {last}, []
        for row in reversed(self.rows):
            if row[0] in needed:
                rows.append(row)
                needed.update(row[2])
        return Network((2, 5, 3), rows[::-1]).eval()


@given(st.integers(0, 2**31))
@settings(max_examples=examples(200), deadline=None)
def test_every_output_is_what_it_was(seed: int) -> None:
    network = Drawn(np.random.default_rng(seed)).network()
    rows = rows_of(network)
    named = [
        (row.name.replace(".", "/"), row.layer, [name.replace(".", "/") for name in row.inputs])
        for row in rows
    ]
    again = Network(network.input_shape, named).eval()
    assert [node.shape for node in again.nodes] == [row.shape for row in rows]
    x = torch.randn(3, 2, 5, 3, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected, found = network.double()(x.double()), again.double()(x.double())
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_absolute_values_of_some_channels_stay_along_their_axis() -> None:
    """Between two turns the first channel is no first row of what is held without them."""
    head = Linear(torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0] * 4]), torch.tensor([0.0, -0.3]))
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("there", Permute(axes=(1, 0)), (INPUT,)),
        ("fold", Abs(channels=1), ("there",)),
        ("back", Permute(axes=(1, 0)), ("fold",)),
        ("flat", Reshape(shape=(4,)), ("back",)),
        ("head", head, ("flat",)),
    ]
    network = Network((2, 2), rows).eval()
    x = np.array([[[0.0, 0.1], [0.0, 0.0]]], dtype=np.float32)
    # The nearest wrong input has -0.3 at the second place, which no absolute value changes.
    found = certify(network, x, ("39/100", "41/100"), norm="linf", clip=False)
    assert found.certified.tolist() == [[True, False]]


def keras_like(permuted: bool) -> Network:
    """Two convolutions with their biases, ReLUs and pools; the head sees the channels last."""
    torch.manual_seed(0)
    weights = [torch.randn(4, 2, 2, 2), torch.randn(4, 4, 2, 2) / 4, torch.randn(3, 36) / 6]
    biases = [torch.randn(4), torch.randn(4)]
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    last = INPUT

    def add(layer: Layer) -> None:
        nonlocal last
        rows.append((f"n{len(rows)}", layer, (last,)))
        last = rows[-1][0]

    for weight, bias in zip(weights, biases, strict=False):
        add(Conv2d(weight, None if permuted else bias))
        if permuted:
            for layer in (Permute(axes=LAST), Shift(bias), ReLU(), Permute(axes=FIRST)):
                add(layer)
        else:
            add(ReLU())
        add(MaxPool2d(kernel=(2, 2), stride=(1, 1), padding=(0, 0, 0, 0)))
    for layer in (Permute(axes=LAST), Reshape(shape=(36,)), Linear(weights[2], None)):
        add(layer)
    return Network((2, 7, 7), rows).eval()


def test_channels_last_compile_to_the_same_steps() -> None:
    steps = [CompiledNetwork.compile(keras_like(permuted)).steps for permuted in (False, True)]
    kinds = [[step.kind for step in each] for each in steps]
    assert kinds[0] == kinds[1]
    assert kinds[0].count("permute") + kinds[0].count("relayout") <= 1
    for one, two in zip(*steps, strict=True):
        assert one.shape == two.shape
        assert one.norms == two.norms
