"""Parts of the graph that are known as a whole: their norms hold, and are tight if they can be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.layers.activations import Abs, MaxMin, Sigmoid
from models.layers.base import Layer
from models.layers.euclidean import L2Pool2d, Sort
from models.layers.joins import Add, Concat, Maximum, Minimum, Slice
from models.layers.kinds import Conv2d, Gather, Linear, MaxPool2d, Multiply, ReLU, Reshape
from models.network import Network
from tests.extent import examples
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.forward.propagation import forward_step, propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.sections.dominators import Dominators
from workers.verification.graph.sections.forms import Kernel
from workers.verification.norms.spectral import materialize
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64 = torch.float64
Row = tuple[str, Layer, tuple[str, ...]]
SHAPE = (4, 5, 5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def compiled_of(rows: list[Row], shape: tuple[int, ...] = SHAPE) -> CompiledNetwork:
    """The rows, the last of them ``z``, flattened before a dense head."""
    shapes: dict[str, tuple[int, ...]] = {"input": shape}
    for name, layer, inputs in rows:
        shapes[name] = layer.output_shape(*(shapes[source] for source in inputs))
    size = math.prod(shapes["z"])
    tail: list[Row] = [
        ("flat", Reshape(shape=(size,)), ("z",)),
        ("tail", ReLU(), ("flat",)),
        ("head", Linear(normal(3, size)), ("tail",)),
    ]
    network = Network(shape, [*rows, *tail]).eval()
    return CompiledNetwork.compile(network)


def around(name: str, source: str, size: int) -> list[Row]:
    """Joined slices that lay an image around itself, by one place."""
    rows: list[Row] = []
    for axis in (2, 1):
        first, last, out = f"{name}f{axis}", f"{name}l{axis}", name if axis == 1 else f"{name}w"
        rows += [
            (first, Slice(axis=axis, start=size - 1, stop=size), (source,)),
            (last, Slice(axis=axis, start=0, stop=1), (source,)),
            (out, Concat(axis=axis), (first, source, last)),
        ]
        source = out
    return rows


def halves(source: str, axis: int = 0, size: int = 4) -> list[Row]:
    return [
        ("a", Slice(axis=axis, start=0, stop=size, step=2), (source,)),
        ("b", Slice(axis=axis, start=1, stop=size, step=2), (source,)),
    ]


KERNEL = normal(4, 4, 3, 3) / 6
TURNED = KERNEL.transpose(0, 1).flip(2, 3).contiguous()


def potential(scale: float, activation: Layer, back: Tensor = TURNED) -> list[Row]:
    return [
        ("inner", Conv2d(KERNEL, normal(4), padding=1), ("input",)),
        ("phi", activation, ("inner",)),
        ("outer", Conv2d(-scale * back, padding=1), ("phi",)),
        ("z", Add(), ("input", "outer")),
    ]


def potential_around(scale: float) -> list[Row]:
    return [
        *around("p", "input", 5),
        ("inner", Conv2d(KERNEL, normal(4)), ("p",)),
        ("phi", ReLU(), ("inner",)),
        *around("q", "phi", 5),
        ("outer", Conv2d(-scale * TURNED), ("q",)),
        ("z", Add(), ("outer", "input")),
    ]


def fold(*theta: float) -> list[Row]:
    """p - 2 n max(n . p, 0) of pairs of channels, whose sides are reflections of each other."""
    half = torch.tensor(theta)[:, None, None] / 2
    normal = {"a": torch.sin(half), "b": -torch.cos(half)}
    return [
        ("a", Slice(axis=0, start=0, stop=2), ("input",)),
        ("b", Slice(axis=0, start=2, stop=4), ("input",)),
        *((f"n{name}", Multiply(value), (name,)) for name, value in normal.items()),
        ("n", Add(), ("na", "nb")),
        ("r", ReLU(), ("n",)),
        *((f"m{name}", Multiply(-2.0 * value), ("r",)) for name, value in normal.items()),
        ("m", Concat(axis=0), ("ma", "mb")),
        ("z", Add(), ("input", "m")),
    ]


#: Parts that end in ``z``, and a Lipschitz constant that must be found (None: any that holds).
PARTS: dict[str, tuple[Callable[[], list[Row]], float | None]] = {
    "slices that are joined": (
        lambda: [*halves("input"), ("z", Concat(axis=0), ("b", "a"))],
        1.0,
    ),
    "a slice taken twice": (
        lambda: [*halves("input"), ("z", Concat(axis=0), ("b", "a", "b", "b"))],
        math.sqrt(3),
    ),
    "pairs in order": (
        lambda: [
            *halves("input"),
            ("high", Maximum(), ("a", "b")),
            ("low", Minimum(), ("b", "a")),
            ("z", Concat(axis=0), ("low", "high")),
        ],
        1.0,
    ),
    "pairs in order, cut twice": (
        lambda: [
            *halves("input"),
            ("again", Slice(axis=0, start=1, stop=4, step=2), ("input",)),
            ("high", Maximum(), ("a", "b")),
            ("low", Minimum(), ("a", "again")),
            ("z", Concat(axis=0), ("low", "high")),
        ],
        1.0,
    ),
    "a fold of pairs": (lambda: fold(0.4, -2.0), 1.0),
    "a fold that goes too far": (
        lambda: [
            (name, Multiply(layer.value * 1.1) if name == "na" else layer, sources)
            for name, layer, sources in fold(0.4, -2.0)
            if isinstance(layer, Multiply) or name != "na"
        ],
        None,
    ),
    "maxima and minima of cuts that only overlap": (
        lambda: [
            *halves("input"),
            ("other", Slice(axis=0, start=2, stop=4), ("input",)),
            ("high", Maximum(), ("a", "b")),
            ("low", Minimum(), ("a", "other")),
            ("z", Concat(axis=0), ("low", "high")),
        ],
        None,
    ),
    "maxima of one pair, minima of another": (
        lambda: [
            *halves("input"),
            ("turned", Gather(torch.tensor([1, 0])), ("b",)),
            ("high", Maximum(), ("a", "b")),
            ("low", Minimum(), ("a", "turned")),
            ("z", Concat(axis=0), ("low", "high")),
        ],
        None,
    ),
    "maxima twice, minima once": (
        lambda: [
            *halves("input"),
            ("high", Maximum(), ("a", "b")),
            ("low", Minimum(), ("a", "b")),
            ("z", Concat(axis=0), ("high", "low", "high")),
        ],
        math.sqrt(2),
    ),
    "a branch on some channels": (
        lambda: [
            *halves("input"),
            ("map", Conv2d(normal(2, 2, 3, 3), padding=1), ("b",)),
            ("bent", Abs(), ("map",)),
            ("z", Concat(axis=0), ("bent", "a")),
        ],
        None,
    ),
    "a window that goes around": (
        lambda: [*around("p", "input", 5), ("z", Conv2d(KERNEL), ("p",))],
        None,
    ),
    "a sum of convolutions": (
        lambda: [
            ("one", Conv2d(KERNEL, padding=1), ("input",)),
            ("two", Conv2d(normal(4, 4, 1, 1)), ("input",)),
            ("less", Multiply(torch.tensor(-0.5)), ("input",)),
            ("sum", Add(), ("one", "two")),
            ("z", Add(), ("less", "sum")),
        ],
        None,
    ),
    "a strided branch beside a slice": (
        lambda: [
            ("one", Conv2d(KERNEL, stride=2, padding=1), ("input",)),
            ("two", Conv2d(normal(4, 4, 1, 1), stride=2), ("input",)),
            ("z", Add(), ("one", "two")),
        ],
        None,
    ),
    "factors of every number": (
        lambda: [
            ("some", Multiply(normal(*SHAPE)), ("input",)),
            ("more", Multiply(normal(4, 1, 1)), ("some",)),
            ("z", Add(), ("input", "more")),
        ],
        float((1 + normal(*SHAPE) * normal(4, 1, 1)).abs().max()),
    ),
    "a convolution beside factors of its channels": (
        lambda: [
            ("map", Conv2d(KERNEL, padding=1), ("input",)),
            ("some", Multiply(normal(4, 1, 1)), ("input",)),
            ("sum", Add(), ("some", "map")),
            ("less", Multiply(torch.tensor(-0.5)), ("input",)),
            ("z", Add(), ("sum", "less")),
        ],
        None,
    ),
    "a convex potential": (lambda: potential(0.3, ReLU()), 1.0),
    "a convex potential that is smooth": (lambda: potential(0.3, Sigmoid()), 1.0),
    "a convex potential with too long a step": (lambda: potential(4.0, ReLU()), None),
    "a potential with the other sign": (lambda: potential(-0.3, ReLU()), None),
    "a potential that falls": (lambda: potential(0.3, Abs()), None),
    "a potential of another map": (lambda: potential(0.3, ReLU(), KERNEL), None),
    "a potential around the image": (lambda: potential_around(0.3), 1.0),
    "sorted and pooled": (
        lambda: [
            *halves("input"),
            ("order", Sort(axis=0), ("a",)),
            ("pool", MaxPool2d(kernel=2, stride=1), ("b",)),
            ("norm", L2Pool2d(kernel=(1, 2), stride=(1, 3), eps=0.1), ("order",)),
            ("flat1", Reshape(shape=(20,)), ("norm",)),
            ("flat2", Reshape(shape=(32,)), ("pool",)),
            ("z", Concat(axis=0), ("flat1", "flat2")),
        ],
        None,
    ),
    "one part in another": (
        lambda: [
            *halves("input"),
            *around("p", "a", 5),
            ("map", Conv2d(normal(2, 2, 3, 3)), ("p",)),
            ("join", Concat(axis=0), ("map", "b")),
            ("pairs", MaxMin(), ("join",)),
            ("z", Add(), ("pairs", "input")),
        ],
        None,
    ),
}


def stretch_of(compiled: CompiledNetwork, start: int, steps: tuple[int, ...], seed: int) -> float:
    """How much the part stretches at a random point, by power steps on its derivative."""
    first = compiled.steps[steps[0]].sources
    shape = compiled.input_shape if start == 0 else compiled.steps[start - 1].shape
    assert start in first

    def run(x: Tensor) -> Tensor:
        values = {start: x}
        for index in steps:
            step = compiled.steps[index]
            values[index + 1] = forward_step(step, [values[source] for source in step.sources])
        return values[steps[-1] + 1]

    point = normal(1, *shape, seed=seed).double()
    vector = normal(1, *shape, seed=seed + 99).double()
    length = 0.0
    for _ in range(8):
        vector = vector / vector.norm()
        # The derivative along a direction is the derivative of the adjoint's, which is linear.
        start_point = point.clone().requires_grad_()
        value = run(start_point)
        weights = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, start_point, weights, create_graph=True)
        (image,) = torch.autograd.grad(pulled, weights, vector)
        length = float(image.norm())
        (vector,) = torch.autograd.grad(run(start_point), start_point, image)
    return length


@pytest.mark.parametrize("name", PARTS)
def test_no_part_stretches_more_than_its_norm(name: str) -> None:
    make, expected = PARTS[name]
    compiled = compiled_of(make())
    for step in compiled.steps:
        if step.section is not None:
            for seed in range(examples(2)):
                found = stretch_of(compiled, step.section.start, step.section.steps, seed)
                assert found <= step.section.norm * (1 + 1e-9)
    body = [i for i, step in enumerate(compiled.steps) if step.name != "tail"]
    constant = lipschitz_constant(compiled)
    found = max(stretch_of(compiled, 0, tuple(body), seed) for seed in range(examples(2)))
    assert found <= constant * (1 + 1e-6)
    if expected is not None:
        assert constant == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", PARTS)
@torch.no_grad()
def test_deployed_values_lie_in_the_ball_behind_a_part(name: str) -> None:
    """Float32 values of moved inputs, against the ball around the float64 centre."""
    compiled = compiled_of(PARTS[name][0]())
    x = normal(2, *SHAPE) * 100
    epsilon = torch.tensor([1e-6, 3.0], dtype=F64)
    region = Region(x, epsilon, "l2", False)
    for dtype in (torch.float32, F64):
        rounding = Rounding.sound(dtype)
        state = propagate(compiled, region, rounding=rounding, dtype=dtype)
        for seed in range(examples(3)):
            noise = normal(2, *SHAPE, seed=seed).double()
            noise = noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
            values = [(x.double() + noise * epsilon[:, None, None, None] * (1 - 1e-6)).float()]
            inside = (values[0].double() - x.double()).flatten(1).norm(dim=1) <= epsilon
            for step in compiled.steps:
                values.append(forward_step(step, [values[source] for source in step.sources]))
            distance = (values[-1].double() - state.centre.double()).flatten(1).norm(dim=1)
            assert bool((distance <= state.radius)[inside].all())
            assert state.lower is not None
            assert state.upper is not None
            boxed = (values[-1] >= state.lower) & (values[-1] <= state.upper)
            assert bool(boxed.flatten(1).all(1)[inside].all())


@pytest.mark.parametrize("width", [8, 3000])
def test_sums_of_factors_are_factors_at_any_width(width: int) -> None:
    """Far beyond what is written out as a matrix: a norm that is exact all the same."""
    falling = -normal(width).abs()
    rows: list[Row] = []
    at = "input"
    for index in range(6):
        rows += [
            (f"f{index}", Multiply(torch.tensor(-0.5) if index % 2 else falling), (at,)),
            (f"s{index}" if index < 5 else "z", Add(), (at, f"f{index}")),
        ]
        at = f"s{index}"
    compiled = compiled_of(rows, (width,))
    norms = [step.section.norm for step in compiled.steps if step.section is not None]
    # 1 + (-1 / 2), and 1 + f.
    most = float((1 + falling).abs().max())
    assert norms == pytest.approx([most, 0.5] * 3)


def test_a_matrix_beside_factors_has_its_exact_norm() -> None:
    matrix, factors = normal(24, 24) / 5, normal(24)
    rows: list[Row] = [
        ("map", Linear(matrix, normal(24)), ("input",)),
        ("some", Multiply(factors), ("input",)),
        ("z", Add(), ("some", "map")),
    ]
    compiled = compiled_of(rows, (24,))
    (section,) = (step.section for step in compiled.steps if step.section is not None)
    whole = matrix.double() + torch.diag(factors.double())
    exact = float(torch.linalg.matrix_norm(whole, 2))
    assert exact <= section.norm <= exact * (1 + 1e-6)


def test_dominators_are_where_every_way_leads() -> None:
    compiled = compiled_of(PARTS["one part in another"][0]())
    graph = Dominators(compiled.steps)
    ways: list[list[set[int]]] = [[{0}]]
    for index, step in enumerate(compiled.steps):
        ways.append([way | {index + 1} for source in step.sources for way in ways[source]])
    for value in range(1, len(ways)):
        shared = set.intersection(*ways[value]) - {value}
        assert max(shared) == graph.above[value]
        through = set.union(*[way for way in ways[value] if graph.above[value] in way])
        expected = {v - 1 for v in through if v > graph.above[value]}
        assert set(graph.between(graph.above[value], value)) == expected


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (7, 1)])
def test_the_norm_of_a_window_that_goes_around_is_exact(
    stride: tuple[int, int], kernel: tuple[int, int]
) -> None:
    size = (6, 9)
    weight = normal(5, 3, *kernel).double()
    padding = (1, 0, kernel[0] - 2, kernel[1] - 1)
    form = Kernel(weight, size, stride, padding, circular=True)

    def apply(x: Tensor) -> Tensor:
        rows = (torch.arange(size[0] + kernel[0] - 1) - 1) % size[0]
        columns = torch.arange(size[1] + kernel[1] - 1) % size[1]
        wrapped = x.index_select(2, rows).index_select(3, columns)
        return torch.nn.functional.conv2d(wrapped, weight, stride=stride)

    exact = float(torch.linalg.matrix_norm(materialize(apply, (3, *size)), 2))
    found = form.norm()
    if any(n % s for n, s in zip(size, stride, strict=True)):
        assert found == math.inf
    else:
        assert exact <= found <= exact * (1 + 1e-6)


@pytest.mark.parametrize("circular", [False, True])
def test_the_adjoint_of_a_form_is_its_transpose(circular: bool) -> None:
    padding = (1, 2, 1, 0)
    form = Kernel(normal(5, 3, 3, 3).double(), (6, 7), padding=padding, circular=circular)
    adjoint = form.adjoint()
    assert adjoint is not None

    def matrix(kernel: Kernel) -> Tensor:
        def apply(x: Tensor) -> Tensor:
            if kernel.circular:
                top, left, bottom, right = kernel.padding
                x = torch.nn.functional.pad(x, (left, right, top, bottom), mode="circular")
            return kernel.geometry.apply(x, kernel.weight)

        return materialize(apply, (kernel.weight.shape[1], *kernel.size))

    assert torch.allclose(matrix(form), matrix(adjoint).T)
