"""Every pixel is what the file stores, or the file is refused with what to do."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from workers.jobs.datasets.arrays import Bounds, DataError, DataSet
from workers.jobs.datasets.decoding import decode_image
from workers.jobs.datasets.images import read_class_folders, read_image_folder
from workers.jobs.datasets.layout import to_pixels, with_channels

BOUNDS = Bounds()


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image(size: tuple[int, int], mode: str = "L") -> bytes:
    return saved(Image.new(mode, size, 7 if mode == "L" else (1, 2, 3)))


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    depth: int,
    colour: int,
    width: int,
    rows: list[bytes],
    *,
    more: bytes = b"",
    height: int | None = None,
    interlaced: int = 0,
) -> bytes:
    """A PNG by hand: what no library writes."""
    height = len(rows) if height is None else height
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )  # fmt: skip


def read(folder: Path, **members: bytes) -> DataSet:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return read_class_folders(path, "all", BOUNDS)


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=8))
def test_16_bit_grey_is_scaled_by_65535(values: list[int]) -> None:
    row = struct.pack(f">{len(values)}H", *values)
    pgm = f"P5 {len(values)} 1 65535\n".encode() + row
    expected = np.array([values], np.float32) / np.float32(65535)
    for content in (png(16, 0, len(values), [row]), pgm):
        pixels, _ = decode_image("a", content)
        assert pixels.dtype == np.float32
        assert (pixels == expected).all()


def test_every_16_bit_value_is_divided_with_one_rounding() -> None:
    values = np.arange(65536)
    once = values.astype(np.float32) / np.float32(65535)
    assert ((values / 65535).astype(np.float32) == once).all()


def test_deep_and_plain_images_in_one_set(tmp_path: Path) -> None:
    deep = png(16, 0, 2, [struct.pack(">2H", 0, 65535), struct.pack(">2H", 2000, 50000)])
    data = read(tmp_path, **{"a/1.png": deep, "b/1.png": image((2, 2)), "b/2.png": image((2, 2))})
    assert data.x.dtype == np.float32
    assert data.x[0].ravel().tolist() == [0, 1, np.float32(2000 / 65535), np.float32(50000 / 65535)]
    assert (data.x[1] == to_pixels(np.full((2, 2), 7, np.uint8), clip=True)).all()


GREY = np.array([[0, 7, 255], [128, 3, 90]], np.uint8)
COLOUR = np.stack([GREY, GREY.T.reshape(2, 3), 255 - GREY], axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_what_holds_bytes_is_read_as_it_is(kind: str) -> None:
    for pixels in (GREY, COLOUR):
        found, _ = decode_image("a", saved(Image.fromarray(pixels), kind))
        assert (found == pixels).all()


def test_palettes_bits_and_opaque_alpha_are_exact() -> None:
    black = Image.fromarray(GREY > 100)
    assert (decode_image("a", saved(black))[0] == 255 * (GREY > 100)).all()
    palette = Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE, colors=6)
    assert (decode_image("a", saved(palette))[0] == np.asarray(palette.convert("RGB"))).all()
    for mode, pixels in (("LA", GREY), ("RGBA", COLOUR)):
        whole = Image.fromarray(pixels).convert(mode)
        assert (decode_image("a", saved(whole))[0] == pixels).all()
    for bits, factor in ((2, 85), (4, 17)):
        assert decode_image("a", png(bits, 0, 1, [bytes([1 << (8 - bits)])]))[0] == [[factor]]


def apng() -> bytes:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    return saved(frames[0], save_all=True, append_images=frames[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(COLOUR), "JPEG", exif=exif)


def seen_through(mode: str) -> bytes:
    whole = Image.fromarray(GREY if mode == "LA" else COLOUR).convert(mode)
    whole.putalpha(200)
    return saved(whole)


DEEP = struct.pack(">3H", 1, 2, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(16, 2, 1, [DEEP]), "16 bits per colour"),
        (png(16, 4, 1, [DEEP[:4]]), "16 bits per colour"),
        (png(16, 6, 1, [DEEP + b"\xff\xff"]), "16 bits per colour"),
        (b"P6 1 1 65535\n" + DEEP, "largest value of 65535"),
        (b"P5 1 1 100\n\x05", "largest value of 100"),
        (b"P5 1 1 4095\n\x05\x05", "largest value of 4095"),
        (b"P2 1 1 100\n5\n", "largest value of 100"),
        (b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5), "colour mode F"),
        (seen_through("LA"), "transparent"),
        (seen_through("RGBA"), "transparent"),
        (saved(Image.fromarray(GREY), transparency=7), "transparent"),
        (saved(Image.fromarray(COLOUR).quantize(4), transparency=0), "transparent"),
        (png(2, 0, 4, [b"\x1b"], more=chunk(b"tRNS", b"\0\1")), "transparent"),
        (png(4, 0, 2, [b"\x0f"], more=chunk(b"tRNS", b"\0\x0f")), "transparent"),
        (apng(), "several frames"),
        (turned(), "EXIF orientation"),
        (saved(Image.new("CMYK", (2, 2)), "JPEG"), "colour mode CMYK"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        decode_image("a.png", content)
    assert caught.value.code == "unsupported_image"
    assert caught.value.hint


PALETTE = chunk(b"PLTE", bytes(range(12)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(8, 0, 4, [b"\1\2\3\4"], height=2), "fewer pixels"),
        (png(1, 0, 9, [b"\xff\xff"], height=3), "fewer pixels"),
        (png(8, 2, 2, [b"\1\2\3\4\5"]), "not a readable image"),
        (png(8, 0, 3, [b"\1", b"\2"], height=2, interlaced=1), "fewer pixels"),
        (png(8, 3, 2, [b"\0\4"], more=PALETTE), "beyond the 4 of its palette"),
        (png(4, 3, 2, [b"\x0f"], more=PALETTE), "beyond the 4 of its palette"),
        (png(8, 3, 2, [b"\0\0"]), "beyond the 0 of its palette"),
        (b"P5 2 1 15\n\x00\x10", "largest"),
        (b"P6 1 1 51\n\x00\x34\x00", "largest"),
        (b"P5 1 1 21845\n\xff\x00", "largest"),
    ],
)
def test_pixels_that_are_missing_are_not_filled_in(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        decode_image("a.png", content)
    assert caught.value.code == "invalid_dataset"


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (4, 5), (5, 4), (9, 9)])
def test_interlaced_images_are_read_as_plain_ones(depth: int, width: int, height: int) -> None:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    values = np.random.default_rng(depth).integers(0, 1 << depth, (height, width), np.uint8)

    def rows(part: Any) -> list[bytes]:
        bits = (part[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        return [np.packbits(row).tobytes() for row in bits.reshape(len(part), -1)]

    cut = [values[y::down, x::across] for x, y, across, down in [*passes, (0, 1, 1, 2)]]
    whole = [row for part in cut if part.size for row in rows(part)]
    interlaced = png(depth, 0, width, whole, height=height, interlaced=1)
    plain = png(depth, 0, width, rows(values))
    assert (decode_image("a", interlaced)[0] == decode_image("b", plain)[0]).all()
    with pytest.raises(DataError, match=r"fewer pixels|not a readable image"):
        decode_image("c", png(depth, 0, width, whole[:-1], height=height, interlaced=1))


def test_one_colour_image_makes_all_of_them_colour(tmp_path: Path) -> None:
    """Whatever comes first: colour is never averaged to grey."""
    data = read(tmp_path, **{"a/1.png": saved(Image.fromarray(GREY)),
                             "b/1.png": saved(Image.fromarray(COLOUR))})  # fmt: skip
    assert data.x.shape == (2, 2, 3, 3)
    assert (data.x[0] == GREY[:, :, None]).all()
    assert (data.x[1] == COLOUR).all()


def test_channels_are_added_and_dropped_without_a_change() -> None:
    grey = np.stack([GREY, GREY])
    three = with_channels(grey, (3, 2, 3))
    assert (three == grey[..., None]).all()
    assert three.shape == (2, 2, 3, 3)
    assert (with_channels(three, (1, 2, 3))[..., 0] == grey).all()
    assert (with_channels(COLOUR[None], (1, 2, 3)) == COLOUR[None]).all()


def test_lossy_images_are_told(tmp_path: Path) -> None:
    content = saved(Image.fromarray(GREY), "JPEG")
    data = read(tmp_path, **{"a/1.jpg": content, "b/1.jpg": content})
    assert "1 images" not in data.warnings[0]
    assert data.warnings[0].startswith("2 images are JPEG: their pixels depend on the decoder")


def test_class_folders(tmp_path: Path) -> None:
    members = {f"set/{name}": image((5, 4), "RGB") for name in ("dog/2.png", "cat/1.png")}
    data = read(tmp_path, **members, **{"__MACOSX/cat/.0.png": b"", "set/readme.txt": b"no"})
    assert data.x.shape == (2, 4, 5, 3)
    assert data.y is not None
    assert data.y.tolist() == [0, 1]
    assert data.classes == {"cat": 0, "dog": 1}
    assert "readme.txt" in data.warnings[0]


def test_images_in_a_folder_of_the_class(tmp_path: Path) -> None:
    """TinyImageNet's layout: not every class is called ``images``."""
    names = {f"n0{label}/images/{n}.png": image((3, 3)) for label in (1, 2) for n in range(2)}
    data = read(tmp_path, **names)
    assert data.y is not None
    assert data.y.tolist() == [0, 0, 1, 1]
    for name, content in names.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    tree = read_image_folder(tmp_path / "tree", "all", BOUNDS)
    assert tree.classes == data.classes == {"n01": 0, "n02": 1}
    assert tree.y is not None
    assert tree.y.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({}, "empty_dataset"),
        ({"a/1.png": image((3, 3)), "a/2.png": image((4, 3))}, "image_sizes_differ"),
        ({"a/1.png": b"no image"}, "invalid_dataset"),
        ({"a/1.png": image((5000, 5000))}, "too_large"),
        ({"train/a/1.png": image((3, 3)), "test/a/1.png": image((3, 3))}, "ambiguous_split"),
    ],
)
def test_class_folders_refused(tmp_path: Path, members: dict[str, bytes], code: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, **members)
    assert caught.value.code == code
