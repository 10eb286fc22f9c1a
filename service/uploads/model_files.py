"""Model files as far as their bytes tell: ONNX, safetensors, PyTorch checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from service.contract.schemas.parsing import parse_json
from service.contract.schemas.problems import InvalidInput, Malformed
from service.contract.settings import Settings
from service.uploads.damage import EMPTY_FILE, what_to_do
from service.uploads.pickles import inspect_checkpoint
from service.uploads.suffixes import format_of

__all__ = [
    "MAX_DATA_FILES",
    "MODEL_SUFFIXES",
    "ModelFormat",
    "check_data_name",
    "inspect_model",
    "model_format",
]

#: Files that may lie beside an ONNX file.
MAX_DATA_FILES = 64
_MAX_DATA_NAME = 200

ModelFormat = Literal["onnx", "safetensors", "pt"]

#: Format by suffix of the file's name.
MODEL_SUFFIXES: dict[str, ModelFormat] = {
    ".onnx": "onnx",
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
}

#: ModelProto: field number -> wire type (0 varint, 2 length-delimited).
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH = 7
#: Code of a problem -> what reads such a file on the user's machine.
_CHECKS = {
    "invalid_onnx": 'import onnx; onnx.checker.check_model("model.onnx")',
    "invalid_safetensors": 'import safetensors.torch as s; s.load_file("model.safetensors")',
    "invalid_checkpoint": 'import torch; torch.load("model.pt", weights_only=True)',
}
_MAX_FIELDS = 100_000

_TENSOR_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
#: Tens of thousands of tensors; parsed, the worst JSON of this size takes 30 times as much memory.
_MAX_SAFETENSORS_HEADER = 2 * 1024 * 1024


def model_format(filename: str) -> ModelFormat:
    """The format that the file's suffix names. Raises Unsupported."""
    return format_of(filename, MODEL_SUFFIXES, noun="model", field="model")


def check_data_name(filename: str) -> None:
    """Raise InvalidInput unless it is the plain name of a file beside a model."""
    plain = filename.isprintable() and not set(filename) & {"/", "\\", ":"}
    if not plain or filename in ("", ".", "..") or len(filename) > _MAX_DATA_NAME:
        raise InvalidInput(
            f"{filename[:200]!r} is not the name of a file beside the model",
            code="invalid_model_data",
            hint="send it under the name that the model gives it, without any folder",
            field="model_data",
        )


def inspect_model(path: Path, filename: str, settings: Settings) -> ModelFormat:
    """The format of the upload at ``path``. Raises InvalidInput where its bytes cannot be right."""
    kind = model_format(filename)
    if path.stat().st_size == 0:
        raise InvalidInput(
            "the model file is empty", code="empty_file", hint=EMPTY_FILE, field="model"
        )
    try:
        _INSPECTORS[kind](path, settings)
    except InvalidInput as problem:
        problem.field = problem.field or "model"
        if problem.hint is None and problem.code in _CHECKS:
            problem.hint = what_to_do(path, _CHECKS[problem.code])
        raise
    return kind


def _inspect_onnx(path: Path, _settings: Settings) -> None:
    """Walk ModelProto's outermost fields: known numbers and types, lengths inside the file."""
    size = path.stat().st_size
    graphs = 0
    with path.open("rb") as file:
        for _ in range(_MAX_FIELDS):
            if file.tell() == size:
                break
            tag = _varint(file)
            number, wire = tag >> 3, tag & 7
            if _MODEL_FIELDS.get(number) != wire:
                raise InvalidInput(
                    "the file is not an ONNX model: not a ModelProto", code="invalid_onnx"
                )
            value = _varint(file)
            if wire == 2:
                if value > size - file.tell():
                    raise InvalidInput(
                        f"a field claims {value} bytes, more than the file holds (cut off?)",
                        code="invalid_onnx",
                    )
                file.seek(value, 1)
            graphs += number == _GRAPH
        else:
            raise InvalidInput("the model has too many fields", code="invalid_onnx")
    if graphs != 1:
        raise InvalidInput("the ONNX model holds no graph", code="invalid_onnx")


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise InvalidInput("the file ends in the middle of a field", code="invalid_onnx")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise InvalidInput("the file is not an ONNX model: a number never ends", code="invalid_onnx")


def _inspect_safetensors(path: Path, _settings: Settings) -> None:
    """The header is JSON of sane size whose tensors lie inside the file, as long as they claim."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(size - 8, _MAX_SAFETENSORS_HEADER):
            raise _no_safetensors(f"its header claims {length} bytes")
        try:
            header = parse_json(file.read(length))
        except Malformed as error:
            raise _no_safetensors(error.detail) from error
    if not isinstance(header, dict):
        raise _no_safetensors("its header is not a JSON object")
    header.pop("__metadata__", None)
    if not header:
        raise _no_safetensors("it holds no tensor")
    for name, entry in header.items():
        if not _tensor_fits(entry, size - 8 - length):
            raise _no_safetensors(f"tensor {name[:100]!r} does not fit its bytes")


def _tensor_fits(entry: Any, available: int) -> bool:
    if not isinstance(entry, dict):
        return False
    bits = _TENSOR_BITS.get(str(entry.get("dtype")))
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if bits is None or not isinstance(shape, list) or not isinstance(offsets, list):
        return False
    if len(offsets) != 2 or not all(_is_size(number) for number in [*shape, *offsets]):
        return False
    begin, end = offsets
    return bool(begin <= end <= available and (end - begin) * 8 == math.prod(shape) * bits)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _no_safetensors(reason: str) -> InvalidInput:
    return InvalidInput(f"the file is not a safetensors file: {reason}", code="invalid_safetensors")


_INSPECTORS: dict[ModelFormat, Callable[[Path, Settings], None]] = {
    "onnx": _inspect_onnx,
    "safetensors": _inspect_safetensors,
    "pt": inspect_checkpoint,
}
