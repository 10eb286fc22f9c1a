"""Properties on small networks: every answer is held against points of the box, exactly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.curves import Atan, Cos, Sin
from models.layers.kinds import Layer, Linear, Multiply, ReLU
from models.network import INPUT, Network
from models.onnx.exporter.export import export_onnx
from models.onnx.forms.plain import Asked
from models.onnx.importer import read_onnx_bytes
from tests.workers.verification.bounds.smooth_heads import smooth_network
from tests.workers.verification.certification import CPU, evaluate
from workers.verification.bounds.arithmetics import RadiusBound
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.properties.errors import PropertyError
from workers.verification.properties.inputs import contains, float32_box, outer_box
from workers.verification.properties.lowering import Box, LinearLimit
from workers.verification.properties.results import BoxResult, PropertyRequest
from workers.verification.properties.rows import rows_of, with_rows
from workers.verification.properties.verify import verify_box
from workers.verification.protocol import Budget
from workers.verification.region import Region

BOXED = [
    name
    for name, bound in BOUNDS.items()
    if "linf" in bound.norms and not isinstance(bound, RadiusBound)
]


def network(
    seed: int, inputs: int = 2, width: int = 6, outputs: int = 3, scale: float = 1.0
) -> Network:
    """Two hidden layers with random weights."""
    generator = torch.Generator().manual_seed(seed)

    def linear(rows: int, columns: int) -> Linear:
        weight = torch.randn(rows, columns, generator=generator) * scale
        return Linear(weight, torch.randn(rows, generator=generator) * scale)

    rows = [
        ("a", linear(width, inputs), (INPUT,)),
        ("b", ReLU(), ("a",)),
        ("c", linear(width, width), ("b",)),
        ("d", ReLU(), ("c",)),
        ("e", linear(outputs, width), ("d",)),
    ]
    return Network((inputs,), rows).eval()


def plain(weight: list[list[float]], bias: list[float]) -> Network:
    """One affine map."""
    return Network(
        (len(weight[0]),), [("a", Linear(torch.tensor(weight), torch.tensor(bias)), (INPUT,))]
    )


def box(ends: Sequence[tuple[object, object]], *cases: list[LinearLimit]) -> Box:
    lower, upper = (tuple(Fraction(str(end[side])) for end in ends) for side in (0, 1))
    return Box(lower, upper, tuple(tuple(case) for case in cases))


def limit(rest: object, **factors: object) -> LinearLimit:
    """y0=1, y1=-1: y0 - y1 <= rest."""
    pairs = sorted((int(name[1:]), Fraction(str(value))) for name, value in factors.items())
    return LinearLimit(tuple(pairs), Fraction(str(rest)))


def answer(net: Network, stated: Box, **options: object) -> BoxResult:
    compiled = CompiledNetwork.compile(net)
    request = PropertyRequest(**{"work": 1.5e4, **options})  # type: ignore[arg-type]
    return verify_box(
        net, compiled, stated, request, deployed=lambda x: evaluate(net, x), device=CPU
    )


def unsafe_points(net: Network, stated: Box, count: int = 33) -> int:
    """How many points of a grid in the box, its corners included, are unsafe, exactly."""
    inside = float32_box(stated, net.input_shape)
    assert inside is not None
    low, high = (side.reshape(-1) for side in inside)
    axes = [np.linspace(a, b, count, dtype=np.float32) for a, b in zip(low, high, strict=True)]
    points = np.array(list(itertools.product(*axes)), dtype=np.float32)
    outputs = evaluate(net, points.reshape(-1, *net.input_shape))
    return sum(
        stated.is_unsafe([Fraction(v) for v in y.tolist()]) and contains(stated, x)
        for x, y in zip(points, outputs, strict=True)
    )


LIMITS = st.builds(
    lambda factors, rest: LinearLimit(
        tuple(sorted((i, Fraction(f) / 10) for i, f in factors.items())), Fraction(rest) / 10
    ),
    st.dictionaries(st.integers(0, 2), st.integers(-20, 20).filter(bool), min_size=1, max_size=3),
    st.integers(-60, 60),
)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 15)), min_size=2, max_size=2),
    st.lists(st.lists(LIMITS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3),
)
def test_no_answer_is_false(
    seed: int, ends: list[tuple[int, int]], cases: list[tuple[LinearLimit, ...]]
) -> None:
    net = network(seed)
    stated = Box(
        tuple(Fraction(low, 10) for low, _ in ends),
        tuple(Fraction(low + width, 10) for low, width in ends),
        tuple(cases),
    )
    found = answer(net, stated)
    if float32_box(stated, net.input_shape) is not None and found.verdict == "holds":
        assert not unsafe_points(net, stated)
    if found.verdict == "violated":
        assert found.counterexample is not None
        assert contains(stated, found.counterexample.x)
        outputs = evaluate(net, found.counterexample.x[None])[0]
        assert np.array_equal(outputs, found.counterexample.y)
        assert stated.is_unsafe([Fraction(v) for v in outputs.tolist()])


@pytest.mark.parametrize("name", BOXED)
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1.0, 1e-3, 30.0]),
)
def test_a_row_that_is_proved_is_positive_everywhere(
    name: str, seed: int, dtype: torch.dtype, scale: float
) -> None:
    """The least row of the points of a box, exactly, is no less than what a bound proves."""
    net = network(seed, scale=scale)
    compiled = CompiledNetwork.compile(net)
    random = np.random.default_rng(seed)
    lower = torch.from_numpy(random.normal(size=(1, 2)))
    upper = lower + torch.from_numpy(random.random((1, 2)) * [0.3, 0.01])
    numbers = random.normal(size=(2, 3)).round(1)
    limits = [
        LinearLimit(tuple((i, Fraction(str(v))) for i, v in enumerate(row) if v), Fraction(0))
        for row in numbers
    ]
    rows = rows_of([row for row in limits if row.factors], 3)
    assert rows is not None
    region = Region.between(lower, upper)
    points = lower + torch.rand(200, 2, generator=torch.Generator().manual_seed(seed)) * (
        upper - lower
    )
    points = torch.cat([points.float(), region.x, lower.float(), upper.float()])
    inside = ((points.double() >= lower) & (points.double() <= upper)).all(1)
    outputs = (
        evaluate(net, points[inside].numpy()) if inside.any() else evaluate(net, region.x.numpy())
    )
    exact = min(
        sum(Fraction(c) * Fraction(v) for c, v in zip(row, y, strict=True))
        for row in rows.factors.tolist()
        for y in outputs.tolist()
    )
    problem = Problem(with_rows(compiled, rows), True, CPU, only=dtype)
    margin = rows.values(torch.from_numpy(evaluate(net, region.x.numpy()))).amin(1)
    verdict = BOUNDS[name].attempt(
        problem, region, torch.zeros(1, dtype=torch.int64), Budget(margin.abs(), passes=2e4)
    )
    least = float(verdict.least_margin[0])
    assert not verdict.proved[0] or exact > 0
    if np.isfinite(least):
        assert Fraction(least) <= exact


IDENTITY = plain([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
UNIT = [(0, 1), (0, 1)]


def test_a_region_reached_exactly_at_its_boundary_is_reached() -> None:
    assert answer(IDENTITY, box(UNIT, [limit(-1, y0=-1)])).verdict == "violated"
    assert answer(IDENTITY, box(UNIT, [limit(-2, y0=-1, y1=-1)])).verdict == "violated"
    assert answer(IDENTITY, box(UNIT, [limit("-1.00001", y0=-1)])).verdict == "holds"
    assert answer(IDENTITY, box(UNIT, [limit("-2.00001", y0=-1, y1=-1)])).verdict == "holds"


@pytest.mark.parametrize("method", ["auto", "ibp"])
@pytest.mark.parametrize("case", [[limit("0.5", y0=1)], []])
def test_whoever_finds_a_counterexample_is_named(method: str, case: list[LinearLimit]) -> None:
    """The middle of the box, too."""
    found = answer(IDENTITY, box(UNIT, case), method=method)
    assert (found.verdict, found.method) == ("violated", "attack")


def test_what_a_bound_keeps_of_a_network_is_not_taken_for_other_rows() -> None:
    """The smooth head is kept by the network's digest: of rows it is another one."""
    net = smooth_network(3, classes=3)
    compiled = CompiledNetwork.compile(net)
    x = torch.zeros(1, *net.input_shape)
    here = float(evaluate(net, x.numpy())[0, 0])
    found = {}
    for lead in (50.0, 1e-3):
        rows = rows_of([limit(here - lead, y0=1)], 3)
        assert rows is not None
        problem = Problem(with_rows(compiled, rows), True, CPU)
        region = Region(x, torch.tensor([0.25], dtype=torch.float64), "l2", False)
        budget = Budget(torch.tensor([lead], dtype=torch.float64))
        verdict = BOUNDS["crc"].attempt(problem, region, torch.zeros(1, dtype=torch.int64), budget)
        found[lead] = bool(verdict.proved)
    point = x.clone().requires_grad_()
    net(point)[0, 0].backward()
    assert point.grad is not None
    moved = 0.2 * point.grad / point.grad.norm()
    assert float(evaluate(net, -moved.numpy())[0, 0]) < here - 1e-3
    assert found == {50.0: True, 1e-3: False}


