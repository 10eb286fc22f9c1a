"""Heads that are no dense layer: as the identity written out, and at a cost of few classes each."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.layers.kinds import Add, Conv2d, ReLU, Reshape
from models.network import INPUT, Network
from tests.extent import examples
from tests.workers.verification.networks import dense_network
from workers.verification.bounds import crown, zonotope
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.clock import Clock
from workers.verification.complete import branch_and_bound
from workers.verification.deviation import budget
from workers.verification.forward import margins, zonotope_pass
from workers.verification.graph import head as head_module
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.head import Head
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region

F64 = torch.float64
ENDS = ("relu", "conv", "add")


def ending(last: str, channels: int, places: int) -> Network:
    """A network of ``channels`` times ``places`` squared outputs, the last layer of which is no
    dense one; the last channel's are the largest."""
    generator = torch.Generator().manual_seed(channels)

    def conv(inner: int, kernel: int) -> Conv2d:
        weight = torch.randn(channels, inner, kernel, kernel, generator=generator) / kernel**2
        bias = torch.full((channels,), 0.1)
        bias[-1] = 8.0
        return Conv2d(weight / inner, bias, padding=kernel // 2)

    rows: list[tuple[str, Any, tuple[str, ...]]] = [("first", conv(1, 3), (INPUT,))]
    if last == "conv":
        rows = [("first", conv(1, 1), (INPUT,))]
    elif last == "add":
        rows += [("other", conv(1, 1), (INPUT,)), ("sum", Add(), ("first", "other"))]
    else:
        rows += [("sum", ReLU(), ("first",))]
    rows += [("flat", Reshape(shape=(channels * places**2,)), (rows[-1][0],))]
    return Network((1, places, places), rows).eval()


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for held in tree_leaves(made):
            if isinstance(held, Tensor) and held.numel() == held.untyped_storage().size() // max(
                1, held.element_size()
            ):
                self.numbers = max(self.numbers, held.numel())
        return made


@pytest.mark.parametrize("last", ENDS)
def test_forty_thousand_outputs_are_certified_in_memory_of_few_of_them(last: str) -> None:
    network = ending(last, 400, 10)
    x = torch.full((1, 1, 10, 10), 0.2)
    x[0, 0, 3, 4] = 1.0
    logits = network(x).detach().double()
    label = logits.argmax(1)
    lead = -logits.topk(2, 1).values.diff(dim=1)[:, 0]
    with Largest() as largest:
        compiled = CompiledNetwork.compile(network)
        problem = Problem(compiled, True, torch.device("cpu"))
        for name, share in (("lipschitz", 200), ("bcp", 50), ("crown", 20)):
            region = Region(x, lead / share, "l2", True)
            assert bool(BOUNDS[name].attempt(problem, region, label, Budget(lead)).proved), name
    assert compiled.head.classes == 40_000
    # A quarter of a GiB of float64, where the identity alone has 12.8 GB.
    assert largest.numbers < 2**25


@given(last=st.sampled_from(ENDS), seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]))
@settings(max_examples=examples(2), deadline=None)
def test_it_says_what_the_identity_says(last: str, seed: int, norm: str) -> None:
    network = ending(last, 3, 2)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 1, 2, 2, generator=generator)
    labels = network(x).argmax(1)
    compiled = CompiledNetwork.compile(network)
    head = compiled.head
    assert head.dense is None
    written = replace(compiled, head=replace(head, dense=torch.eye(head.classes, dtype=F64)))
    margin = torch.ones(3, dtype=F64)
    epsilon = torch.tensor([0.01, 0.1, 0.4], dtype=F64)
    region = Region(x, epsilon, norm, True)
    for name in ("ibp", "bcp", "crown", "crown-ball", "zonotope"):
        found = [
            BOUNDS[name].attempt(
                Problem(each, True, torch.device("cpu")), region, labels, Budget(margin)
            )
            for each in (compiled, written)
        ]
        assert found[0].proved.tolist() == found[1].proved.tolist(), name
        torch.testing.assert_close(
            found[0].least_margin, found[1].least_margin, rtol=1e-5, atol=1e-5
        )


