"""Rules of clamps, smooth and sorting activations, joins, cuts and reductions, one by one."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from models.layers.activations import (
    STEPS,
    AtMost,
    Clip,
    MaxMin,
    ReLUTheta,
    Sigmoid,
)
from models.layers.curves import (
    STEEP,
    Power,
)
from models.layers.joins import Concat, Maximum, Product, ReduceMean, ReduceSum
from models.layers.kinds import LAYER_KINDS, Layer, Linear, ReLU
from models.layers.normalization import LocalResponse, Softmax, Standardize
from models.layers.one_lipschitz import ONE_LIPSCHITZ
from models.layers.reparametrized import REPARAMETRIZED
from models.network import Network
from tests.workers.verification.layers.cases import (
    CASES,
    SHAPE,
    Branches,
    headed,
    images,
    moves_balls,
    one,
    two,
)
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.linear_form import LinearForm
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import crown_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.enclosure import Enclosure
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import forward_step, propagate
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.reductions import Reduction
from workers.verification.layers.registry import LAYERS, rules_of
from workers.verification.norms.dense import dense_norm
from workers.verification.norms.spectral import materialize
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64 = torch.float64

#: Layers that stretch distances without limit: no ball grows by a factor.
UNLIMITED: dict[type[Layer], set[str]] = {
    layer: {"ball"}
    for layer in (LocalResponse, Power, Product, Softmax, Standardize, *STEEP, *STEPS)
}


def backward_of(compiled: CompiledNetwork, region: Region, rounding: Rounding) -> BackwardPass:
    """A backward pass over the boxes of ball and box alone."""
    backward = BackwardPass(compiled, region, [], rounding, F64)

    def keep(index: int, values: list[Enclosure | None]) -> None:
        backward.values = values

    propagate(compiled, region, rounding=rounding, dtype=F64, refine=keep)
    assert len(backward.values) == len(compiled.steps) + 1
    return backward


def affine_map(layer: Layer, shape: tuple[int, ...]) -> Affine:
    translate = rules_of(layer).affine
    assert translate is not None
    return translate(layer, shape)


def test_every_layer_has_all_its_rules() -> None:
    kinds = set(LAYER_KINDS.values()) - {*REPARAMETRIZED, *ONE_LIPSCHITZ}
    assert kinds == set(LAYERS)
    for layer, rules in LAYERS.items():
        known = {field.name for field in fields(rules) if getattr(rules, field.name)} - {"value"}
        if rules.affine is not None:
            assert known == {"affine"}, layer
        else:
            assert {"forward", "ball"} - UNLIMITED.get(layer, set()) <= known, layer
            assert len(known & {"relax", "backward"}) == 1, layer
            assert "open" in known or "relax" not in known, layer


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_at_a_single_point_all_bounds_are_the_margins(case: str) -> None:
    """Nothing is lost or left out on the way: at epsilon 0 the margins are those of float64."""
    network = headed(CASES[case]())
    x, labels = images(4), torch.tensor([0, 1, 2, 0])
    # A variance may be computed in any way.
    room = 3e-4 if "norm" in case else 1e-4
    compiled = CompiledNetwork.compile(network)
    region = Region(x, torch.zeros(4, dtype=F64), "l2", False)
    logits = network.double()(x.double())
    margins = (logits.gather(1, labels[:, None]) - logits).scatter(1, labels[:, None], torch.inf)
    for bound in (bcp_margins, crown_margins):
        found = bound(compiled, region, labels, Rounding.ignored(), F64)
        assert torch.allclose(found, margins, rtol=1e-9, atol=1e-9)
        sound = bound(compiled, region, labels, Rounding.sound(F64), F64)
        assert bool((sound <= margins).all())
        assert torch.allclose(sound, margins, rtol=1e-4, atol=room)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_backward_rows_bound_the_value_from_below(case: str) -> None:
    """Random linear functions of the layer's output, against points of the region."""
    network = headed(CASES[case]())
    compiled = CompiledNetwork.compile(network)
    generator = torch.Generator().manual_seed(1)
    x = images(2)
    for epsilon, norm in ((0.05, "linf"), (0.4, "linf"), (0.7, "l2")):
        region = Region(x, torch.full((2,), epsilon, dtype=F64), norm, False)
        rounding = Rounding.sound(F64)
        backward = backward_of(compiled, region, rounding)
        value = len(compiled.steps)
        shape = compiled.steps[-1].shape
        coefficients = torch.randn(60, *shape, generator=generator, dtype=F64)
        # Most rows on one or two numbers: there random corners come close to the least value.
        size = coefficients[0].numel()
        near = torch.zeros(60, size, dtype=F64)
        first = torch.randint(size, (60,), generator=generator)
        near[torch.arange(60), first] = 1.0
        near[torch.arange(60), (first + size // 2) % size] = 1.0
        coefficients[6:] *= near.reshape(coefficients.shape)[6:]
        sample = torch.arange(60) % 2
        found = backward.lower_bound(value, LinearForm(coefficients, shape, sample))
        for _ in range(200):
            noise = torch.randn(x.shape, generator=generator, dtype=F64)
            if norm == "linf":
                noise = noise.sign() * torch.rand(x.shape, generator=generator, dtype=F64).round()
            else:
                noise = noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
            point = x.double() + epsilon * noise * (1 - 1e-12)
            values = [point]
            for step in compiled.steps:
                inputs = [values[source] for source in step.sources]
                values.append(forward_step(step, inputs))
            reached = (coefficients * values[-1][sample]).flatten(1).sum(1)
            assert bool((reached >= found).all())


@pytest.mark.parametrize(
    "case", [case for case, rows in CASES.items() if all(moves_balls(row[1]) for row in rows())]
)
@torch.no_grad()
def test_the_lipschitz_constant_holds_between_points(case: str) -> None:
    network = headed(CASES[case]())
    body = Network(
        SHAPE, [(n.name, network.layer(n.name), n.inputs) for n in network.nodes[:-1]]
    ).double()
    constant = lipschitz_constant(CompiledNetwork.compile(network))
    for seed in range(20):
        x = images(8, seed).double() * 4 - 2
        step = 10.0 ** (-seed / 4) * torch.randn(x.shape, dtype=F64)
        moved = (body(x + step) - body(x)).norm(dim=1)
        assert bool((moved <= constant * step.flatten(1).norm(dim=1) * (1 + 1e-9) + 1e-12).all())


@pytest.mark.parametrize("layer", [ReduceSum, ReduceMean])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_reductions_are_the_operators_they_claim_to_be(
    layer: type[ReduceSum | ReduceMean], axes: tuple[int, ...]
) -> None:
    made = layer(axes=axes)
    op = affine_map(made, SHAPE)
    assert isinstance(op, Reduction)
    matrix = materialize(op.linear, SHAPE).T
    direct = materialize(lambda x: made(x).reshape(x.shape[0], -1), SHAPE).T
    assert torch.allclose(matrix, direct)
    assert op.spectral() == pytest.approx(dense_norm(matrix), rel=1e-7)
    assert op.spectral() >= float(torch.linalg.matrix_norm(matrix, 2)) * (1 - 1e-13)
    assert torch.allclose(op.row_norms().flatten(), matrix.norm(dim=1))
    units = torch.eye(matrix.shape[0], dtype=F64).reshape(-1, *op.out_shape)
    assert torch.allclose(op.adjoint(units).flatten(1), matrix)


@torch.no_grad()
def test_a_sum_in_the_worst_order_lies_in_the_enclosure() -> None:
    """1 + 2^-25 + 2^-25 + ...: one by one, float32 keeps the 1 and loses the rest."""
    x = torch.full((1, 4096), 2.0**-25)
    x[0, 0] = 1.0
    for layer, share in ((ReduceSum, 1.0), (ReduceMean, 1 / 4096)):
        network = Network((4096,), [("s", layer(axes=(0,), keepdims=True), ("input",))])
        region = Region(x, torch.zeros(1, dtype=F64), "l2", False)
        compiled = CompiledNetwork.compile(network)
        for ball, box in ((True, False), (False, True)):
            state = propagate(
                compiled, region, rounding=Rounding.sound(F64), dtype=F64, ball=ball, box=box
            )
            logits, room = logit_enclosure(compiled.head, state, Rounding.sound(F64))
            assert abs(share - float(logits)) <= float(room)


def test_joins_take_the_root_of_the_sum_of_squares() -> None:
    for layer, expected in ((Concat(axis=0), math.sqrt(2)), (Maximum(), math.sqrt(2))):
        assert lipschitz_constant(CompiledNetwork.compile(headed(two(layer)))) == pytest.approx(
            expected
        )
    twice: Branches = [("z", Concat(axis=0), ("input", "input"))]
    region = Region(images(1), torch.ones(1, dtype=F64), "l2", False)
    with torch.no_grad():
        state = propagate(
            CompiledNetwork.compile(headed(twice)),
            region,
            rounding=Rounding.sound(F64),
            dtype=F64,
            box=False,
        )
    # Both copies move together: this distance is reached.
    assert math.sqrt(2) <= float(state.radius) <= math.sqrt(2) * (1 + 1e-9)
    assert lipschitz_constant(CompiledNetwork.compile(headed(one(MaxMin())))) == pytest.approx(1.0)
    assert lipschitz_constant(CompiledNetwork.compile(headed(one(Sigmoid())))) == pytest.approx(
        0.25
    )


@torch.no_grad()
def test_maxmin_loses_nothing_where_both_halves_count_alike() -> None:
    """max + min = a + b: equal coefficients on a pair pass through as on the pair itself."""
    compiled = CompiledNetwork.compile(headed(one(MaxMin())))
    region = Region(images(1), torch.tensor([0.5], dtype=F64), "linf", False)
    backward = backward_of(compiled, region, Rounding.ignored())
    half = torch.randn(1, 2, 3, 5, dtype=F64)
    alike = torch.cat([half, half], 1)
    found = backward.lower_bound(1, LinearForm(alike, SHAPE, None))
    assert float(found) == pytest.approx(
        float((alike * region.x.double()).sum() - 0.5 * alike.abs().sum()), rel=1e-9
    )


def test_a_map_that_widens_counts_the_terms_of_its_transpose() -> None:
    """The backward step through W [1000, 2] sums 1000 terms, the forward one 2."""
    from workers.verification.backward.adjoint import local_error

    wide, narrow = (affine_map(Linear(torch.ones(count, 2)), (2,)) for count in (1000, 2))
    box = torch.ones(1, 2)
    rounding = Rounding.sound(torch.float32)
    assert isinstance(wide, Dense)
    error = float(local_error(wide, -box, box, rounding)[0, 0])
    assert error > 2 * 1000 * 2.0**-24
    assert error > 20 * float(local_error(narrow, -box, box, rounding)[0, 0])


def test_a_sigmoid_whose_margin_is_its_kernel_error_is_not_certified() -> None:
    """Both logits are the same curve, 1.5 budgets apart: two errors may still swap them."""
    network = Network(
        (2,),
        [
            ("s", Sigmoid(), ("input",)),
            ("o", Linear(torch.eye(2), torch.tensor([1.5e-6, 0.0])), ("s",)),
        ],
    )
    x = torch.full((1, 2), 0.25)
    region = Region(x, torch.zeros(1, dtype=F64), "l2", False)
    compiled = CompiledNetwork.compile(network)
    for bound in (interval_margins, bcp_margins, crown_margins):
        with torch.no_grad():
            sound = bound(compiled, region, torch.tensor([0]), Rounding.sound(F64), F64)
            guess = bound(compiled, region, torch.tensor([0]), Rounding.ignored(), F64)
        assert float(sound[0, 1]) < 0.0 < float(guess[0, 1])


def test_relu_theta_and_the_clip_it_stands_for_get_the_same_bounds() -> None:
    numbers = np.random.default_rng(0)
    x = torch.from_numpy(numbers.random((3, *SHAPE), dtype=np.float32))
    labels = torch.tensor([0, 1, 2])
    region = Region(x, torch.full((3,), 0.2, dtype=F64), "linf", True)
    found = []
    both: Branches = [("r", ReLU(), ("input",)), ("z", AtMost(torch.tensor(0.5)), ("r",))]
    for rows in (one(ReLUTheta(torch.tensor(0.5))), one(Clip(low=0.0, high=0.5)), both):
        compiled = CompiledNetwork.compile(headed(rows, seed=7))
        with torch.no_grad():
            found.append(bcp_margins(compiled, region, labels, Rounding.sound(F64), F64))
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], found[2])
