"""Sign, Floor, Ceil, Round: constants between jumps, nothing false at a jump."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from models.layers.activations import Ceil, Floor, Round, Sign, Step
from models.layers.kinds import Layer, Linear, Multiply, ReLU
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.workers.verification.layers.boxes import DTYPES, boxes, grid
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.coverage import covering_bounds, uncovered
from workers.verification.cascade.parity import check_parity
from workers.verification.deviation.budget import margin_budget
from workers.verification.enclosure import Enclosure
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.registry import apply_layer, rules_of
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

F64 = torch.float64
LAYERS: list[Step] = [
    *(Sign(), Sign(at_zero=1), Sign(at_zero=-1), Floor(), Ceil(), Round()),
]
#: Bounds that take a ball alone, which no jump has a factor for.
DECLINED = {"lipschitz", "crc", "crown-ball"}
#: What two or more of the methods above are made of, tried elsewhere.
EXPENSIVE = {"branch-and-bound", "milp", "colt"}


def named(layer: Layer) -> str:
    return f"{layer.kind}{layer.config()}"


def chain(*layers: Layer) -> Network:
    inputs = ["input", *(f"n{place}" for place in range(len(layers)))]
    rows = [(f"n{i}", layer, (inputs[i],)) for i, layer in enumerate(layers)]
    width = next(layer.weight.shape[1] for layer in layers if isinstance(layer, Linear))
    return Network((width,), rows).eval()


def near_jumps(random: np.random.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Boxes that begin or end at jumps, a number beside them, or half-way; points too."""
    halves = random.integers(-8, 9, (2, 64)) / 2
    ends = halves.astype(np.float32)
    beside = np.nextafter(ends, random.choice([-np.inf, np.inf], ends.shape).astype(np.float32))
    ends = np.where(random.random(ends.shape) < 0.5, beside, ends)
    ends[1] = np.where(random.random(64) < 0.3, ends[0], ends[1])
    lower, upper = np.sort(ends, 0)
    return torch.from_numpy(lower).to(dtype)[None], torch.from_numpy(upper).to(dtype)[None]


def places(lower: Tensor, upper: Tensor) -> Tensor:
    """Points of the boxes [points, n]: a grid, every half, and float64 numbers beside these."""
    halves = torch.arange(-26, 27, dtype=F64)[:, None] / 2
    beside = [torch.nextafter(halves, torch.full_like(halves, end)) for end in (-1e9, 1e9)]
    points = torch.cat([halves, *beside]).expand(-1, lower.numel())
    return torch.cat([grid(lower, upper), points.clamp(lower[0].double(), upper[0].double())])