def test_decimals_that_are_no_floats_are_exact() -> None:
    # float32(0.1) is above 0.1, so that no float32 input up to 0.1 has an output of 0.1.
    narrow = [(0, "0.1"), (0, 1)]
    assert answer(IDENTITY, box(narrow, [limit("-0.1", y0=-1)])).verdict != "violated"
    below = str(Fraction(float(np.nextafter(np.float32(0.1), np.float32(0)))))
    assert answer(IDENTITY, box(narrow, [limit("-" + below, y0=-1)])).verdict == "violated"
    point = [("0.1", "0.1"), (0, 1)]
    found = answer(IDENTITY, box(point, [limit(0, y0=-1)]))
    assert found.verdict == "unknown"
    assert found.notes["float32_inputs"] is False
    assert answer(IDENTITY, box(point, [limit("0.09", y0=1)])).verdict == "holds"


def test_huge_and_tiny_numbers_prove_nothing_false() -> None:
    everything = [("-1e400", "1e400"), ("0", "1e-50")]
    assert answer(IDENTITY, box(everything, [limit("-3.4e38", y0=-1)])).verdict == "violated"
    tiny = [("-1e-44", "1e-44"), (0, 0)]
    assert answer(IDENTITY, box(tiny, [limit("-1e-44", y0=-1)])).verdict != "holds"
    assert answer(IDENTITY, box(tiny, [limit("-1e-30", y0=-1)])).verdict == "holds"
    assert answer(IDENTITY, box(UNIT, [limit("-1e400", y0=-1)])).verdict == "unknown"
    assert answer(IDENTITY, box(UNIT, [limit("1e-300", y0="1e-300")])).verdict == "violated"
    assert (
        answer(IDENTITY, box(UNIT, [limit("-1e-300", y0="1e-300", y1="1e-300")])).verdict == "holds"
    )
    with pytest.raises(PropertyError, match="float32"):
        answer(IDENTITY, box([("1e39", "1e40"), (0, 1)], [limit(0, y0=1)]))


