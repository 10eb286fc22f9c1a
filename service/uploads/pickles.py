"""PyTorch checkpoints: checks which callables their pickles name, without unpickling.

Two containers exist: a zip of stored members (torch >= 1.6) and the older sequence of five pickles
with raw storages behind them, which published checkpoints still come in. Both are read opcode by
opcode; anything but the few names that a state dict needs is refused. The worker then loads with
``weights_only=True`` in a limited child.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

from service.contract.schemas.problems import InvalidInput
from service.contract.settings import Settings
from service.uploads.archives import zip_directory

__all__ = ["inspect_checkpoint"]

#: First pickle of the older container: the number 0x1950a86a20f9469cfc6c.
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_LEGACY_PICKLES = 5
#: The pickles hold names and shapes, not weights.
_MAX_PICKLE_BYTES = 4 * 1024 * 1024
_MEMBER = re.compile(
    r"(data/\d+|data\.pkl|version|byteorder|\.data/serialization_id|\.format_version"
    r"|\.storage_alignment)"
)
#: Members of programs: of torch.jit.save, and of torch.export.save in any release.
_PROGRAM = re.compile(r"code/|constants\.pkl$|models/\w+\.json$|archive_format$")
_EXPORTED = ("serialized_exported_program.json", "serialized_state_dict.pt")
_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (\w+Storage|Size|device|float\d+|bfloat16|u?int\d+|bool)"
    r"|torch\.storage (UntypedStorage|TypedStorage)|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout|numpy\.(_core|core)\.multiarray scalar|numpy dtype"
    r"|_codecs encode"
)


def inspect_checkpoint(path: Path, settings: Settings) -> None:
    """Raises InvalidInput: ``pickle_refused``, ``torchscript_refused``, ``invalid_checkpoint``."""
    with path.open("rb") as file:
        head = file.read(len(_LEGACY_MAGIC))
        if head[:2] == b"PK":
            _inspect_zip(path, settings)
        elif head == _LEGACY_MAGIC:
            file.seek(0)
            reader = _Limited(file)
            for _ in range(_LEGACY_PICKLES):
                _scan(reader)
        else:
            raise _refused("the file is neither a PyTorch zip archive nor a PyTorch checkpoint")


def _inspect_zip(path: Path, settings: Settings) -> None:
    members = zip_directory(path, settings, code="invalid_checkpoint")
    pickled: list[zipfile.ZipInfo] = []
    # First: a program's members are compressed, which says less of what the file is.
    for member in members:
        if _PROGRAM.match(member.filename.partition("/")[2]) or member.filename in _EXPORTED:
            raise InvalidInput(
                "the file is a program (TorchScript, or of torch.export), not a state dict",
                code="torchscript_refused",
                hint="torch.save(model.state_dict(), path), or export to ONNX; of a file of "
                "torch.jit.save: torch.save(torch.jit.load(path).state_dict(), other_path)",
            )
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise InvalidInput(
                f"member {member.filename!r} is compressed; PyTorch stores its members",
                code="invalid_checkpoint",
            )
        name = member.filename.partition("/")[2]
        if _MEMBER.fullmatch(name) is None:
            raise InvalidInput(
                f"member {member.filename!r} does not belong in a state dict",
                code="invalid_checkpoint",
            )
        if name == "data.pkl":
            pickled.append(member)
    if len(pickled) != 1:
        raise InvalidInput("the archive holds no data.pkl", code="invalid_checkpoint")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(pickled[0]) as file:
            _scan(_Limited(file))
    except zipfile.BadZipFile as error:
        raise InvalidInput(f"the archive is damaged: {error}", code="invalid_checkpoint") from error


class _Limited:
    """A file of which at most ``_MAX_PICKLE_BYTES`` can be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = _MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError("the pickle is too long")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 4096))
        self._left -= len(line)
        return line


def _scan(reader: _Limited) -> None:
    """Read one pickle's opcodes, up to its end, and refuse names that no state dict needs."""
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(reader):  # type: ignore[arg-type]
            name = opcode.name
            if name == "GLOBAL":
                _check_name(str(argument))
            elif name == "STACK_GLOBAL":
                _check_name(" ".join(texts[-2:]))
            elif name in ("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise _refused(f"the pickle uses the opcode {name}")
            elif isinstance(argument, str):
                texts = [*texts[-1:], argument]
    except (ValueError, UnicodeDecodeError, IndexError) as error:
        raise _refused(f"the pickle inside cannot be read: {error}") from error


def _check_name(name: str) -> None:
    if _NAMES.fullmatch(name) is None:
        raise _refused(f"loading it would call {name.replace(' ', '.')[:200]!r}")


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(
        reason,
        code="pickle_refused",
        hint="save tensors only: torch.save(model.state_dict(), path), or .safetensors, or ONNX",
    )