@pytest.mark.parametrize("layer", LAYERS, ids=named)
def test_the_runtime_computes_the_step_itself(layer: Step) -> None:
    """Every 509th finite float32, all around whole and half numbers, zeros of both signs."""
    bits = np.arange(0, 0x7F800000, 509, dtype=np.uint32).view(np.float32)
    halves = (np.arange(-4000, 4001) / 2).astype(np.float32)
    beside = [np.nextafter(halves, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([bits, -bits, halves, *beside, np.float32([0.0, -0.0])])
    network = Network((1,), [("y", layer, ("input",))])
    found = OnnxRuntimeModel(export_onnx(network), (1,))(x[:, None])[:, 0]
    for dtype in (np.float32, np.float64):
        ours = apply_layer(layer, torch.from_numpy(x.astype(dtype))).numpy()
        assert np.array_equal(ours, found)


@pytest.mark.parametrize("layer", LAYERS, ids=named)
@given(
    dtype=st.sampled_from(DTYPES),
    rule=st.sampled_from(["crown", "cap"]),
    seed=st.integers(0, 10**6),
    near=st.booleans(),
)
@settings(max_examples=examples(25), deadline=None)
@torch.no_grad()
def test_lines_and_boxes_hold_and_are_the_number_where_there_is_no_jump(
    layer: Step, rule: str, dtype: torch.dtype, seed: int, near: bool
) -> None:
    random, rules = np.random.default_rng(seed), rules_of(layer)
    lower, upper = near_jumps(random, dtype) if near else boxes(random, 64, dtype)
    z = places(lower, upper)
    values = apply_layer(layer, z)
    assert rules.relax is not None
    assert rules.forward is not None
    lines = rules.relax(layer, lower, upper, rule, Rounding.sound(dtype))
    assert lines.lower_intercept is not None
    noise = 2.0**-50 * (1.0 + values.abs() + z.abs())
    above = lines.upper_slope.double() * z + lines.upper_intercept.double()
    below = lines.lower_slope.double() * z + lines.lower_intercept.double()
    assert bool((values <= above + noise * (1 + lines.upper_slope.double())).all())
    assert bool((values >= below - noise * (1 + lines.lower_slope.double())).all())
    state = Enclosure(lower, torch.full((1,), math.inf).double(), lower, upper, torch.ones(1) > 0)
    step = GraphStep("f", layer, (0,), tuple(lower.shape[1:]))
    boxed = rules.forward(step, [state], Rounding.sound(dtype))
    assert boxed.lower is not None
    assert boxed.upper is not None
    assert bool(((values >= boxed.lower) & (values <= boxed.upper)).all())
    constant = (values.amin(0) == values.amax(0))[None]
    assert bool(constant.any())
    for exact in (boxed.lower, boxed.upper, lines.lower_intercept, lines.upper_intercept):
        assert bool((exact == values[:1])[constant].all())
    for slope in (lines.lower_slope, lines.upper_slope):
        assert bool((slope == 0)[constant].all())


@pytest.mark.parametrize("layer", LAYERS, ids=named)
@torch.no_grad()
def test_a_ball_that_meets_no_jump_is_a_point_behind_it(layer: Step) -> None:
    """With a ball alone, and with a box; one that meets a jump is as wide as that is high."""
    rules, step = rules_of(layer), GraphStep("f", layer, (0,), (2,))
    assert rules.forward is not None
    centre = torch.tensor([[0.7, 1.2], [0.7, 0.0]], dtype=F64)
    radius = torch.tensor([0.15, 1e-9], dtype=F64)
    for boxed in (False, True):
        ends = (centre - radius[:, None], centre + radius[:, None]) if boxed else (None, None)
        state = Enclosure(centre, radius, *ends, torch.ones(2, dtype=torch.bool))
        found = rules.forward(step, [state], Rounding.sound(F64))
        assert float(found.radius[0]) < 1e-100
        jumps = isinstance(layer, Sign | Floor | Ceil)
        assert float(found.radius[1]) >= 1.0 if jumps else float(found.radius[1]) < 1e-100


def test_what_is_no_number_stays_none() -> None:
    for layer in LAYERS:
        assert bool(apply_layer(layer, torch.tensor([math.nan])).isnan().all())


def test_bounds_of_balls_decline_and_auto_passes_over_them() -> None:
    network = chain(Linear(torch.eye(2)), Sign(), Linear(torch.eye(2)))
    compiled = CompiledNetwork.compile(network)
    missing = {name for name, bound in BOUNDS.items() if uncovered(bound, compiled) is not None}
    assert missing == DECLINED
    for name in DECLINED:
        with pytest.raises(UnsupportedLayer, match="sign"):
            covering_bounds(compiled, name, "l2")
    for norm in ("l2", "linf"):
        bounds, passed_over = covering_bounds(compiled, "auto", norm, "exhaustive")
        assert {bound.name for bound in bounds}.isdisjoint(DECLINED)
        assert set(passed_over) <= DECLINED
        assert "lipschitz" in passed_over


def binarised(seed: int) -> tuple[Network, NDArray[np.float32]]:
    """Three layers of steps on two inputs, and inputs at which some numbers before the first of
    them are next to a jump: as float32 has them, a few units beside, or anywhere."""
    random = np.random.default_rng(seed)
    steps = [LAYERS[int(random.integers(len(LAYERS)))] for _ in range(3)]
    scale = 1.0 if isinstance(steps[0], Sign) else 2.0

    def linear(out: int, width: int) -> Linear:
        weight = random.standard_normal((out, width)) * scale
        if random.integers(2):
            weight = np.sign(weight)
        bias = random.standard_normal(out) * float(random.choice([0.0, 0.3, 1.0]))
        made = (torch.from_numpy(number.astype(np.float32)) for number in (weight, bias))
        return Linear(*made)

    x = random.random((2, 2)).astype(np.float32)
    first = linear(6, 2)
    with torch.no_grad():
        z = first(torch.from_numpy(x))
        jump = 0.0 if isinstance(steps[0], Sign) else 0.5 * float(random.integers(-2, 3))
        units = torch.from_numpy(random.integers(-3, 4, 3)) * 2.0**-24 * z[0, :3].abs()
        first.bias[:3] += (jump - z[0, :3]) + units
    layers: list[Layer] = [first, steps[0]]
    for step in steps[1:]:
        layers += [linear(6, 6), Multiply(torch.tensor(0.4)), step]
        if random.integers(3) == 0:
            layers.append(ReLU())
    return chain(*layers, linear(3, 6)), x


def problem_of(compiled: CompiledNetwork) -> Problem:
    return Problem(compiled, sound=True, device=torch.device("cpu"))


@pytest.mark.parametrize("seed", range(examples(12)))
def test_brute_force_on_two_inputs(seed: int) -> None:
    """No point of a certified box is wrong in ONNX Runtime; every bound, in l2 and linf."""
    network, x = binarised(seed)
    deployed = OnnxRuntimeModel(export_onnx(network), (2,))
    compiled = CompiledNetwork.compile(network)
    labels = torch.from_numpy(deployed(x).argmax(1))
    axis = np.linspace(-1, 1, 61)
    square = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    names = set(BOUNDS) - DECLINED - (EXPENSIVE if seed % 6 else set())
    certified = 0
    for epsilon in (0.0, 1e-7, 0.01, 0.1):
        for norm in ("l2", "linf"):
            length = np.linalg.norm(square, axis=1) if norm == "l2" else np.abs(square).max(1)
            moves = square[length <= 1] * epsilon * (1 - 1e-6)
            points = (x[:, None].astype(np.float64) + moves).astype(np.float32)
            off = points.astype(np.float64) - x[:, None]
            size = np.linalg.norm(off, axis=2) if norm == "l2" else np.abs(off).max(2)
            points = np.where((size <= epsilon)[..., None], points, x[:, None])
            logits = torch.from_numpy(deployed(points.reshape(-1, 2))).reshape(2, -1, 3)
            lead = logits.gather(2, labels[:, None, None].expand(2, logits.shape[1], 1)) - logits
            others = torch.ones(2, 3).scatter(1, labels[:, None], 0.0).bool()
            least = lead.amin(1).masked_fill(~others, torch.inf).amin(1)
            region = Region(torch.from_numpy(x), torch.full((2,), epsilon, dtype=F64), norm, False)
            for name in sorted(names):
                if norm not in BOUNDS[name].norms:
                    continue
                budget = Budget(margin=torch.ones(2, dtype=F64))
                verdict = BOUNDS[name].attempt(problem_of(compiled), region, labels, budget)
                assert not bool((verdict.proved & ~(least > 0)).any()), (name, norm, epsilon)
                certified += int(verdict.proved.sum())
    if seed == 0:
        assert certified > 0


def deep(seed: int, x: Tensor, width: int = 8) -> Network:
    """Five maps with steps between, so that the budget of what float32 may take is carried back.
    At x [1, 2] half of the numbers before each step are at a jump, to within float32's rounding."""
    random = np.random.default_rng(seed)
    layers: list[Layer] = []
    value = x.double()
    for place in range(5):
        shape = (width if place < 4 else 3, 2 if place == 0 else width)
        weight = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        bias = torch.from_numpy(random.random(shape[0]).astype(np.float32))
        step: Layer = LAYERS[int(random.integers(len(LAYERS)))] if place % 2 else ReLU()
        if place % 2:
            jump = 0.5 * (isinstance(step, Round))
            exact = (weight.double() @ value[0])[: width // 2]
            bias[: width // 2] = (jump - exact).float()
        layers.append(Linear(weight, bias))
        value = value @ weight.double().T + bias.double()
        if place < 4:
            layers.append(step)
            value = apply_layer(step, value)
    return chain(*layers)


@pytest.mark.parametrize("seed", range(examples(10)))
@torch.no_grad()
def test_no_execution_leaves_its_budget_at_jumps(seed: int) -> None:
    """Every map's result is off by as much as is allowed, at random, and more often where a number
    is next to a jump: margins differ from the real ones by no more than the budget."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, generator=generator)
    compiled = CompiledNetwork.compile(deep(seed, x[:1]))
    labels = torch.tensor([0, 1, 2])
    finite = 0
    for epsilon in (0.0, 1e-3, 0.2):
        region = Region(x, torch.full((3,), epsilon, dtype=F64), "linf", False)
        with exact_arithmetic():
            budget = margin_budget(compiled, region, labels)
        finite += int(torch.isfinite(budget).sum())
        for _ in range(40):
            point = x.double() + epsilon * 0.999 * (2 * torch.rand(3, 2, generator=generator) - 1)
            point = point.float().double()
            margins = []
            for share in (0.0, 1.0):
                value = point
                for step in compiled.steps:
                    after = apply_layer(step.op, value) if isinstance(step.op, Layer) else None
                    if after is None:
                        op = step.affine
                        size = op.absolute(value.abs()) + op.bias_magnitude
                        signs = 2.0 * torch.randint(2, size.shape, generator=generator) - 1.0
                        after = op.apply(value) + share * 2.0**-24 * op.terms * size * signs
                    value = after
                logits = compiled.head.logits(value.flatten(1))
                margins.append(logits.gather(1, labels[:, None]) - logits)
            off = (margins[0] - margins[1]).abs()
            assert bool((off <= budget + 1e-12).all())
    assert finite > 0


@torch.no_grad()
def test_a_sign_that_rounding_decides_is_not_certified() -> None:
    """In real arithmetic the sum is above 0; added up in float32 it is 0 or below."""
    tiny = 2.0**-25
    weight = torch.tensor([[1.0, tiny, tiny, tiny, tiny, -1.0]])
    head = Linear(torch.tensor([[1.0], [-1.0]]), torch.tensor([0.5, 0.0]))
    network = chain(Linear(weight), Sign(), head)
    x = torch.ones(1, 6)
    compiled, label = CompiledNetwork.compile(network), torch.tensor([0])
    region = Region(x, torch.zeros(1, dtype=F64), "linf", False)
    for name in sorted(set(BOUNDS) - DECLINED - EXPENSIVE):
        for sound in (True, False):
            problem = Problem(compiled, sound=sound, device=torch.device("cpu"))
            budget = Budget(margin=torch.ones(1, dtype=F64))
            verdict = BOUNDS[name].attempt(problem, region, label, budget)
            assert not (sound and bool(verdict.proved)), name
    certain = chain(Linear(weight, torch.tensor([1e-5])), Sign(), head)
    problem = problem_of(CompiledNetwork.compile(certain))
    for name in ("ibp", "crown"):
        budget = Budget(margin=torch.ones(1, dtype=F64))
        assert bool(BOUNDS[name].attempt(problem, region, label, budget).proved)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_parity_allows_either_side_of_a_jump(side: float) -> None:
    """The file may be on the other side where a number is next to a jump, with all that follows."""
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(12, 4, generator=generator)
        x = torch.rand(2, 4, generator=generator)
        with torch.no_grad():
            # Which of them is next to its jump, so that no few random passes happen to cross it.
            place, bias = seed % 12, torch.full((12,), 20.0)
            bias[place] = -Linear(weight)(x[:1])[0, place]
            first, last = Linear(weight, bias), Linear(torch.randn(3, 12, generator=generator))
            compiled = CompiledNetwork.compile(chain(first, Sign(), last))

        def deployed(
            rows: NDArray[np.float32], first: Linear = first, last: Linear = last
        ) -> NDArray[np.float32]:
            with torch.no_grad():
                z = first(torch.from_numpy(rows))
                near = torch.where(z.abs() < 1e-6, side, torch.sign(z))
                result: NDArray[np.float32] = last(near).numpy()
            return result

        facts = check_parity(compiled, x.numpy(), deployed(x.numpy()), deployed, clip=False)
        assert facts["largest_share"] <= 1.0
