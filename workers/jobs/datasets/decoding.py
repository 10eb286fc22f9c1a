"""One image file -> its pixels, exactly, or a refusal that says what to do.

Pixels are what the file stores, as the public loaders see them: colour profiles and gamma are not
applied. An image that 8-bit (or 16-bit grey) values cannot hold exactly is refused: nothing is
clamped, blended, averaged to grey or rounded. JPEG and lossy WEBP are decoded by the libraries that
``decoder`` names; another decoder may differ by a few of 255.
"""

from __future__ import annotations

import io
from typing import Any, NoReturn

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from workers.jobs.datasets.arrays import UNREADABLE, DataError
from workers.jobs.datasets.damage import damage

__all__ = ["LOSSY", "MAX_PIXELS", "decode_image", "decoder"]

#: Largest number of pixels of one image.
MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
#: Formats whose pixels depend on the decoder.
LOSSY = frozenset({"JPEG", "WEBP"})
#: EXIF's tag of the orientation, and its value of an upright image.
_ORIENTATION, _UPRIGHT = 0x0112, 1
#: Largest value of 16-bit grey.
_WHITE_16 = 65535
#: Compressions of a BMP: run lengths of 8 and of 4 bits.
_RLE = (1, 2)
_SEND_AGAIN = (
    "open the image in a viewer; if it is whole there, save it anew as PNG, else fetch it again"
)


def decode_image(name: str, raw: bytes) -> tuple[NDArray[Any], str]:
    """(pixels, format): uint8 [H, W] or [H, W, 3], or float32 [H, W] = v / 65535 of 16-bit grey.

    Raises DataError: too_large, unsupported_image, invalid_dataset (no readable image).
    """
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError("too_large", f"{name} has {image.width} x {image.height} pixels")
            _check(name, image)
            damaged = damage(image, raw)
            if damaged is not None:
                raise DataError(
                    "invalid_dataset", f"{name} {damaged}: the file is damaged", hint=_SEND_AGAIN
                )
            return _pixels(name, image), str(image.format)
    except DataError:
        raise
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DataError(
            "invalid_dataset",
            f"{name} is not a readable image: it is cut short, damaged or of another format",
            hint=_SEND_AGAIN,
        ) from error


def decoder() -> str:
    """The libraries that decode what is lossy, with versions."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"Pillow {PIL.__version__}, libjpeg {jpeg}, libwebp {features.version('webp')}"


def _check(name: str, image: Image.Image) -> None:
    """Refuse what the header says cannot be read exactly."""
    tiles: Any = getattr(image, "tile", None)
    _check_depth(name, image, tiles[0][3] if tiles else None)
    if getattr(image, "n_frames", 1) > 1:
        _refuse(name, "has several frames: which one is the image?", "save one frame of it as PNG")
    if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        _refuse(
            name,
            "is stored turned or mirrored (EXIF orientation), which some loaders undo and others "
            "do not",
            "PIL.ImageOps.exif_transpose(image), then save it",
        )


def _check_depth(name: str, image: Image.Image, layout: Any) -> None:
    """``layout``: how Pillow says that the pixels lie in the file (raw mode, largest value)."""
    hint = "save it with 8 bits per colour, or as floats in [0, 1] in an npz"
    raw = layout[0] if isinstance(layout, tuple) and layout else layout
    bits = str(raw).partition(";")[2].rstrip("BLNR")
    if image.format == "PNG" and bits == "16" and not image.mode.startswith("I"):
        _refuse(name, "has 16 bits per colour", hint)
    if image.format == "PNG" and bits in ("2", "4") and "transparency" in image.info:
        # Pillow compares its value with pixels that have been scaled to 255, and finds none.
        _refuse(name, "may be transparent in places, in 2 or 4 bits per pixel", hint)
    if image.format == "BMP" and image.info.get("compression") in _RLE:
        # A row may end early, or skip pixels; what is there then is nowhere said.
        _refuse(name, "is a compressed BMP", "save it as PNG")
    if image.format == "BMP" and bits in ("15", "16"):
        _refuse(name, "has 5 or 6 bits per colour", hint)
    if image.format == "PPM" and image.mode in ("L", "RGB", "I") and isinstance(layout, tuple):
        largest, white = layout[1], _WHITE_16 if image.mode == "I" else 255
        if not isinstance(largest, int) or largest < 1 or white % largest:
            _refuse(name, f"has a largest value of {largest}, which does not divide {white}", hint)


def _pixels(name: str, image: Image.Image) -> NDArray[Any]:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        if image.info.get("transparency") is not None:
            _refuse_transparency(name, bool((values == image.info["transparency"]).any()))
        if values.min() < 0 or values.max() > _WHITE_16:
            _refuse(name, "holds values beyond 16 bits", "save floats in [0, 1] in an npz")
        return (values / _WHITE_16).astype(np.float32)
    if mode in ("LA", "RGBA", "PA") or image.info.get("transparency") is not None:
        whole = image.convert("RGBA")
        _refuse_transparency(name, whole.getchannel("A").getextrema() != (255, 255))
        grey = mode in ("1", "L", "LA")
        # A grey pixel becomes three equal channels: nothing is averaged.
        return np.asarray(whole.getchannel("R") if grey else whole.convert("RGB"), dtype=np.uint8)
    if mode in ("1", "L"):
        return np.asarray(image.convert("L"), dtype=np.uint8)
    if mode not in ("RGB", "RGBX", "P"):
        _refuse(
            name,
            f"is of the colour mode {mode}, whose red, green and blue depend on the program",
            "save it as 8-bit grey or RGB",
        )
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _refuse_transparency(name: str, transparent: bool) -> None:
    if transparent:
        _refuse(
            name,
            "is transparent in places: it is not known what lies behind it",
            "put it on a background first, then save it as RGB or grey",
        )


def _refuse(name: str, what: str, hint: str) -> NoReturn:
    raise DataError("unsupported_image", f"{name} {what}", hint=hint)
