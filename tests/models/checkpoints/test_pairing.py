"""A state dict's modules: by name, by number, by shape; what none of these decides is told."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.checkpoints.state_dict import Loaded, read_network
from models.errors import ModelError

WIDTH = 4


def rows(depth: int, names: dict[int, str] | None = None) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    for place in range(depth):
        name = {"name": names[place]} if names and place in names else {}
        layers += [{"kind": "linear", "out": WIDTH, **name}, {"kind": "relu"}]
    return {"input": [WIDTH], "layers": layers[:-1]}


def weights(depth: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(depth)
    return [
        (torch.randn(WIDTH, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator))
        for _ in range(depth)
    ]


def state(names: list[str], pairs: list[tuple[Tensor, Tensor]]) -> OrderedDict[str, Tensor]:
    found: OrderedDict[str, Tensor] = OrderedDict()
    for name, (weight, bias) in zip(names, pairs, strict=True):
        found[f"{name}.weight"], found[f"{name}.bias"] = weight, bias
    return found


def loaded(folder: Path, tensors: dict[str, Tensor], architecture: dict[str, Any]) -> Loaded:
    torch.save(tensors, folder / "m.pt")
    return read_network(folder / "m.pt", "pt", architecture)


def answer(pairs: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    for place, (weight, bias) in enumerate(pairs):
        x = x @ weight.T + bias
        x = x.relu() if place + 1 < len(pairs) else x
    return x


X = torch.linspace(0, 1, 3 * WIDTH).reshape(3, WIDTH)


@given(depth=st.integers(2, 12), order=st.randoms(use_true_random=False))
def test_numbers_in_the_names_order_the_layers_whatever_the_files_order(
    tmp_path_factory: pytest.TempPathFactory, depth: int, order: Any
) -> None:
    pairs = weights(depth)
    names = [f"net.{2 * place}" for place in range(depth)]
    tensors = state(names, pairs)
    shuffled = list(range(depth))
    order.shuffle(shuffled)
    file = state([names[p] for p in shuffled], [pairs[p] for p in shuffled])
    found = loaded(tmp_path_factory.mktemp("m"), file, rows(depth))
    torch.testing.assert_close(found.network(X), answer(pairs, X))
    assert bool(found.warnings) == (list(file) != list(tensors))
    assert found.pairing == {
        f"{name}.{key}": f"linear_{2 * place}.{key}"
        for place, name in enumerate(names)
        for key in ("weight", "bias")
    }


def test_keys_sorted_as_text(tmp_path: Path) -> None:
    """``10.weight`` before ``2.weight``: every shape fits, and it is another network."""
    pairs = weights(7)
    tensors = state([str(2 * place) for place in range(7)], pairs)
    found = loaded(tmp_path, dict(sorted(tensors.items())), rows(7))
    torch.testing.assert_close(found.network(X), answer(pairs, X))
    assert "10, 12, 2" in "".join(found.warnings)


def test_an_order_that_the_file_alone_knows_is_told(tmp_path: Path) -> None:
    found = loaded(tmp_path, state(["second", "first", "last"], weights(3)), rows(3))
    assert "second, first, last" in found.warnings[0]
    assert found.pairing["second.weight"] == "linear_0.weight"


def test_names_in_the_layer_list_leave_no_doubt(tmp_path: Path) -> None:
    pairs = weights(3)
    file = state(["second", "first", "last"], [pairs[1], pairs[0], pairs[2]])
    found = loaded(tmp_path, file, rows(3, {0: "first", 1: "second", 2: "last"}))
    torch.testing.assert_close(found.network(X), answer(pairs, X))
    assert not found.warnings
    with pytest.raises(ModelError, match="first") as caught:
        loaded(tmp_path, file, rows(3, {0: "first"}))
    assert caught.value.code == "architecture_mismatch"


def test_layers_that_differ_in_shape_need_no_names(tmp_path: Path) -> None:
    layers = [{"kind": "linear", "out": 5}, {"kind": "relu"}, {"kind": "linear", "out": 3}]
    file = state(["body", "head"], [
        (torch.ones(5, 4), torch.ones(5)), (torch.ones(3, 5), torch.ones(3))
    ])  # fmt: skip
    assert not loaded(tmp_path, file, {"input": [4], "layers": layers}).warnings


class Residual(nn.Module):
    """The names of a common residual network: batch norms of equal width, named by their block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        block = nn.Module()
        block.conv1, block.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        block.conv2, block.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(block)
        self.fc = nn.Linear(36, 3)


