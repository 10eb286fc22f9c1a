"""A layer that a bound has no rule for: passed over by ``auto``, refused by name, never a crash."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.layers.kinds import LeakyReLU, Linear, ReLU
from models.network import Network
from tests.extent import part
from tests.workers.verification import fold
from tests.workers.verification.certification import certify, evaluate
from tests.workers.verification.fold import RULES, Fold
from tests.workers.verification.networks import Builder, dense_network
from workers.verification import layers
from workers.verification.attacks.pgd import attack
from workers.verification.backward.adjoint import ADJOINTS
from workers.verification.backward.backward_pass import has_backward_rule
from workers.verification.backward.quadratic_pass import has_quadratic_rule
from workers.verification.cascade.bound_table import BOUNDS, auto_bounds
from workers.verification.cascade.coverage import covering_bounds
from workers.verification.forward.ball import ball_rule
from workers.verification.forward.propagation import has_forward_rule
from workers.verification.graph.affine_maps import Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.exact import EXACT
from workers.verification.layers.registry import LAYERS
from workers.verification.layers.rules import Ball, LayerRules
from workers.verification.results import EFFORTS, AttackSettings, SampleResults
from workers.verification.rounding import Rounding

#: The rules that a bound can miss.
PARTS = ("ball", "forward", "relax", "slopes")
#: None, each alone, all but one, and what a new layer most likely comes with.
REGISTERED = sorted(
    {
        (),
        *((name,) for name in PARTS),
        *(tuple(sorted(set(PARTS) - {name})) for name in PARTS),
        ("ball", "forward"),
        ("forward", "slopes"),
    }
)
AUTO = {norm: [bound.name for bound in auto_bounds(norm)] for norm in ("l2", "linf")}
X = np.random.default_rng(0).random((3, 5)).astype(np.float32)
EPSILONS = ("1/1000", "1/50", "1/5")

#: What backward bounds need of a layer.
BACKWARD = (has_backward_rule, has_quadratic_rule)


def network() -> Network:
    b = Builder((5,), 3)
    b.linear(8)
    b.add(Fold())
    b.linear(6)
    b.add(ReLU())
    b.linear(3)
    return b.build()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the layer a row with these of its rules alone."""

    def fill(names: Iterable[str]) -> None:
        known = {name: getattr(RULES[Fold], name) for name in names}
        monkeypatch.setitem(LAYERS, Fold, LayerRules(**known))

    return fill


def assert_holds(model: Network, found: SampleResults, norm: str) -> None:
    """No attack inside the largest certified epsilon changes an answer."""
    radius = (found.certified * np.array([float(Fraction(e)) for e in EPSILONS])).max(1)
    rows = np.flatnonzero(radius > 0)
    if not rows.size:
        return
    broken, _ = attack(
        model,
        lambda batch: evaluate(model, batch),
        torch.from_numpy(X[rows]),
        torch.from_numpy(found.label[rows]),
        rows,
        torch.from_numpy(0.999 * radius[rows]),
        norm=norm,
        clip=True,
        settings=AttackSettings(steps=20, restarts=2),
    )
    assert not bool(broken.any())


#: Every set of rules with both norms; the slice has each with one of them in turn.
CASES = [(names, norm) for names in REGISTERED for norm in ("l2", "linf")]


