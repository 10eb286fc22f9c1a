"""Checks the directory of a zip before anything is inflated."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath

from service.contract.schemas.problems import InvalidInput
from service.contract.settings import Settings

__all__ = ["DAMAGED", "zip_directory"]

#: What to do about a file that is not whole.
DAMAGED = "see whether `python -m zipfile -t FILE` reads it on your machine, and send it again"

_END = b"PK\x05\x06"
_END_64 = b"PK\x06\x06"
#: Longest end-of-directory record: 22 bytes and a comment of 65535.
_TAIL = 22 + 65_535
#: Bytes of the directory per file that it may hold: 46 and a name of sane length.
_ENTRY = 200
#: Below this size any compression ratio is allowed: a constant array may shrink a thousandfold.
_SMALL = 64 * 1024 * 1024


def zip_directory(path: Path, settings: Settings, *, code: str) -> list[zipfile.ZipInfo]:
    """The members of the zip at ``path``, folders left out; they may be inflated within limits.

    Refused as ``code``: files that are not zips or are cut off, names that lead outside, doubled
    names, links, encrypted or exotically compressed members. Refused as ``decompression_bomb``:
    too many bytes or files.
    """
    _check_directory_size(path, settings, code)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            size_of_names = archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise InvalidInput(
            f"the file is not a complete zip archive: {error}", code=code, hint=DAMAGED
        ) from error
    seen: set[str] = set()
    for member in members:
        _check_member(member, code)
        if member.filename in seen:
            raise InvalidInput(f"the archive holds {member.filename!r} twice", code=code)
        seen.add(member.filename)
    inflated = sum(member.file_size for member in members)
    stored = max(1, size_of_names)
    if inflated > settings.max_inflated_bytes:
        raise InvalidInput(
            f"the archive inflates to {inflated} bytes, more than {settings.max_inflated_bytes}",
            code="decompression_bomb",
            hint="the limit is CERTSERVE_MAX_INFLATED_BYTES",
        )
    if inflated > _SMALL and inflated > settings.max_compression_ratio * stored:
        raise InvalidInput(
            f"the archive inflates to {inflated // stored} times its size",
            code="decompression_bomb",
            hint="store the arrays with less compression (numpy.savez)",
        )
    return members


def _check_member(member: zipfile.ZipInfo, code: str) -> None:
    name = member.filename
    parts = PurePosixPath(name).parts
    if "\\" in name:
        raise InvalidInput(
            f"the archive separates folders by backslashes: {name!r}",
            code=code,
            hint='pack it again with a program that writes "/" (Python\'s zipfile, 7-Zip, zip)',
        )
    if name.startswith("/") or ".." in parts or "\x00" in name:
        raise InvalidInput(f"the archive holds the path {name!r}", code=code)
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InvalidInput(f"the archive holds a link, {name!r}", code=code)
    if member.flag_bits & 0x1:
        raise InvalidInput(f"the archive's member {name!r} is encrypted", code=code)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidInput(
            f"the archive's member {name!r} is neither stored nor deflated", code=code
        )


def _check_directory_size(path: Path, settings: Settings, code: str) -> None:
    """Refuse a huge directory before zipfile reads all of it into memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL - 76))
        tail = file.read()
    position = tail.rfind(_END)
    if position < 0 or len(tail) - position < 22:
        raise InvalidInput(
            "the file is not a zip archive, or its end is missing", code=code, hint=DAMAGED
        )
    count, directory_bytes = struct.unpack_from("<HI", tail, position + 10)
    if count == 0xFFFF or directory_bytes == 0xFFFFFFFF:
        position = tail.rfind(_END_64, 0, position)
        if position < 0 or len(tail) - position < 56:
            raise InvalidInput("the zip archive's 64-bit directory is missing", code=code)
        count, directory_bytes = struct.unpack_from("<QQ", tail, position + 32)
    if (
        count > settings.max_archive_members
        or directory_bytes > _ENTRY * settings.max_archive_members
    ):
        raise InvalidInput(
            f"the archive holds {count} files, more than {settings.max_archive_members}",
            code="decompression_bomb",
            hint="the limit is CERTSERVE_MAX_ARCHIVE_MEMBERS",
        )
