"""State dicts: the right tensors in the right layers, or a refusal that names both shapes."""

from __future__ import annotations

import re
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.architectures.published import blueprint, build
from models.checkpoints.state_dict import load_checkpoint, weights_of
from models.errors import ModelError
from models.network import Network

LIST: dict[str, Any] = {
    "input": [1, 6, 6],
    "layers": [
        {"kind": "conv2d", "out": 4, "kernel": 3, "padding": 1, "bias": False},
        {"kind": "batch-norm"},
        {"kind": "relu"},
        {"kind": "conv2d", "out": 4, "kernel": 3, "stride": 2, "groups": 2},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "linear", "out": 16},
        {"kind": "relu"},
        {"kind": "linear", "out": 16},
        {"kind": "relu"},
        {"kind": "linear", "out": 3},
    ],
}


def sequential(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(4)
            module.running_var = torch.rand(4) + 0.5
    return model.eval()


def write(folder: Path, content: Any, *, legacy: bool = False, name: str = "m.pt") -> Path:
    path = folder / name
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same(network: Network, model: nn.Module) -> None:
    x = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.layers."])
def test_state_dicts(tmp_path: Path, legacy: bool, prefix: str) -> None:
    model = sequential()
    state = OrderedDict((prefix + key, value) for key, value in model.state_dict().items())
    assert_same(load_checkpoint(write(tmp_path, state, legacy=legacy), "pt", LIST), model)


@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers(tmp_path: Path, legacy: bool) -> None:
    model = sequential()
    for content in (
        {"state_dict": model.state_dict(), "epoch": 60, "err": 0.3},
        {"model_state_dict": model.state_dict(), "optimizer": {"lr": 0.1}},
        {"state_dict": [model.state_dict()]},
        {"net": model.state_dict(), "test_acc": 0.9, "best loss": torch.tensor(0.1), "why": None},
        {"model": model.state_dict(), "schedule": {"milestones": Counter([30, 60]), "lr": [0.1]}},
        {key: nn.Parameter(t) if t.is_floating_point() else t
         for key, t in model.state_dict().items()},
    ):  # fmt: skip
        assert_same(load_checkpoint(write(tmp_path, content, legacy=legacy), "pt", LIST), model)


def test_a_stage_of_a_cascade(tmp_path: Path) -> None:
    models = [sequential(), sequential()]
    with torch.no_grad():
        models[1][0].weight.mul_(2.0)
    path = write(tmp_path, {"state_dict": [model.state_dict() for model in models]})
    for stage, model in enumerate(models, start=1):
        assert_same(load_checkpoint(path, "pt", {**LIST, "stage": stage}), model)
    for stage in (0, 3, -1, True, "1", 1.0):
        with pytest.raises(ModelError, match="stages 1 to 2"):
            load_checkpoint(path, "pt", {**LIST, "stage": stage})
    single = write(tmp_path, models[0].state_dict())
    with pytest.raises(ModelError, match="holds one network"):
        load_checkpoint(single, "pt", {**LIST, "stage": 1})


def test_storages_named_by_their_address(tmp_path: Path) -> None:
    """As torch 1.4 to 1.6 wrote them."""
    model = sequential()
    path = write(tmp_path, model.state_dict())
    members = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            # All that those releases wrote.
            if re.search(r"/(data\.pkl|version|data/\d+)$", name):
                members[name] = archive.read(name)
    pickled = next(name for name in members if name.endswith("data.pkl"))
    keys = [name.rpartition("/")[2] for name in members if "/data/" in name]
    for key in keys:
        long = f"939{int(key):011d}"
        old, new = (b"X" + len(k).to_bytes(4, "little") + k.encode() for k in (key, long))
        members[pickled] = members[pickled].replace(old + b"q", new + b"q")
        members = {
            name[: -len(key)] + long if name.endswith(f"/data/{key}") else name: content
            for name, content in members.items()
        }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert_same(load_checkpoint(path, "pt", LIST), model)


def test_safetensors_keeps_no_order_but_numbers_do(tmp_path: Path) -> None:
    """``10.weight`` sorts before ``3.weight`` in the file, and after it here."""
    model = sequential()
    path = tmp_path / "m.safetensors"
    save_file(model.state_dict(), path)
    assert_same(load_checkpoint(path, "safetensors", LIST), model)


def named(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {
        f"{names[k.split('.', 1)[0]]}.{k.split('.', 1)[1]}": v.clone() for k, v in state.items()
    }


NAMES = {"0": "stem", "1": "bn", "3": "conv", "6": "hidden", "8": "again", "10": "fc"}


def test_named_modules(tmp_path: Path) -> None:
    """In order in a .pt; in safetensors by the list's names, and refused where order is a guess."""
    model = sequential()
    state = named(model.state_dict(), NAMES)
    assert_same(load_checkpoint(write(tmp_path, state), "pt", LIST), model)
    path = tmp_path / "m.safetensors"
    save_file(state, path)
    with pytest.raises(ModelError, match="order") as caught:
        load_checkpoint(path, "safetensors", LIST)
    assert caught.value.code == "architecture_mismatch"
    layers = [dict(row) for row in LIST["layers"]]
    for index, name in NAMES.items():
        layers[int(index)]["name"] = name
    assert_same(load_checkpoint(path, "safetensors", {**LIST, "layers": layers}), model)


def test_channels_last_weights(tmp_path: Path) -> None:
    model = sequential()
    state = {
        key: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
        for key, value in model.state_dict().items()
    }
    assert_same(load_checkpoint(write(tmp_path, state), "pt", LIST), model)


def test_our_own_state_dict_comes_back(tmp_path: Path) -> None:
    network = load_checkpoint(write(tmp_path, sequential().state_dict()), "pt", LIST)
    again = load_checkpoint(write(tmp_path, dict(network.state_dict())), "pt", LIST)
    assert again.graph_digest() == network.graph_digest()


def test_a_stored_normalization_must_be_the_lists(tmp_path: Path) -> None:
    def behind(mean: float) -> dict[str, Any]:
        row = {"kind": "normalize", "mean": [mean], "std": [0.25]}
        return {**LIST, "layers": [row, *LIST["layers"]]}

    network = load_checkpoint(write(tmp_path, sequential().state_dict()), "pt", behind(0.5))
    path = write(tmp_path, dict(network.state_dict()))
    assert load_checkpoint(path, "pt", behind(0.5)).graph_digest() == network.graph_digest()
    for other in (behind(0.4), LIST):
        with pytest.raises(ModelError, match="normalisation"):
            load_checkpoint(path, "pt", other)


def without(key: str) -> dict[str, Tensor]:
    state = sequential().state_dict()
    del state[key]
    return state


def but(**tensors: Tensor) -> dict[str, Tensor]:
    changed = {key.replace("__", "."): value for key, value in tensors.items()}
    return {**sequential().state_dict(), **changed}


NAN = torch.full((3,), float("nan"))


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (without("3.bias"), "architecture_mismatch", "bias"),
        (without("1.running_var"), "architecture_mismatch", "var"),
        (without("10.weight"), "architecture_mismatch", None),
        (
            but(**{"10__weight": torch.zeros(3, 17)}),
            "architecture_mismatch",
            r"\(3, 17\).*\(3, 16\)",
        ),
        (but(extra__weight=torch.zeros(3)), "architecture_mismatch", "extra.weight"),
        (but(scale=torch.zeros(())), "architecture_mismatch", "scale"),
        (but(**{"0__bias": torch.zeros(4)}), "architecture_mismatch", "bias"),
        (but(**{"10__bias": torch.zeros(3, dtype=torch.float64)}), "unsupported_dtype", "float64"),
        (but(**{"10__bias": torch.zeros(3, dtype=torch.float16)}), "unsupported_dtype", "float16"),
        (but(**{"10__bias": NAN}), "non_finite_weights", "NaN"),
        (but(**{"1__running_var": -torch.ones(4)}), "invalid_network", "variance"),
        ({"state_dict": [sequential().state_dict()] * 2}, "architecture_mismatch", "cascade of 2"),
        (
            {"state_dict": sequential().state_dict(), "ema": {"w": torch.ones(2)}},
            "architecture_mismatch",
            "ema",
        ),
        ({**sequential().state_dict(), "epoch": 3}, "invalid_checkpoint", "epoch"),
        ([1, 2], "architecture_mismatch", None),
        (torch.zeros(3), "invalid_checkpoint", None),
        ({}, "invalid_checkpoint", None),
    ],
)
def test_refused(tmp_path: Path, content: Any, code: str, words: str | None) -> None:
    for legacy in (False, True):
        with pytest.raises(ModelError, match=words) as caught:
            load_checkpoint(write(tmp_path, content, legacy=legacy), "pt", LIST)
        assert caught.value.code == code, caught.value


