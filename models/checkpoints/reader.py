"""Checkpoint files read without trusting them: bytes in, named tensors out.

safetensors is read by its library. A ``.pt`` file is checked first (zip directory, pickle opcodes;
nothing is run), then read by ``torch.load(weights_only=True)`` and by nothing else, and every
tensor must own the bytes it claims. Older files without a zip container are read the same way; they
must hold exactly the data that their pickle declares.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models.errors import ModelError

__all__ = ["LAYERS", "MAX_CHECKPOINT_BYTES", "read_checkpoint", "stated_layers"]

#: Metadata key under which our own safetensors files list their layers.
LAYERS = "certserve.layers"

MAX_CHECKPOINT_BYTES = 512 << 20
MAX_MEMBERS = 5_000
#: How a torch file without a zip container starts: the pickle of torch's magic number.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_MAGIC = b"PK\x03\x04"
# torch 1.4 to 1.6 named a storage by its address in memory: up to 20 digits.
_MEMBER = re.compile(
    r"data\.pkl|data/[0-9]{1,20}|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id"
)
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    # Milestones of a learning rate's schedule.
    "collections Counter",
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.nn.parameter Parameter",
    "torch Size",
    "torch device",
    *(f"torch {name}Storage" for name in _STORAGES),
}
#: Opcodes that import names in other ways than GLOBAL does, or come from extension registries.
_IMPORTING = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"}


def stated_layers(path: Path) -> str | None:
    """The layers that the metadata of our own safetensors files list; None where they do not."""
    with safetensors.safe_open(path, framework="pt") as file:
        stated: str | None = (file.metadata() or {}).get(LAYERS)
    return stated


def read_checkpoint(path: Path, format: str) -> Any:
    """What the file holds (a dict of tensors, or one around it), checked. Raises ModelError.

    ``format`` is "safetensors" or "pt".
    """
    size = path.stat().st_size
    if size > MAX_CHECKPOINT_BYTES:
        raise ModelError(
            f"the checkpoint has {size} bytes, more than {MAX_CHECKPOINT_BYTES}",
            code="model_too_large",
        )
    data = path.read_bytes()
    if format == "safetensors":
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"the file is not a safetensors file: {str(error)[:200]}",
                code="invalid_checkpoint",
            ) from error
    if format != "pt":
        raise ModelError(f"unknown checkpoint format {format!r}", code="invalid_checkpoint")
    if data.startswith(_ZIP_MAGIC):
        content = _load(_stored_members(data), meta=True)
        _check_tensors(content, len(data))
        return _load(_stored_members(data))
    if data.startswith(_LEGACY_MAGIC):
        keys, rest = _scan_legacy(data)
        content = _load(data)
        tensors = _check_tensors(content, len(data))
        _check_legacy_storages(tensors, keys, rest)
        return content
    code = (
        "pickle_refused" if data[:1] in (b"\x80", b"(", b"c", b"}", b"]") else "invalid_checkpoint"
    )
    raise ModelError(
        "the file is not a checkpoint written by torch.save",
        code=code,
        hint="save a state dict with torch.save, or better as .safetensors",
    )


def _load(data: bytes, *, meta: bool = False) -> Any:
    """torch's reader for tensors only; with ``meta`` it reads the declarations without the data."""
    try:
        return torch.load(
            io.BytesIO(data), weights_only=True, map_location="meta" if meta else "cpu"
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the checkpoint holds more than tensors: {_first_line(error)}",
            code="pickle_refused",
            hint="save model.state_dict() alone, or use .safetensors",
        ) from error
    except Exception as error:
        raise ModelError(
            f"the checkpoint cannot be read: {_first_line(error)}", code="invalid_checkpoint"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _stored_members(data: bytes) -> bytes:
    """The same archive, checked and written again, so that torch reads exactly the members that
    were checked here.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelError(
            "the checkpoint is a damaged zip archive", code="invalid_checkpoint"
        ) from error
    names = [member.filename for member in members]
    if len(members) > MAX_MEMBERS or len(set(names)) != len(names):
        _unsafe(f"it has {len(members)} members, too many or of the same name")
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        _unsafe("it is a TorchScript archive, which holds code", hint="save model.state_dict()")
    roots = {name.split("/", 1)[0] for name in names}
    for member in members:
        if len(roots) != 1 or not _MEMBER.fullmatch(member.filename.partition("/")[2]):
            _unsafe(f"the member {member.filename[:80]!r} does not belong in a checkpoint")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            _unsafe(f"the member {member.filename[:80]!r} is compressed or encrypted")
    if sum(member.file_size for member in members) > len(data):
        _unsafe("its members are larger than the file")
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
            for member in members:
                content = archive.read(member)
                if member.filename.endswith("/data.pkl"):
                    _scan_pickle(content)
                target.writestr(
                    zipfile.ZipInfo("archive/" + member.filename.partition("/")[2]), content
                )
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise ModelError(
            "the checkpoint is a damaged zip archive", code="invalid_checkpoint"
        ) from error
    return copy.getvalue()


def _scan_pickle(
    data: bytes, start: int = 0, *, largest: int | None = None
) -> tuple[int, list[Any]]:
    """Check one pickle without running it: where it ends, and the arguments of its opcodes."""
    stream = io.BytesIO(data)
    stream.seek(start)
    arguments = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in _IMPORTING or (opcode.name == "GLOBAL" and argument not in _GLOBALS):
                raise ModelError(
                    f"the checkpoint's pickle wants to import {str(argument)[:100]!r}",
                    code="pickle_refused",
                    hint="save model.state_dict() alone, or use .safetensors",
                )
            if largest is not None and type(argument) is int and abs(argument) > largest:
                _unsafe(f"it declares {argument} elements, more than it can hold")
            arguments.append(argument)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError("the checkpoint's pickle is damaged", code="invalid_checkpoint") from error
    return stream.tell(), arguments


def _scan_legacy(data: bytes) -> tuple[list[str], int]:
    """Storage keys of a file without a zip container, and how many bytes of data follow them.

    The five pickles are magic number, protocol, system, content and storage keys.
    """
    position = len(_LEGACY_MAGIC)
    arguments: list[Any] = []
    for _ in range(4):
        position, arguments = _scan_pickle(data, position, largest=max(2 * len(data), 1 << 16))
    return [key for key in arguments if isinstance(key, str)], len(data) - position


def _check_legacy_storages(tensors: list[Tensor], keys: list[str], rest: int) -> None:
    """Check that every storage was filled from the file, exactly once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    filled = len(set(keys)) == len(keys) == len(storages)
    if not filled or sum(storages.values()) + 8 * len(keys) != rest:
        raise ModelError(
            "the checkpoint's data do not match the sizes that its pickle declares",
            code="invalid_checkpoint",
        )


def _check_tensors(content: Any, file_bytes: int) -> list[Tensor]:
    """Every tensor in nested dicts and lists: plain, dense, together at most twice the file."""
    tensors: list[Tensor] = []
    stack, seen = [content], 0
    while stack:
        value = stack.pop()
        seen += 1
        if seen > 1_000_000:
            _unsafe("it holds too many values")
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif isinstance(value, Tensor):
            tensors.append(value)
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            _unsafe(f"a tensor of shape {tuple(tensor.shape)} is not a plain dense one")
        if not _dense(tensor):
            _unsafe(
                f"a tensor of shape {tuple(tensor.shape)} has strides {tensor.stride()}",
                hint="save contiguous tensors",
            )
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 2 * file_bytes:
        _unsafe("its tensors are larger than the file: they share memory")
    return tensors


def _dense(tensor: Tensor) -> bool:
    """Whether every element has its own place and no place between them is empty."""
    expected = 1
    sizes = [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1]
    for stride, size in sorted(sizes):
        if stride != expected:
            return math.prod(tensor.shape) == 0
        expected *= size
    return True


def _unsafe(reason: str, hint: str = "") -> NoReturn:
    raise ModelError(
        f"the checkpoint is refused: {reason}",
        code="unsafe_checkpoint",
        hint=hint or "save model.state_dict() with torch.save, or as .safetensors",
    )
