"""A far better normalisation is named; a right one raises no alarm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from models.network import per_channel
from workers.jobs.inspection.normalization_check import FIRST, normalization_doubt
from workers.jobs.inspection.unlike_samples import unlike_the_samples

Given = Mapping[str, Sequence[float]] | None
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
SHAPE = (3, 4, 4)


def normalized(x: Any, given: Given) -> torch.Tensor:
    x = torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32)
    if given is None:
        return x
    return (x - per_channel(given["mean"], SHAPE)) / per_channel(given["std"], SHAPE)


@pytest.fixture(scope="module")
def data() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three classes by which channel is bright: what colour means matters."""
    rng = np.random.default_rng(0)
    y = np.sort(rng.integers(0, 3, 300))
    x = rng.uniform(0, 0.6, (300, *SHAPE))
    x[np.arange(300), y] += 0.12
    return x.astype(np.float32), y.astype(np.int64)


def trained(data: Any, given: Given, *, reverse: bool = False) -> nn.Module:
    x, y = data
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs = normalized(x[:, ::-1] if reverse else x, given)
    inputs = inputs / inputs.std()
    scale = float(normalized(x[:, ::-1] if reverse else x, given).std())
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), torch.from_numpy(y)).backward()
        optimizer.step()
    with torch.no_grad():
        net[1].weight /= scale
    return net.eval()


def doubt(net: nn.Module, data: Any, given: Given, scale: float = 1.0) -> str | None:
    """scale: of the pixels that the network is shown, and that ``given`` is for."""
    x, y = data[0] * np.float32(scale), data[1]

    def logits(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = net(normalized(pixels, given)).detach().numpy()
        return found

    return normalization_doubt(logits, x, y, logits(x), given, scale)


BYTES: Given = {key: [255 * v for v in values] for key, values in CIFAR.items()}
HALF = {"mean": [0.5], "std": [0.5]}
RAW: Given = {"mean": [0.0], "std": [1 / 255]}
OWN = {"mean": [0.3, 0.33, 0.36], "std": [0.11, 0.12, 0.1]}
OWN_BYTES = {key: [255 * v for v in values] for key, values in OWN.items()}
OWN_MEAN: Given = {"mean": [255 * v for v in OWN["mean"]], "std": OWN["std"]}
OWN_STD: Given = {"mean": OWN["mean"], "std": [255 * v for v in OWN["std"]]}


@pytest.mark.parametrize(
    ("used", "given", "words"),
    [
        (CIFAR, BYTES, "divided by 255"),
        (HALF, None, '"mean": [0.5], "std": [0.5]'),
        (RAW, CIFAR, "pixels in [0, 255]"),
        (OWN, OWN_MEAN, "the given mean divided by 255"),
        (OWN, OWN_STD, "the given std divided by 255"),
    ],
)
def test_the_normalization_of_the_training_is_named(
    data: Any, used: Given, given: Given, words: str
) -> None:
    net = trained(data, used)
    said = doubt(net, data, given)
    assert said is not None
    assert words in said
    assert doubt(net, data, used) is None


#: What is usual for pixels in [0, 1], right for these data or not.
USUAL: tuple[Given, ...] = (
    *(None, HALF, RAW, CIFAR, OWN),
    {"mean": [0.45], "std": [0.25]},
    {"mean": [0.0], "std": [1.0]},
    {"mean": [0.0], "std": [2.0]},
    {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"mean": [103.939 / 255, 116.779 / 255, 123.68 / 255], "std": [1 / 255] * 3},
)


def times(given: Given, mean: float, std: float) -> Given:
    assert given is not None
    return {"mean": [v * mean for v in given["mean"]], "std": [v * std for v in given["std"]]}


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_a_mean_and_std_that_were_exchanged_are_named_also_without_labels(
    data: Any, scale: float
) -> None:
    x = data[0] * np.float32(scale)
    mean, std = ([float(v) for v in stat(x, (0, 2, 3))] for stat in (np.mean, np.std))
    said = unlike_the_samples(x, {"mean": std, "std": mean}, features=False)
    assert said is not None
    assert "exchanged" in said
    assert not unlike_the_samples(x, {"mean": mean, "std": std}, features=False)


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("used", [CIFAR, OWN, {"mean": [0.1307], "std": [0.3081]}, HALF])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((255, 255), "the given values divided by 255"),
        ((255, 1), "the given mean divided by 255"),
        ((1, 255), "the given std divided by 255"),
    ],
)
def test_bytes_for_shares_are_named_however_few_samples_there_are_and_without_labels(
    data: Any, used: Given, wrong: tuple[float, float], words: str, count: int
) -> None:
    said = unlike_the_samples(data[0][:count], times(used, *wrong), features=False)
    assert said is not None
    assert words in said
    assert f'"mean": {[float(f"{v:.4g}") for v in (used or {})["mean"]]}' in said
    # Of the same samples in bytes the units are right.
    if wrong == (255, 255):
        said = unlike_the_samples(255 * data[0][:count], times(used, *wrong), features=False)
        assert "units" not in (said or "")