@pytest.mark.parametrize(
    ("names", "norm"),
    part(CASES, *(2 * index + index % 2 for index in range(len(REGISTERED)))),
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_every_method_is_right_or_refuses_the_layer(
    register: Any, names: tuple[str, ...], norm: str
) -> None:
    register(names)
    model = network()
    refused = {}
    for method in BOUNDS:
        try:
            found = certify(model, X, EPSILONS, method=method, norm=norm, radius=False, attack=None)
        except UnsupportedLayer as error:
            refused[method] = error
            continue
        assert found.notes["passed_over"] == {}
        assert found.certified.any()
        assert_holds(model, found, norm)
    for method, error in refused.items():
        assert error.code == "unsupported_layer"
        assert error.message == f"the method {method!r} has no rule for the layer 'fold' (n1)"
    left = [method for method in AUTO[norm] if method not in refused]
    if not left:
        with pytest.raises(UnsupportedLayer, match=r"'auto'.*'fold'"):
            certify(model, X, EPSILONS, norm=norm, radius=False, attack=None)
        return
    found = certify(model, X, EPSILONS, norm=norm, radius=False, attack=None)
    assert set(found.notes["passed_over"]) == refused.keys() & set(AUTO[norm])
    assert all("'fold'" in reason for reason in found.notes["passed_over"].values())
    assert set(found.method) <= {*left, "undecided"}
    assert found.certified.any()
    assert_holds(model, found, norm)


@pytest.mark.parametrize("norm", part(["l2", "linf"], 1))
def test_a_new_layer_is_one_file_and_one_row(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    """Every bound certifies with it, none is passed over, and no attack succeeds."""
    for layer, rules in RULES.items():
        monkeypatch.setitem(LAYERS, layer, rules)
    model = network()
    for method in ("auto", *(name for name, bound in BOUNDS.items() if norm in bound.norms)):
        found = certify(model, X, EPSILONS, method=method, norm=norm, radius=False, attack=None)
        assert found.notes["passed_over"] == {}
        assert found.certified.any(), method
        assert_holds(model, found, norm)


def test_a_file_of_rules_imports_no_bound() -> None:
    """Rules are what bounds are made of: the other direction would be a circle."""
    before = "workers.verification"
    for path in (*Path(layers.__path__[0]).glob("*.py"), Path(fold.__file__)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                room = str(node.module).removeprefix(f"{before}.").partition(".")[0]
                assert room not in {"bounds", "cascade", "forward"}, f"{path.name}: {node.module}"
                assert node.module != f"{before}.backward.backward_pass", path.name


def test_what_a_bound_needs_follows_from_the_registry(register: Any) -> None:
    compiled = CompiledNetwork.compile(network(), norms=False)
    with pytest.raises(UnsupportedLayer):
        covering_bounds(compiled, "auto", "l2")
    register(["ball"])
    assert [bound.name for bound in covering_bounds(compiled, "auto", "l2")[0]] == ["lipschitz"]
    register(["ball", "forward"])
    bounds, passed_over = covering_bounds(compiled, "auto", "l2")
    assert {bound.name for bound in bounds} == {
        name
        for name in AUTO["l2"]
        if BOUNDS[name].has_rule not in BACKWARD and BOUNDS[name].worth_trying(compiled)
    }
    assert set(passed_over) == {name for name in AUTO["l2"] if BOUNDS[name].has_rule in BACKWARD}
    register(["ball", "forward", "relax"])
    assert covering_bounds(compiled, "auto", "l2")[1] == {}


@pytest.mark.parametrize("method", BOUNDS)
def test_every_bound_says_that_it_does_not_cover_an_unknown_layer(method: str) -> None:
    assert not BOUNDS[method].has_rule(Fold())
    with pytest.raises(UnsupportedLayer, match=f"'{method}'.*'fold'"):
        covering_bounds(CompiledNetwork.compile(network(), norms=False), method, "l2")


def test_an_affine_map_without_an_adjoint_is_passed_over_by_backward_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    b = Builder((5,), 1)
    b.linear(8)
    b.add(LeakyReLU(slope=0.1))
    b.linear(3)
    full = certify(b.build(), X, EPSILONS, attack=None)
    assert full.notes["passed_over"] == {}
    monkeypatch.delitem(ADJOINTS, Dense)
    found = certify(b.build(), X, EPSILONS, attack=None)
    assert set(found.notes["passed_over"]) == {
        name for name in AUTO["l2"] if BOUNDS[name].has_rule in BACKWARD
    }
    assert not (found.certified & ~full.certified).any()
    with pytest.raises(UnsupportedLayer, match="'crown' has no rule for the layer 'Dense'"):
        certify(b.build(), X, EPSILONS, method="crown", attack=None)


def test_nothing_is_assumed_of_an_unknown_layer() -> None:
    """A layer without a row once moved a ball as if it were exact and 1-Lipschitz."""
    step = GraphStep("n", Fold(), (0,), (5,))
    assert not has_forward_rule(step.op)
    with pytest.raises(UnsupportedLayer):
        ball_rule(step, torch.zeros(1), Rounding.sound(torch.float64))


def test_a_rule_that_depends_on_the_norm_is_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The global bound once computed centre norms for a list of layers written by hand."""
    seen = []

    def rule(step: GraphStep, norm: Tensor, rounding: Rounding) -> tuple[float, Tensor | float]:
        seen.append(float(norm.min()))
        return 1.0, 1e-3 * norm

    b = Builder((5,), 3)
    b.add(Linear(torch.eye(5)))
    b.add(Fold())
    b.linear(3)
    monkeypatch.setitem(LAYERS, Fold, LayerRules(ball=EXACT))
    exact = certify(b.build(), X, EPSILONS, method="lipschitz", attack=None).radius
    monkeypatch.setitem(LAYERS, Fold, LayerRules(ball=Ball(rule)))
    rounded = certify(b.build(), X, EPSILONS, method="lipschitz", attack=None).radius
    assert min(seen) > 0.1
    assert (rounded < exact).all()


def test_a_bound_takes_part_in_auto_from_its_effort_on(monkeypatch: pytest.MonkeyPatch) -> None:
    late = replace(BOUNDS["cap"], name="late", auto_norms=("linf",), effort="exhaustive")
    monkeypatch.setitem(BOUNDS, "late", late)
    compiled = CompiledNetwork.compile(dense_network([5, 8, 3], 1))
    named = {
        effort: [bound.name for bound in covering_bounds(compiled, "auto", "linf", effort)[0]]
        for effort in EFFORTS
    }
    assert "crown" in named["standard"]
    assert set(named["quick"]) <= set(named["standard"]) < set(named["exhaustive"])
    assert "late" in named["exhaustive"]
    for effort in EFFORTS:
        # A method that is named runs at any effort.
        assert [b.name for b in covering_bounds(compiled, "late", "linf", effort)[0]] == ["late"]


def test_exhaustive_effort_decides_what_standard_leaves_open() -> None:
    network = dense_network([8, 20, 12, 4], 8)
    x = np.random.default_rng(8).random((4, 8)).astype(np.float32)
    usual, whole = (
        certify(network, x, ("1/6",), norm="linf", radius=False, effort=effort)
        for effort in ("standard", "exhaustive")
    )
    assert "undecided" in usual.method
    assert "undecided" not in whole.method
    assert "branch-and-bound" in whole.method
    assert (usual.certified <= whole.certified).all()