def test_thousands_of_open_classes_take_memory_of_few_of_them() -> None:
    """Every bound that is left: at an epsilon at which nearly all of 6,400 classes are open."""
    network = ending("relu", 64, 10)
    x = torch.full((1, 1, 10, 10), 0.2)
    x[0, 0, 3, 4] = 1.0
    logits = network(x).detach().double()
    label = logits.argmax(1)
    lead = -logits.topk(2, 1).values.diff(dim=1)[:, 0]
    clock = Clock(time.monotonic() + 10.0)
    problem = Problem(CompiledNetwork.compile(network), True, torch.device("cpu"))
    for name in ("zonotope", "alpha-crown-intermediate", "milp"):
        with Largest() as largest:
            region = Region(x, torch.ones(1, dtype=F64), "linf", True)
            spent = Budget(lead, clock, passes=2e4)
            assert not bool(BOUNDS[name].attempt(problem, region, label, spent).proved), name
        # The terms of a zonotope; the square has 41 million.
        assert largest.numbers <= zonotope.NUMBERS, (name, largest.numbers)


@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]), dense=st.booleans())
@settings(max_examples=examples(3), deadline=None)
def test_some_classes_at_a_time_prove_what_all_together_do(
    seed: int, norm: str, dense: bool
) -> None:
    network = dense_network([4, 6, 5, 9], seed) if dense else ending("relu", 3, 2)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, *network.input_shape, generator=generator)
    labels = network(x).argmax(1)
    compiled = CompiledNetwork.compile(network)
    region = Region(x, torch.tensor([0.01, 0.05, 0.1], dtype=F64), norm, True)
    margin = torch.ones(3, dtype=F64)
    problem = Problem(compiled, True, torch.device("cpu"))
    names = ["bcp", "crown", "zonotope", "alpha-crown", "branch-and-bound"]

    def found() -> dict[str, list[bool]]:
        return {
            name: BOUNDS[name].attempt(problem, region, labels, Budget(margin)).proved.tolist()
            for name in names
        }

    whole = found()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(margins, "HARDEST", 2)
        patch.setattr(crown, "TOGETHER", 2)
        patch.setattr(branch_and_bound, "TOGETHER", 2)
        patch.setattr(zonotope_pass, "FEW_CLASSES", 2)
        patch.setattr(zonotope_pass, "ROW_BYTES", {"cpu": 8})
        patch.setattr(zonotope, "HARDEST", 9)
        assert found() == whole


@given(seed=st.integers(0, 10**6))
@settings(max_examples=examples(3), deadline=None)
def test_rows_for_few_classes_leave_a_larger_budget(seed: int) -> None:
    network = dense_network([4, 6, 5, 5, 9], seed)
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed))
    compiled, labels = CompiledNetwork.compile(network), network(x).argmax(1)
    region = Region(x, torch.full((2,), 0.1, dtype=F64), "linf", True)
    whole = budget.margin_budget(compiled, region, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "FEW_CLASSES", 3)
        some = budget.margin_budget(compiled, region, labels, real=torch.rand(2, 9, dtype=F64))
    assert bool((some >= whole).all())
    assert bool((some > whole).any())
    assert bool((some == whole).any())


def test_a_large_weight_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 7, dtype=F64)
    values = torch.rand(3, 7, dtype=F64)
    for magnitude in (None, weight.abs() * 1.5):
        none = torch.zeros(50, dtype=F64)
        whole = Head(weight, none, none, 7.0, magnitude=magnitude)
        expected = whole.spread(values), whole.root_of_squares(values)
        with monkeypatch.context() as patch:
            patch.setattr(head_module, "HELD", 8)
            patch.setattr(head_module, "PART", 20)
            torch.testing.assert_close(whole.spread(values), expected[0])
            torch.testing.assert_close(whole.root_of_squares(values), expected[1])
