"""Images that were cut short are refused, wherever they were cut and however they were ended."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from workers.jobs.datasets.arrays import DataError
from workers.jobs.datasets.decoding import decode_image

EOI = b"\xff\xd9"


def picture(seed: int, width: int, height: int, mode: str, *, noise: int = 20) -> Image.Image:
    """A ramp with noise: no two blocks alike."""
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    ramp = np.linspace(0, 255, int(np.prod(shape))).reshape(shape)
    values = np.clip(ramp + rng.normal(0, noise, shape), 0, 255).astype(np.uint8)
    return Image.fromarray(values)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "fine": {"quality": 100, "subsampling": 0},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
    "restart rows, progressive": {"restart_marker_rows": 1, "progressive": True},
}


def data_places(raw: bytes) -> Iterator[int]:
    """Places inside the compressed data of a JPEG, and between its scans."""
    at = raw.index(b"\xff\xda")
    while at < len(raw) - 2:
        if raw[at] == 0xFF and raw[at + 1] in (0xC4, 0xDA):  # the tables and header of a scan
            (size,) = struct.unpack_from(">H", raw, at + 2)
            at += 2 + size
            continue
        if raw[at] != 0xFF and raw[at - 1] != 0xFF:
            yield at
        at += 1


def refusal(raw: bytes) -> DataError | None:
    try:
        decode_image("cat/1.jpg", raw)
    except DataError as error:
        return error
    return None


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("form", JPEGS)
def test_a_jpeg_with_an_early_end_marker_is_refused(form: str, mode: str) -> None:
    raw = saved(picture(0, 40, 24, mode), "JPEG", **JPEGS[form])
    assert refusal(raw) is None
    places = [*data_places(raw)]
    for at in places[:: 1 + len(places) // 200]:
        for shortened in (raw[:at] + EOI, raw[:at] + EOI + raw[at:]):
            error = refusal(shortened)
            assert error is not None, at
            assert error.code == "invalid_dataset"
            assert "cat/1.jpg" in str(error)
            assert error.hint


@pytest.mark.parametrize("form", JPEGS)
def test_a_jpeg_cut_short_is_refused_at_every_length(form: str) -> None:
    raw = saved(picture(0, 40, 24, "RGB"), "JPEG", **JPEGS[form])
    assert all(refusal(raw[:size]) is not None for size in range(0, len(raw), 5))


def test_a_jpeg_without_its_later_scans_is_refused() -> None:
    """It is a whole image to every decoder, and blurred."""
    raw = saved(picture(0, 40, 24, "RGB"), "JPEG", progressive=True)
    scans = [at for at in range(len(raw)) if raw[at : at + 2] == b"\xff\xda"]
    tables = [raw.rfind(b"\xff\xc4", 0, at) for at in scans[1:]]
    assert len(scans) > 5
    for at in tables:
        with pytest.raises(DataError, match="fewer pixels"):
            decode_image("a", raw[:at] + EOI)


def test_a_restart_interval_that_lacks_is_refused() -> None:
    raw = saved(picture(0, 40, 24, "L"), "JPEG", restart_marker_blocks=2)
    markers = [at for at in range(len(raw) - 1) if raw[at] == 0xFF and 0xD0 <= raw[at + 1] <= 0xD7]
    assert len(markers) > 3
    for at in markers:
        with pytest.raises(DataError, match="fewer pixels"):
            decode_image("a", raw[:at] + EOI)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["RGB", "L"]),
    st.sampled_from(["JPEG", "WEBP"]), st.integers(1, 100), st.integers(0, 2), st.booleans(),
    st.integers(0, 3), st.sampled_from([0, 20, 300]),
)  # fmt: skip
def test_no_whole_image_is_refused(
    seed: int,
    width: int,
    height: int,
    mode: str,
    kind: str,
    quality: int,
    subsampling: int,
    flag: bool,
    restart: int,
    noise: int,
) -> None:
    image = picture(seed, width, height, mode, noise=noise)
    options: dict[str, Any] = {"quality": quality}
    if kind == "JPEG":
        options |= {"progressive": flag, "restart_marker_blocks": restart}
        options |= {"subsampling": subsampling} if mode == "RGB" else {}
    else:
        options |= {"lossless": flag, "method": restart}
    raw = saved(image, kind, **options)
    pixels, _ = decode_image("a", raw)
    with Image.open(io.BytesIO(raw)) as opened:
        expected = np.asarray(opened)
    assert (pixels == expected).all()


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_cut_short_is_refused_with_its_sizes_put_right(lossless: bool) -> None:
    raw = saved(picture(0, 40, 24, "RGB"), "WEBP", lossless=lossless)
    (size,) = struct.unpack_from("<I", raw, 16)
    whole = decode_image("a", raw)[0]
    for kept in range(size // 2, size):
        body = raw[8:16] + struct.pack("<I", kept) + raw[20 : 20 + kept] + b"\0" * (kept % 2)
        shortened = b"RIFF" + struct.pack("<I", len(body)) + body
        error = refusal(shortened)
        if error is None:
            assert (decode_image("a", shortened)[0] == whole).all()
        else:
            assert error.code == "invalid_dataset"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_what_holds_every_pixel_exactly_is_whole_or_refused(kind: str) -> None:
    raw = saved(picture(0, 20, 12, "RGB"), kind)
    whole = decode_image("a", raw)[0]
    refused = 0
    for size in range(len(raw) // 3, len(raw)):
        error = refusal(raw[:size])
        if error is None:
            assert (decode_image("a", raw[:size])[0] == whole).all()
        else:
            refused += 1
            assert error.hint
    assert refused > 100


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "BMP", "PPM"])
def test_bytes_after_the_image_change_nothing(kind: str) -> None:
    raw = saved(picture(0, 20, 12, "RGB"), kind)
    assert (decode_image("a", raw + b"more" * 9)[0] == decode_image("a", raw)[0]).all()


def test_a_plain_file_that_ends_inside_a_number_is_refused() -> None:
    assert decode_image("a", b"P2 2 1 255\n12 123\n")[0].tolist() == [[12, 123]]
    with pytest.raises(DataError, match="a number that may have been cut"):
        decode_image("a", b"P2 2 1 255\n12 12")


def test_a_bmp_of_run_lengths_is_refused() -> None:
    """Its rows may end early: Pillow makes the rest black."""
    palette = b"".join(bytes([n, n, n, 0]) for n in range(256))
    body = b"\x04\x09\0\0" * 4 + b"\0\1"
    start = 54 + len(palette)
    raw = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    raw += struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, len(body), 0, 0, 256, 0) + palette + body
    with pytest.raises(DataError, match="compressed BMP") as caught:
        decode_image("a", raw)
    assert caught.value.code == "unsupported_image"


def test_an_arithmetic_jpeg_is_refused() -> None:
    raw = saved(picture(0, 16, 16, "L"), "JPEG")
    with pytest.raises(DataError):
        decode_image("a", raw.replace(b"\xff\xc0", b"\xff\xc9"))