def test_one_limit_of_a_case_is_enough_and_every_case_counts() -> None:
    # y0 >= 2 never holds, y1 >= 0.5 may.
    never, may = limit(-2, y0=-1), limit("-0.5", y1=-1)
    assert answer(IDENTITY, box(UNIT, [never, may])).verdict == "holds"
    assert answer(IDENTITY, box(UNIT, [never], [may])).verdict == "violated"
    assert answer(IDENTITY, box(UNIT, [never, may], [])).verdict == "violated"


def test_a_case_that_no_single_limit_excludes_is_proved_on_smaller_boxes() -> None:
    # |x0| as two ReLUs: y0 = |x0|, y1 = x0. Unsafe: y1 >= y0 / 2 and -y1 >= y0 / 2 and y0 >= 0.1.
    rows = [
        ("a", Linear(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2)), (INPUT,)),
        ("b", ReLU(), ("a",)),
        ("c", Linear(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.zeros(2)), ("b",)),
    ]
    net = Network((2,), rows).eval()
    case = [limit(0, y0="0.5", y1=-1), limit(0, y0="0.5", y1=1), limit("-0.1", y0=-1)]
    found = answer(net, box([(-1, 1), (0, 1)], case), work=1e5)
    assert (found.verdict, found.method) == ("holds", "input-splitting")
    assert answer(net, box([(-1, 1), (0, 1)], case), method="ibp").verdict == "unknown"


