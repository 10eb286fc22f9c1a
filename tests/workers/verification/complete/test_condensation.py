"""Condensed networks hold every deployed execution, whatever the layers and their scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.activations import MaxMin
from models.layers.kinds import Add, AvgPool2d, LeakyReLU, MaxPool2d, ReLU
from models.network import Network
from tests.extent import examples
from tests.workers.verification.complete.samples import sample_of
from tests.workers.verification.networks import Builder, dense_network
from workers.verification.backward.condensation import RowsOverflow, condense, units_of
from workers.verification.backward.linear_form import LinearForm
from workers.verification.complete import condensed_network
from workers.verification.complete.condensed_network import CondensedNetwork, TooManyUnits


def residual_network(seed: int) -> Network:
    """Convolutions, batch norm, a residual sum, pools, and layers that are lines or boxes here."""
    b = Builder((2, 6, 6), seed)
    b.conv(3, 3, padding=1)
    b.batch_norm()
    b.add(ReLU())
    before = b.last
    b.conv(3, 3, padding=1)
    b.add(LeakyReLU(slope=0.1))
    b.conv(3, 3, padding=1)
    b.add(Add(), b.last, before)
    b.add(ReLU())
    b.add(MaxPool2d(kernel=2, stride=2) if seed % 2 else AvgPool2d(kernel=2, stride=2))
    b.conv(4, 2)
    if seed % 3 == 0:
        b.add(MaxMin())
    b.add(ReLU())
    b.flatten()
    b.linear(4)
    return b.build()


@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    dense=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=examples(12), deadline=None)
def test_units_and_margins_are_their_functions_at_every_execution(
    seed: int, norm: str, dense: bool, scale: float, dtype: torch.dtype
) -> None:
    network = dense_network([5, 9, 7, 3], seed, scale=scale) if dense else residual_network(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, *network.input_shape, generator=generator)
    sample = sample_of(network, x, 0.1 if dense else 0.03, norm, dtype=dtype)
    condensed = sample.condensed
    values, before, margins = sample.executed(20, seed)
    units, asked = condensed.units, condensed.objectives
    known = condensed.lines.upper_slope.abs() + condensed.lines.lower_slope.abs() > 0
    off = values @ units.weight.T + units.constant - before
    assert bool((off.abs() <= units.error)[:, known].all())
    assert bool((values @ asked.weight.T + asked.constant - asked.error <= margins).all())
    assert bool((values.abs() <= condensed.reach).all())
    lines, after = condensed.lines, values[:, condensed.inputs :]
    assert bool((lines.lower_slope * before + lines.lower_intercept <= after + 1e-300).all())
    assert bool((lines.upper_slope * before + lines.upper_intercept >= after - 1e-300).all())


def test_rows_beyond_float64_are_told_and_taken_for_no_layer_without_a_rule() -> None:
    """They come of weights near 1e38 in many layers, and a search leaves the sample undecided."""
    backward = sample_of(residual_network(2), torch.rand(1, 2, 6, 6), 0.05).backward
    value = len(backward.compiled.steps)
    shape = tuple(backward.compiled.steps[-1].shape)
    rows = LinearForm(torch.full((1, *shape), torch.inf, dtype=backward.dtype), shape, None)
    with pytest.raises(RowsOverflow):
        condense(backward, units_of(backward), value, rows)


def test_no_unit_reads_itself_or_what_comes_later() -> None:
    sample = sample_of(residual_network(3), torch.rand(1, 2, 6, 6), 0.05)
    condensed = sample.condensed
    assert len(condensed.blocks) >= 3
    assert bool((condensed.lines.splits).any())
    assert not bool(condensed.lines.splits.all())
    for block in condensed.blocks:
        later = condensed.units.weight[block, condensed.inputs + block.start :]
        assert not bool(later.any())


def test_too_many_units_are_refused_before_they_take_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = sample_of(dense_network([5, 9, 7, 3], 1), torch.rand(1, 5), 0.3)
    monkeypatch.setattr(condensed_network, "MOST_BYTES", 100)
    with pytest.raises(TooManyUnits):
        CondensedNetwork.of(sample.backward, sample.label, sample.condensed.classes)
