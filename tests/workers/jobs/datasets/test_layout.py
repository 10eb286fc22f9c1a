"""Samples are brought into the network's shape as the contract says, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from workers.jobs.datasets.arrays import DataError
from workers.jobs.datasets.layout import as_network_input, to_pixels


def numbered(*sample: int) -> np.ndarray:
    return np.arange(2 * int(np.prod(sample))).reshape(2, *sample)


@pytest.mark.parametrize(
    ("sample", "shape", "order"),
    [
        ((3, 8, 9), (3, 8, 9), (0, 1, 2, 3)),
        ((8, 9, 3), (3, 8, 9), (0, 3, 1, 2)),
        ((3, 8, 9), (8, 9, 3), (0, 2, 3, 1)),
        ((8, 9, 3), (216,), (0, 3, 1, 2)),
        ((3, 8, 9), (216,), (0, 1, 2, 3)),
        ((28, 28, 1), (784,), (0, 1, 2, 3)),
        ((28, 28, 1), (1, 28, 28), (0, 1, 2, 3)),
        ((1, 28, 28), (784, 1), (0, 1, 2, 3)),
    ],
)
def test_orders(sample: tuple[int, ...], shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    x = numbered(*sample)
    wanted = x.transpose(order).reshape(2, *shape)
    assert (as_network_input(x, shape) == wanted).all()


def test_images_without_channel_axis() -> None:
    x = numbered(28, 28)
    assert (as_network_input(x, (1, 28, 28)) == x[:, None]).all()
    assert (as_network_input(x, (784,)) == x.reshape(2, 784)).all()
    small = numbered(4, 4)  # 4 is no number of channels here: the images have no axis of them
    assert (as_network_input(small, (1, 4, 4)) == small[:, None]).all()
    assert (as_network_input(small, (4, 4, 1)) == small[..., None]).all()


def test_flat_samples_are_nchw() -> None:
    x = numbered(3 * 8 * 8)
    assert (as_network_input(x, (3, 8, 8)) == x.reshape(2, 3, 8, 8)).all()
    wanted = x.reshape(2, 3, 8, 8).transpose(0, 2, 3, 1)
    assert (as_network_input(x, (8, 8, 3)) == wanted).all()


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        ((3, 8, 3), (72,)),
        ((8, 8, 8), (512,)),
        ((72,), (3, 8, 3)),
        ((2, 8), (1, 8, 2)),
        ((2, 8, 1), (8, 2)),
        ((3, 2, 8), (3, 8, 2)),
        ((2, 8, 3), (3, 8, 2)),
    ],
)
def test_two_readings(sample: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        as_network_input(numbered(*sample), shape)
    assert caught.value.code == "ambiguous_layout"


def test_no_reading() -> None:
    with pytest.raises(DataError) as caught:
        as_network_input(numbered(3, 8, 8), (3, 9, 9))
    assert caught.value.code == "shape_mismatch"


def test_every_way_to_divide_by_255_agrees() -> None:
    k = np.arange(256, dtype=np.uint8)
    ours = to_pixels(k, clip=True)
    assert ours.dtype == np.float32
    assert (ours == k.astype(np.float32) / np.float32(255)).all()
    assert (ours == np.array([float(v) / 255 for v in range(256)]).astype(np.float32)).all()
    assert ours[0] == 0
    assert ours[255] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats(dtype: type) -> None:
    assert to_pixels(np.array([0, 0.5, 1], dtype=dtype), clip=True).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("values", "clip", "code"),
    [
        (np.array([0.0, 255.0]), True, "sample_out_of_range"),
        (np.array([-1e-9]), True, "sample_out_of_range"),
        (np.array([np.nan]), False, "non_finite_samples"),
        (np.array([np.inf]), False, "non_finite_samples"),
        (np.array([1e300]), False, "non_finite_samples"),
        (np.array([1, 2]), True, "unsupported_dtype"),
    ],
)
def test_refused(values: np.ndarray, clip: bool, code: str) -> None:
    with pytest.raises(DataError) as caught:
        to_pixels(values, clip=clip)
    assert caught.value.code == code


def test_without_clip_any_finite_value_is_taken() -> None:
    assert to_pixels(np.array([-3.0, 7.0]), clip=False).tolist() == [-3, 7]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, 17.0, 255.0], "x.astype(numpy.uint8)"),
        ([0.0, 17.5, 250.0], "divide them by 255"),
        ([-1.0, 0.3, 1.0], "store (x + 1) / 2"),
        ([-2.1, 0.3, 2.6], "normalized pixels"),
        ([0.0, 1.5], "give mean and std"),
        ([0.0, 4000.0], "give mean and std"),
    ],
)
def test_pixels_in_another_usual_range_are_told_what_to_do(values: list[float], words: str) -> None:
    with pytest.raises(DataError) as caught:
        to_pixels(np.array(values)[:, None], clip=True)
    assert words in (caught.value.hint or "")
    assert "input_range" in (caught.value.hint or "")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_the_first_sample_that_is_no_number_is_named(bad: float) -> None:
    x = np.zeros((9, 2, 2))
    x[[4, 7], 1, 0] = bad
    with pytest.raises(DataError, match=r"sample 4 .*and 1 more") as caught:
        to_pixels(x, clip=False)
    assert "isfinite" in (caught.value.hint or "")