@pytest.mark.parametrize("method", [*BOXED, "auto"])
def test_every_method_proves_what_is_plain_and_nothing_that_is_false(method: str) -> None:
    net = network(3)
    y = evaluate(net, np.full((1, 2), 0.5, dtype=np.float32))[0]
    ends = [("0.4999", "0.5001")] * 2
    low, high = Fraction(float(y[0])) - 1, Fraction(float(y[0])) + 1
    plainly = box(
        ends, [LinearLimit(((0, Fraction(1)),), low)], [LinearLimit(((0, Fraction(-1)),), -high)]
    )
    assert answer(net, plainly, method=method).verdict == "holds"
    falsely = box(ends, [LinearLimit(((0, Fraction(1)),), Fraction(float(y[0])))])
    assert answer(net, falsely, method=method).verdict == "violated"


@pytest.mark.parametrize("kind", [Atan, Sin, Cos])
def test_a_regressor_that_ends_in_a_curve_has_properties(kind: type[Layer]) -> None:
    """As a steering angle is 2 atan(z): proved up to a little, broken where a grid breaks it."""
    net = network(5, outputs=1)
    rows = [(row.name, net.layer(row.name), row.inputs) for row in net.nodes]
    rows += [("f", kind(), ("e",)), ("g", Multiply(torch.tensor([2.0])), ("f",))]
    data = export_onnx(Network((2,), rows).eval())
    net = read_onnx_bytes(data, asked=Asked(classifier=False)).network
    ends = [("0.3", "0.7"), ("-0.2", "0.1")]
    axes = [np.linspace(float(low), float(high), 101) for low, high in ends]
    points = np.array(list(itertools.product(*axes)), dtype=np.float32)
    highest = Fraction(float(evaluate(net, points).max()))
    above = [LinearLimit(((0, Fraction(-1)),), -highest - Fraction(1, 50))]
    reached = [LinearLimit(((0, Fraction(-1)),), -highest + Fraction(1, 50))]
    assert answer(net, box(ends, above), work=1e5).verdict == "holds"
    found = answer(net, box(ends, reached), work=1e5)
    assert found.verdict == "violated"
    assert found.counterexample is not None
    assert Fraction(float(found.counterexample.y[0])) >= highest - Fraction(1, 50)


@pytest.mark.parametrize("method", ["branch-and-bound", "milp"])
def test_a_search_without_work_says_how_far_it_got(method: str) -> None:
    net, ends = network(5, inputs=4, width=16), [("-1", "1")] * 4
    middle = evaluate(net, np.zeros((1, 4), dtype=np.float32))[0]
    # Not reached, but far above what plain bounds can prove.
    case = [LinearLimit(((0, Fraction(-1)),), Fraction(-float(middle[0])) - 20)]
    left = answer(net, box(ends, case), method=method, work=1.0)
    assert left.verdict == "unknown"
    (found,) = left.notes["searched"]
    assert found["method"] == method
    assert found["best_bound"] <= 0
    assert found["open_domains"] > 0
    whole = answer(net, box(ends, case), method=method, work=1e7)
    assert (whole.verdict, "searched" in whole.notes) == ("holds", False)


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    net = network(5)
    stated = box([(-1, 1), (-1, 1)], [limit(0, y0=1, y1=-1), limit(1, y2=1)])
    first, second = answer(net, stated), answer(net, stated)
    assert (first.verdict, first.method, first.notes) == (
        second.verdict,
        second.method,
        second.notes,
    )
    path = tmp_path / "0.npz"
    path.write_bytes(first.to_bytes())
    kept = BoxResult.load(path)
    assert (kept.verdict, kept.method, kept.notes) == (first.verdict, first.method, first.notes)
    if first.counterexample is not None:
        assert kept.counterexample is not None
        assert np.array_equal(kept.counterexample.x, first.counterexample.x)


def test_floats_around_a_box_leave_nothing_out_and_floats_in_it_are_in_it() -> None:
    ends = [("0.1", "0.3"), ("-1e-46", "1e-44"), ("-1e39", "16777217")]
    stated = box(ends, [limit(0, y0=1)])
    lower, upper = outer_box(stated, (3,))
    assert (
        Fraction(float(lower[0]))
        <= Fraction("0.1")
        < Fraction(float(lower[0])) + Fraction(1, 10**16)
    )
    assert Fraction(float(upper[0])) >= Fraction("0.3")
    inside = float32_box(stated, (3,))
    assert inside is not None
    low, high = inside
    assert contains(stated, low)
    assert contains(stated, high)
    for side, away in ((low, -np.inf), (high, np.inf)):
        for place in range(3):
            moved = side.copy()
            with np.errstate(all="ignore"):
                moved[place] = np.nextafter(side[place], np.float32(away))
            assert not contains(stated, moved)