def test_no_false_alarm_on_a_residual_network(tmp_path: Path) -> None:
    def unit() -> list[dict[str, Any]]:
        return [
            {"kind": "conv2d", "out": 4, "kernel": 3, "padding": 1},
            {"kind": "batch-norm"},
            {"kind": "relu"},
        ]

    architecture = {
        "input": [1, 3, 3],
        "layers": [*unit(), *unit(), *unit(), {"kind": "flatten"}, {"kind": "linear", "out": 3}],
    }
    assert not loaded(tmp_path, Residual().state_dict(), architecture).warnings
    swapped = dict(Residual().state_dict())
    moved = {k: swapped.pop(k) for k in list(swapped) if k.startswith("bn1")}
    assert "bn1" in "".join(loaded(tmp_path, {**swapped, **moved}, architecture).warnings)


def sorted_by_name(folder: Path, names: list[str], pairs: list[tuple[Tensor, Tensor]]) -> Loaded:
    """The network of a safetensors file, which keeps no order."""
    safetensors.torch.save_file(state(names, pairs), folder / "m.safetensors")
    return read_network(folder / "m.safetensors", "safetensors", rows(len(names)))


#: Names of layers in the order in which they are used; equal shapes, and no name decides.
UNDECIDED = [
    ["l-3", "l-2", "l-1"],
    ["l-1", "l-2", "l-3"],
    ["net.-2.fc", "net.-1.fc"],
    ["l\N{MINUS SIGN}2", "l\N{MINUS SIGN}1"],
    ["l01", "l1"],
    ["b1.l007", "b01.l7"],
]


@pytest.mark.parametrize("names", UNDECIDED)
def test_signs_and_leading_zeros_are_told_where_the_file_keeps_no_order(
    tmp_path: Path, names: list[str]
) -> None:
    (warning,) = sorted_by_name(tmp_path, names, weights(len(names))).warnings
    assert all(name in warning for name in names)
    assert "do not say which layer is which" in warning


@pytest.mark.parametrize("names", [["l-3", "l-2", "l-1"], ["l01", "l1"], ["l-2", "l-1", "l0"]])
def test_the_savers_order_holds_where_names_do_not_contradict_it(
    tmp_path: Path, names: list[str]
) -> None:
    pairs = weights(len(names))
    found = loaded(tmp_path, state(names, pairs), rows(len(names)))
    torch.testing.assert_close(found.network(X), answer(pairs, X))
    assert "do not say which layer is which" in "".join(found.warnings)


@pytest.mark.parametrize(
    "names", [["l-1", "l-2", "l-3"], ["conv1-1", "conv1-2", "conv2-1"], ["l1", "l02", "l003"]]
)
def test_no_false_alarm_where_name_and_order_agree(tmp_path: Path, names: list[str]) -> None:
    pairs = weights(len(names))
    found = loaded(tmp_path, state(names, pairs), rows(len(names)))
    torch.testing.assert_close(found.network(X), answer(pairs, X))
    assert not found.warnings


@pytest.mark.parametrize(
    "names",
    [["conv1-1", "conv1-2", "conv2-1"], ["l9", "l10"], ["l" + "9" * 5000, "l1" + "0" * 5000]],
)
def test_numbers_of_any_length_order_a_file_that_keeps_no_order(
    tmp_path: Path, names: list[str]
) -> None:
    pairs = weights(len(names))
    found = sorted_by_name(tmp_path, names, pairs)
    torch.testing.assert_close(found.network(X), answer(pairs, X))
    assert not found.warnings


@pytest.mark.parametrize(
    "names",
    [["la", "lb"], ["l.i", "l.ii"], ["a.1", "b.2"], ["L1", "l2"], ["l1\u00b2", "l1\u00b3"],
     ["l", "l1"], ["l-1", "l_2"]],
)  # fmt: skip
def test_letters_and_other_prefixes_are_refused_where_the_file_keeps_no_order(
    tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(ModelError, match="equal shapes") as caught:
        sorted_by_name(tmp_path, names, weights(2))
    assert caught.value.code == "architecture_mismatch"
    assert loaded(tmp_path, state(names, weights(2)), rows(2)).warnings