@pytest.mark.parametrize("activation", ["relu", "maxmin", "clamped-maxmin", "relu-theta"])
@pytest.mark.parametrize("name", ["mnist-small", "orthogonal-dense"])
def test_weights_of_ours_are_loaded_as_the_network_they_are_of(
    tmp_path: Path, name: str, activation: str
) -> None:
    sizes = {"input": [1, 28, 28], "widths": [16]} if name == "orthogonal-dense" else {}
    generator = torch.Generator().manual_seed(0)
    network = build({"name": name, **sizes}, activation=activation, generator=generator).deployed()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_of(network))
    x = torch.rand(4, 1, 28, 28, generator=generator)
    same = load_checkpoint(path, "safetensors", {"name": name, "activation": activation, **sizes})
    assert torch.equal(same(x), network(x))
    if activation == "maxmin":
        # The weights alone would fit.
        with pytest.raises(ModelError, match="maxmin") as caught:
            load_checkpoint(path, "safetensors", {"name": name, **sizes})
        assert caught.value.code == "architecture_mismatch"
        assert "activation" in caught.value.hint


def test_what_others_write_beside_their_tensors_is_not_asked_for(tmp_path: Path) -> None:
    network = build("mnist-small", generator=torch.Generator().manual_seed(0))
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    for beside in ({"format": "pt"}, None):
        save_file(tensors, tmp_path / "theirs.safetensors", metadata=beside)
        load_checkpoint(tmp_path / "theirs.safetensors", "safetensors", "mnist-small")


@pytest.mark.parametrize("name", ["mnist-small", "liresnet", "orthogonal-dense"])
@pytest.mark.parametrize("activation", ["maxmn", "", None, 5, ["relu"]])
def test_an_unknown_activation_is_refused_and_not_left_out(name: str, activation: Any) -> None:
    with pytest.raises(ModelError, match="no activation named") as caught:
        blueprint({"name": name, "activation": activation})
    assert "maxmin" in caught.value.hint
