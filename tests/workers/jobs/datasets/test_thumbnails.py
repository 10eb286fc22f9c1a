"""Thumbnails: small, what the sample is, and bounded whatever the sample is."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.contract.storage import pictures
from service.contract.storage.pictures import MOST_BYTES, read_picture
from workers.jobs.datasets.thumbnails import difference_png, png, thumbnails
from workers.jobs.report.pictures import counterexample_pictures
from workers.verification.results import SampleResults


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


@given(st.sampled_from([1, 3]), st.integers(4, 70), st.integers(4, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_thumbnail_is_the_sample_where_it_is_small_and_never_large(
    channels: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (channels, height, width), dtype=np.uint8)
    data = png(image.astype(np.float32) / np.float32(255))
    shown = pixels(data)
    assert max(shown.shape[:2]) <= 64
    assert len(data) <= MOST_BYTES
    if max(height, width) <= 64:
        expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
        assert np.array_equal(shown, expected)


def test_values_of_any_kind_can_be_shown() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 2.0, -1.0, 0.5] * 6, np.float32).reshape(1, 6, 6)
    assert pixels(png(odd))[0].tolist() == [0, 255, 0, 255, 0, 128]
    same = pixels(difference_png(odd[:, :1], odd[:, :1]))
    assert same.shape == (1, 6)


def test_samples_are_found_by_their_place_and_the_file_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    x = rng.random((5, 1, 6, 6)).astype(np.float32)
    index = np.array([9, 2, 400, 7, 3])
    path = tmp_path / "thumbnails.bin"
    path.write_bytes(thumbnails(x, index))
    for place, sample in zip(index.tolist(), x, strict=True):
        assert read_picture(path, place) == png(sample)
    assert read_picture(path, 0) is None
    monkeypatch.setattr(pictures, "MOST_FILE_BYTES", 3 * len(png(x[0])))
    few = thumbnails(x, index)
    assert len(few) < len(path.read_bytes())
    for flat in (np.zeros((3, 10), np.float32), np.zeros((3, 2, 8, 8), np.float32)):
        path.write_bytes(thumbnails(flat, np.arange(3)))
        assert read_picture(path, 0) is None


def test_channels_may_come_last(tmp_path: Path, rng: np.random.Generator) -> None:
    """As Keras' networks have them."""
    for channels in (1, 3):
        x = rng.random((2, channels, 6, 9)).astype(np.float32)
        last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        path = tmp_path / "thumbnails.bin"
        path.write_bytes(thumbnails(last, np.arange(2)))
        assert read_picture(path, 1) == png(x[1])
        assert difference_png(last[0], last[1]) == difference_png(x[0], x[1])


def test_of_a_samples_counterexamples_the_nearest_is_shown_beside_its_difference(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    x = rng.random((3, 1, 6, 6)).astype(np.float32)
    near, far = np.clip(x[1] + 0.1, 0, 1), 1 - x[1]
    np.savez(tmp_path / "data.npz", x=x)
    nothing = np.zeros(3)
    results = SampleResults(
        index=np.array([4, 11, 12]), label=np.zeros(3, np.int64), prediction=np.zeros(3, np.int64),
        margin=nothing, radius=nothing, certified=np.zeros((3, 2), bool),
        falsified=np.zeros((3, 2), bool), method=["attack"] * 3, decided_by=[["attack"]] * 3,
        counterexamples={"1,0": far, "1,1": near}, seconds={}, notes={},
    )  # fmt: skip
    path = tmp_path / "counterexamples.bin"
    # The larger epsilon was asked first.
    epsilons = [Fraction(1), Fraction(1, 10)]
    path.write_bytes(counterexample_pictures(results, epsilons, tmp_path / "data.npz", True))
    assert read_picture(path, 2 * 11) == png(near)
    assert read_picture(path, 2 * 11 + 1) == difference_png(x[1], near)
    assert read_picture(path, 2 * 4) is None
