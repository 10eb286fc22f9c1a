"""Named architectures and layer lists: exact sizes, clear refusals, nothing paid in advance."""

from __future__ import annotations

import math
import resource
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.architectures.published import ARCHITECTURES, blueprint, build
from models.errors import ModelError
from models.layers.kinds import Conv2d, Linear
from tests.extent import examples

PARAMETERS = {
    "mnist-4c3f": 1_974_762,
    "cifar-4c3f": 2_466_858,
    "cifar-6c2f": 2_250_378,
    "cifar-6c2f-nopad": 1_758_858,
    "tiny-8c2f": 4_342_984,
    "mnist-small": 166_406,
    "cifar-small": 214_918,
    "mnist-convmed": 348_374,
    "cifar-convmed": 2_118_856,
    "cifar-convmedbig": 2_133_736,
    "mnist-convmed-normalized": 348_376,
    "cifar-small-normalized": 214_924,
    "cifar-4c3f-normalized": 2_466_864,
    "cifar-convmed-normalized": 2_118_862,
    "cifar-convmedbig-normalized": 2_133_742,
    "mnist-cnn5-bn": 823_260,
    "cifar-cnn5-bn": 1_069_312,
    "mnist-cnn7-bn": 13_261_388,
    "cifar-cnn7-bn": 17_194_704,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_parameter_counts(name: str) -> None:
    assert blueprint(name).skeleton.parameter_count == PARAMETERS[name]


@pytest.mark.parametrize("name", ["mnist-small", "cifar-small", "mnist-cnn5-bn"])
def test_initial_weights(name: str) -> None:
    """The same seed gives the same network; spreads are the papers'."""
    first, second = (build(name, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = build(name, generator=torch.Generator().manual_seed(4))
    assert first.graph_digest() == second.graph_digest() != other.graph_digest()
    for node in first.nodes:
        layer = first.layer(node.name)
        if isinstance(layer, Conv2d | Linear):
            shape = layer.weight.shape
            if name.startswith("cifar") and isinstance(layer, Conv2d):
                deviation = math.sqrt(2 / (shape[0] * shape[2] * shape[3]))
                assert layer.bias is not None
                assert not layer.bias.any()
            elif name.endswith("-bn") and node is not first.nodes[-1]:
                deviation = math.sqrt(2 * math.pi) / math.prod(shape[1:])
            else:
                deviation = 1 / math.sqrt(3 * math.prod(shape[1:]))
            assert layer.weight.std().item() == pytest.approx(deviation, rel=0.15)


def test_a_size_that_is_called_otherwise_is_told_what_the_layer_has() -> None:
    layers = [{"kind": "flatten"}, {"kind": "linear", "out_features": 2}]
    with pytest.raises(ModelError, match='needs "out"') as caught:
        build({"input": [1, 2, 2], "layers": layers})
    assert "out_features" in caught.value.hint
    layers[1] = {"kind": "linear", "out": 0}
    with pytest.raises(ModelError, match="not 0") as caught:
        build({"input": [1, 2, 2], "layers": layers})
    assert not caught.value.hint


def residual() -> dict[str, Any]:
    return {
        "input": [3, 8, 8],
        "layers": [
            {"kind": "normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]},
            {"kind": "conv2d", "out": 4, "kernel": 3, "padding": 1, "name": "stem"},
            {"kind": "batch-norm"},
            {"kind": "relu", "name": "block"},
            {"kind": "conv2d", "out": 8, "kernel": [3, 3], "stride": 2, "padding": [1, 1, 1, 1],
             "bias": False, "groups": 2},
            {"kind": "leaky-relu", "slope": 0.1, "name": "body"},
            {"kind": "conv2d", "out": 8, "kernel": 1, "stride": 2, "from": "block"},
            {"kind": "add", "from": "body"},
            {"kind": "max-pool2d", "kernel": 2},
            {"kind": "avg-pool2d", "kernel": 2, "stride": 1, "padding": 1, "name": "pooled"},
            {"kind": "relu", "name": "again"},
            {"kind": "residual", "from": ["pooled", "again"]},
            {"kind": "global-avg-pool"},
            {"kind": "flatten"},
            {"kind": "linear", "out": 10},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(("blocks", "width", "count"), [(1, 1, 4), (2, 1, 7), (1, 2, 4)])
def test_the_residual_network_of_cap(blocks: int, width: int, count: int) -> None:
    network = build({"name": "cap-resnet", "input": [3, 8, 8], "blocks": blocks, "width": width})
    sums = [node for node in network.nodes if node.name.startswith("add")]
    sizes = {(16 * width, 8, 8), (32 * width, 4, 4), (64 * width, 2, 2)}
    assert (len(sums), {node.shape for node in sums}) == (count, sizes)
    assert sums[-1].shape == (64 * width, 2, 2)
    logits = network(torch.rand(2, 3, 8, 8))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_a_layer_list_with_everything() -> None:
    network = build(residual())
    assert network.classes == 10
    assert network(torch.rand(2, 3, 8, 8)).isfinite().all()
    assert [n.shape for n in network.nodes if n.name.startswith("add")] == [(8, 4, 4), (8, 3, 3)]


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "conv"}, "known: abs, abs-shift, add"),
    ({"kind": None}, "kind"),
    ({"out": 0}, "out"),
    ({"out": 10.5}, "out"),
    ({"out": True}, "out"),
    ({"out": 10**12}, "out"),
    ({"kernel": 99}, "does not fit"),
    ({"kernel": [1, 2, 3]}, "kernel"),
    ({"stride": 0}, "stride"),
    ({"padding": -1}, "padding"),
    ({"groups": 2}, "groups"),
    ({"bias": 1}, "bias"),
    ({"colour": "red"}, "colour"),
    ({"from": "nowhere"}, "from"),
    ({"from": ["input", "input"]}, "inputs"),
    ({"name": "input"}, "name"),
    ({"name": 7}, "name"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_refused_layers(change: dict[str, Any], words: str) -> None:
    layers = [{"kind": "conv2d", "out": 4, "kernel": 3} | change, {"kind": "flatten"}]
    with pytest.raises(ModelError) as caught:
        build({"input": [3, 8, 8], "layers": layers})
    assert caught.value.code == "invalid_architecture"
    assert words in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("description", "code"),
    [
        ("cifar-7c1f", "unknown_architecture"),
        ({}, "invalid_architecture"),
        ({"input": [3], "layers": []}, "invalid_architecture"),
        ({"input": "x", "layers": [{"kind": "relu"}]}, "invalid_architecture"),
        ({"input": [0], "layers": [{"kind": "relu"}]}, "invalid_architecture"),
        ({"input": [3], "layers": [5]}, "invalid_architecture"),
        ({"input": [3], "layers": [{"kind": "linear", "out": 1}]}, "invalid_architecture"),
        ({"input": [3], "layers": [{"kind": "relu"}], "seed": 1}, "invalid_architecture"),
        ({"input": [3], "layers": [{"kind": "normalize", "mean": [0], "std": [1e60]}]},
         "invalid_architecture"),
        ({"input": [3], "layers": [{"kind": "normalize", "mean": [0], "std": [1e-60]}]},
         "invalid_architecture"),
        ({"input": [3, 4, 4], "layers": [{"kind": "linear", "out": 2}]}, "invalid_architecture"),
        ({"input": [3, 4, 4], "layers": [{"kind": "relu"}]}, "invalid_network"),
        ({"input": [3], "layers": [{"kind": "linear", "out": 2, "name": "a"},
                                   {"kind": "relu", "from": "input"}]}, "invalid_network"),
        ({"input": [1 << 20], "layers": [{"kind": "linear", "out": 1 << 20}]}, "model_too_large"),
        ({"input": [1, 1, 1], "layers": [{"kind": "conv2d", "out": 2, "kernel": 1,
                                          "padding": 1 << 23}]}, "model_too_large"),
    ],
)  # fmt: skip
def test_refused_architectures(description: Any, code: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        build(description)
    assert caught.value.code == code, caught.value
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = ["out", "kernel", "stride", "padding", "groups", "from", "name", "mean", "std", "slope"]


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"kind": st.sampled_from(["conv2d", "linear", "add", "normalize", "max-pool2d"])},
            optional=dict.fromkeys(KEYS, JSON),
        )
        | JSON,
        max_size=3,
    ),
    st.just([3, 4, 4]) | JSON,
)
def test_any_json_is_a_blueprint_or_a_model_error(layers: Any, shape: Any) -> None:
    try:
        blueprint({"input": shape, "layers": layers})
    except ModelError as error:
        assert error.code != "invalid_model"  # noqa: PT017 - some JSON is an architecture
