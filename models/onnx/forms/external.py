"""An ONNX export of several files as one: its tensors are read from the uploaded data files.

Neither onnx nor ONNX Runtime ever opens a location: a tensor's location is looked up, as an exact
name, among the files that were sent with the model, and its bytes become part of the model. Only
initializers may lie outside; everything else that points outside the file is refused by
``models.onnx.safety``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper

from models.errors import ModelError
from models.onnx.safety import OnnxLimits, damaged

__all__ = ["self_contained"]

_NUMBER = re.compile(r"[0-9]{1,18}")
#: What an entry may say of where a tensor lies; a checksum is not looked at.
_KEYS = {"location", "offset", "length", "checksum"}
_DATA_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)


def self_contained(
    data: bytes, files: Mapping[str, Path], limits: OnnxLimits | None = None
) -> bytes:
    """The model's bytes with the tensors that lie in ``files`` (by their names) inside.

    Without files, and where no tensor lies outside, ``data`` itself. Raises ModelError: a file that
    is missing or that no tensor names, a part outside a file or of another size than its tensor,
    more bytes together than one file may have (said before any is copied).
    """
    limits = limits or OnnxLimits()
    if len(data) > limits.file_bytes:
        raise ModelError(
            f"the file has {len(data)} bytes, more than {limits.file_bytes}", code="model_too_large"
        )
    if not files:
        return data
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise damaged() from error
    sizes = {name: path.stat().st_size for name, path in files.items()}
    outside = [t for t in model.graph.initializer if _is_outside(t)]
    parts = [_part_of(tensor, sizes) for tensor in outside]
    # torch writes an empty file beside a model of few weights.
    unnamed = sorted({name for name, size in sizes.items() if size} - {part[0] for part in parts})
    if unnamed:
        _refuse(
            f"no tensor of the model lies in {unnamed[0]!r}",
            "send only the files that were written together with the model",
        )
    total = len(data) + sum(length for _, _, length in parts)
    if total > limits.file_bytes:
        raise ModelError(
            f"model and data have {total} bytes together, more than {limits.file_bytes}",
            code="model_too_large",
        )
    for tensor, (name, offset, length) in zip(outside, parts, strict=True):
        with files[name].open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) != length:
            _refuse(f"{name!r} ended before the tensor {tensor.name!r} did", "send it again")
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = content
    return model.SerializeToString()


def _is_outside(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0


def _part_of(tensor: TensorProto, sizes: Mapping[str, int]) -> tuple[str, int, int]:
    """(name of the file, offset, length) of a tensor that lies outside the model."""
    label = f"tensor {tensor.name!r}"
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    given = dict(entries)
    if len(given) < len(entries) or not set(given) <= _KEYS or "location" not in given:
        _refuse(f"{label} says where it lies in a way that is not understood: {entries[:8]}")
    if any(len(getattr(tensor, field)) for field in _DATA_FIELDS):
        _refuse(f"{label} has data inside the model and outside")
    name = given["location"]
    if name not in sizes:
        _refuse(
            f"{label} lies in the file {name[:200]!r}, which was not sent; sent were "
            + ", ".join(repr(other) for other in list(sizes)[:8]),
            "send it in the field model_data under exactly this name",
            code="missing_model_data",
        )
    numbers = {}
    for key in ("offset", "length"):
        text = given.get(key)
        if text is not None and _NUMBER.fullmatch(text) is None:
            _refuse(f"{label}: its {key} {text[:40]!r} is no number")
        numbers[key] = None if text is None else int(text)
    wanted = _bytes_of(tensor, label)
    offset = numbers["offset"] or 0
    length = sizes[name] - offset if numbers["length"] is None else numbers["length"]
    if offset + length > sizes[name] or length < 0:
        _refuse(
            f"{label} takes the bytes {offset} to {offset + length} of {name!r}, which has "
            f"{sizes[name]}",
            "the file is cut off, or it is another export's",
        )
    if length != wanted:
        _refuse(f"{label} takes {length} bytes of {name!r}, its type and shape need {wanted}")
    return name, offset, length


def _bytes_of(tensor: TensorProto, label: str) -> int:
    """What type and shape of a tensor need."""
    if any(size < 0 for size in tensor.dims) or tensor.HasField("segment"):
        raise ModelError(f"{label} has an impossible shape", code="invalid_onnx")
    try:
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError, TypeError):
        item = 0
    if not item or tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{label} has no element type of known size", code="unsupported_dtype")
    return int(math.prod(tensor.dims)) * item


def _refuse(reason: str, hint: str = "", *, code: str = "invalid_model_data") -> NoReturn:
    raise ModelError(
        reason,
        code=code,
        hint=hint or "save the model as one file: onnx.save_model(onnx.load(path), one_path)",
    )