@pytest.mark.parametrize("used", [CIFAR, OWN, {"mean": [0.4], "std": [0.2]}])
def test_shares_for_bytes_are_named_without_labels(data: Any, used: Given) -> None:
    said = unlike_the_samples(255 * data[0], used, features=False)
    assert said is not None
    assert "the given values times 255" in said


def test_what_is_usual_raises_no_alarm(data: Any) -> None:
    for images in (data[0], data[0] * 0, data[0] / 255, data[0] * 0 + 1):
        for given in USUAL:
            assert unlike_the_samples(images.astype(np.float32), given, features=False) is None
    byte = times(OWN, 255, 255)
    caffe = {"mean": [103.939, 116.779, 123.68], "std": [1.0]}
    for given in (None, byte, caffe, {"mean": [0.0], "std": [255.0]}, times(HALF, 255, 255)):
        assert unlike_the_samples(255 * data[0], given, features=False) is None
    # Features of a table have any units.
    assert unlike_the_samples(data[0].reshape(300, 48), byte, features=True) is None


@pytest.mark.parametrize(
    ("used", "given", "words"),
    [
        (BYTES, CIFAR, '"mean": [125.3, 123.0, 113.9]'),
        (OWN_BYTES, OWN, "the given values times 255"),
        (OWN_BYTES, OWN_STD, "the given mean times 255"),
        (BYTES, None, '"mean": [123.7, 116.3, 103.5]'),
        (OWN_BYTES, {key: [255 * v for v in OWN_BYTES[key]] for key in OWN_BYTES}, "by 255"),
    ],
)
def test_of_pixels_from_0_to_255_it_is_named_in_their_units(
    data: Any, used: Given, given: Given, words: str
) -> None:
    shown = data[0] * np.float32(255), data[1]
    net = trained(shown, used)
    said = doubt(net, data, given, scale=255.0)
    assert said is not None
    assert words in said
    assert doubt(net, data, used, scale=255.0) is None


def test_channels_in_the_wrong_order_are_named(data: Any) -> None:
    net = trained(data, CIFAR, reverse=True)
    said = doubt(net, data, CIFAR)
    assert said is not None
    assert "blue, green, red" in said


@pytest.mark.parametrize("given", [None, HALF, {"mean": [0.3, 0.4, 0.5], "std": [0.1, 0.2, 0.3]}])
def test_flat_colour_images_that_a_network_wants_pixel_by_pixel_are_named(given: Given) -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 120)
    images = rng.uniform(0, 0.9, (120, 3, 8, 8))
    images[np.arange(120), y] += 0.1
    mean, std = (0.0, 1.0) if given is None else (np.array(given[k]) for k in ("mean", "std"))

    def network(flat: Any) -> NDArray[np.float32]:
        """It sees normalised images [8, 8, 3] and names the brightest colour."""
        shown = flat.reshape(-1, 64, 3).astype(np.float64) * std + mean
        return np.asarray(shown.mean(1), np.float32)

    def normalized_flat(flat: Any) -> Any:
        """As the service feeds it: channel by channel."""
        if given is None:
            return flat
        return (flat - per_channel(given["mean"], (192,)).numpy()) / per_channel(
            given["std"], (192,)
        ).numpy()

    x = images.reshape(120, 192).astype(np.float32)
    found = network(normalized_flat(x))
    said = normalization_doubt(lambda p: network(normalized_flat(p)), x, y, found, given)
    assert said is not None
    assert "side by side" in said


@pytest.mark.parametrize("seed", range(5))
def test_no_alarm_where_no_convention_is_right(data: Any, seed: int) -> None:
    """An untrained network, labels by chance, samples sorted by class, a class alone."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = data
    for given in (None, CIFAR, HALF):
        assert doubt(net, (x, np.random.default_rng(seed).permutation(y)), given) is None
        assert doubt(net, (x[:60], np.zeros(60, np.int64)), given) is None


def test_an_accurate_network_costs_nothing_and_a_bad_one_little(data: Any) -> None:
    x, y = data
    seen: list[int] = []

    def counting(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def logits(pixels: NDArray[np.float32]) -> Any:
            seen.append(len(pixels))
            return answer(pixels)

        return logits

    right = np.eye(3, dtype=np.float32)[y]
    assert normalization_doubt(counting(lambda p: right), x, y, right, None) is None
    assert not seen
    wrong = np.eye(3, dtype=np.float32)[(y + 1) % 3]
    never = counting(lambda p: wrong[np.zeros(len(p), np.int64)] * 0)
    assert normalization_doubt(never, x, y, wrong, CIFAR) is None
    assert 0 < sum(seen) <= 13 * FIRST
