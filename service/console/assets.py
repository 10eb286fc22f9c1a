"""Style sheets and scripts of the pages: the files in ``static/``, and no others.

An address carries a part of the file's digest, so that browsers may keep the file for good.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.contract.schemas.problems import NotFound

__all__ = ["asset_url", "router"]

router = APIRouter(include_in_schema=False)

_FOLDER = Path(str(files("service.console"))) / "static"
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class _Asset:
    content: bytes
    media_type: str
    mark: str


def _read() -> dict[str, _Asset]:
    found = {}
    for path in sorted(_FOLDER.rglob("*")):
        media_type = _MEDIA_TYPES.get(path.suffix)
        if media_type is not None:
            content = path.read_bytes()
            mark = hashlib.sha256(content).hexdigest()[:12]
            found[path.relative_to(_FOLDER).as_posix()] = _Asset(content, media_type, mark)
    return found


_ASSETS = _read()


def asset_url(name: str) -> str:
    """The address of a file. Raises KeyError where there is none of that name."""
    return f"/console/{name}?v={_ASSETS[name].mark}"


@router.get("/console/{name:path}")
async def asset(name: str, request: Request) -> Response:
    """One of the files; needs no key, because it tells nothing. Raises NotFound."""
    found = _ASSETS.get(name)
    if found is None:
        raise NotFound(f"there is no page /console/{name[:80]}")
    kept = request.query_params.get("v") == found.mark
    headers = {"Cache-Control": "public, max-age=31536000, immutable" if kept else "no-cache"}
    return Response(found.content, media_type=found.media_type, headers=headers)
