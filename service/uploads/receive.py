"""A multipart body, streamed: files go to the store's temporary folder as they arrive.

Memory per request is about two MiB, whatever is sent. Bytes are hashed and written in a thread
while the next ones are received, so that the event loop stays free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.contract.near_names import did_you_mean
from service.contract.schemas.problems import InvalidInput, Malformed, Problem, TooLarge
from service.contract.schemas.submissions import Spec
from service.contract.storage.blobs import BlobWriter
from service.contract.storage.store import Store

__all__ = ["FileRule", "Form", "Upload", "receive_form"]

#: Bytes gathered before a thread hashes and writes them.
_BLOCK = 1024 * 1024
#: Bytes of a refused body that are read on, so that a client that sends first gets the response.
_DRAIN = 64 * 1024 * 1024
_MAX_HEADER = 8192
#: What others call the fields of files.
_USUAL = {
    **dict.fromkeys(("labels", "label", "y", "targets"), "dataset_labels"),
    **dict.fromkeys(("data", "x", "images", "samples", "inputs"), "dataset"),
    **dict.fromkeys(("onnx", "network", "file", "net"), "model"),
    **dict.fromkeys(("weights", "external_data"), "model_data"),
    **dict.fromkeys(("options", "params", "json"), "spec"),
}


@dataclass(frozen=True)
class FileRule:
    """What a file field may hold; ``check_name`` raises a Problem before any byte is kept."""

    max_bytes: int
    check_name: Callable[[str], object]
    #: How many such files a body may hold.
    most: int = 1


@dataclass
class Upload:
    """A received file: all of it is on disk at ``writer.path``, not yet published."""

    filename: str
    writer: BlobWriter


@dataclass
class Form:
    """The fields of a body by name."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)
    #: Of a field that may hold several files, in the order of the body.
    several: dict[str, list[Upload]] = field(default_factory=dict)

    @property
    def uploads(self) -> list[Upload]:
        """All files."""
        return [*self.files.values(), *(one for some in self.several.values() for one in some)]


@asynccontextmanager
async def receive_form(
    request: Request,
    store: Store,
    *,
    files: Mapping[str, FileRule],
    texts: Mapping[str, int],
    meter: Callable[[int], None] = lambda count: None,
) -> AsyncIterator[Form]:
    """Receive a body with these file fields and text fields (name -> most bytes) and no others.

    ``meter`` is called with every block of a file, in a thread, and may raise. A field that may be
    both is a file where it comes with a file name.

    Files not published when the block ends are removed. Raises Malformed (no multipart, cut
    off), InvalidInput (unknown or doubled field), TooLarge, Unsupported, StorageFull.
    """
    form = Form()
    receiver = _Receiver(form, store, files, texts, meter)
    try:
        try:
            await receiver.run(request)
        except Problem:
            await _drain(request)
            raise
        yield form
    finally:
        for upload in form.uploads:
            upload.writer.discard()


async def _drain(request: Request) -> None:
    left = _DRAIN
    with suppress(ClientDisconnect, RuntimeError):
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                return


class _Receiver:
    """Queues what the parser's synchronous callbacks report, and writes it asynchronously."""

    def __init__(
        self,
        form: Form,
        store: Store,
        files: Mapping[str, FileRule],
        texts: Mapping[str, int],
        meter: Callable[[int], None],
    ) -> None:
        self._form = form
        self._store = store
        self._files = files
        self._texts = texts
        self._meter = meter
        self._events: list[tuple[str, bytes]] = []
        self._header = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._upload: Upload | None = None
        self._data = bytearray()
        #: The block before the one that is gathered, on its way to the disk.
        self._writing: asyncio.Future[None] | None = None
        self._ended = False

    async def run(self, request: Request) -> None:
        """Read the whole body. No write is pending when this returns or raises."""
        try:
            await self._read(request)
        finally:
            if self._writing is not None:
                await asyncio.wait({self._writing})
                self._writing.exception()  # an earlier error is being raised already

    async def _read(self, request: Request) -> None:
        parser = self._parser(request)
        async for chunk in request.stream():
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise Malformed(
                    f"the multipart body cannot be read: {error}", code="invalid_multipart"
                ) from error
            events, self._events = self._events, []
            for event, data in events:
                await self._handle(event, data)
        if not self._ended:
            raise Malformed("the multipart body is cut off", code="invalid_multipart")

    def _parser(self, request: Request) -> MultipartParser:
        _, options = parse_options_header(request.headers.get("content-type"))
        boundary = options.get(b"boundary")
        if not boundary:
            raise Malformed("the multipart body names no boundary", code="invalid_multipart")

        def keep(event: str) -> Callable[[bytes, int, int], None]:
            return lambda data, start, end: self._events.append((event, data[start:end]))

        def note(event: str) -> Callable[[], None]:
            return lambda: self._events.append((event, b""))

        callbacks: Any = {
            "on_part_begin": note("begin"),
            "on_header_field": keep("header"),
            "on_header_value": keep("value"),
            "on_headers_finished": note("headers"),
            "on_part_data": keep("data"),
            "on_part_end": note("end"),
            "on_end": note("finish"),
        }
        return MultipartParser(boundary, callbacks)

    async def _handle(self, event: str, data: bytes) -> None:
        match event:
            case "begin":
                self._headers = {}
                self._header = b""
            case "header":
                # A new name after a value begins a new header; names and values come in pieces.
                if self._header in self._headers:
                    self._header = b""
                self._header += data.lower()
            case "value":
                value = self._headers.get(self._header, b"") + data
                if len(value) > _MAX_HEADER or len(self._headers) > 16:
                    raise Malformed("a part's headers are too long", code="invalid_multipart")
                self._headers[self._header] = value
            case "headers":
                await self._begin_field()
            case "data":
                await self._take(data)
            case "end":
                await self._end_field()
            case "finish":
                self._ended = True

    async def _begin_field(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        try:
            name = options.get(b"name", b"").decode()
            filename = options.get(b"filename", b"").decode()
        except UnicodeDecodeError as error:
            raise Malformed("a field's name is not UTF-8", code="invalid_multipart") from error
        self._name = name
        self._data = bytearray()
        known = self._form.several.setdefault(name, []) if self._several(name) else []
        if name in self._form.texts or name in self._form.files:
            raise InvalidInput(f"field {name!r} comes twice", code="duplicate_field", field=name)
        if name in self._files and (filename or name not in self._texts):
            if not filename:
                raise InvalidInput(
                    f"{name} must be a file with a name whose suffix gives the format",
                    code="missing_filename",
                    field=name,
                )
            rule = self._files[name]
            rule.check_name(filename)
            if len(known) >= rule.most or filename in [other.filename for other in known]:
                raise InvalidInput(
                    f"{name} holds more than {rule.most} files, or {filename[:200]!r} twice",
                    code="duplicate_field",
                    field=name,
                )
            writer = await to_thread.run_sync(lambda: self._store.writer(limit=rule.max_bytes))
            self._upload = Upload(filename[:200], writer)
            if self._several(name):
                known.append(self._upload)
            else:
                self._form.files[name] = self._upload
        elif name in self._texts:
            self._upload = None
        else:
            known_ones = list(dict.fromkeys([*self._files, *self._texts]))
            raise InvalidInput(
                f"there is no field {name[:100]!r}{self._meant(name, known_ones)}; known: "
                + ", ".join(known_ones),
                code="unknown_field",
                field=name[:100],
            )

    def _meant(self, name: str, known: list[str]) -> str:
        """Which field was probably meant, or where in the spec the name belongs."""
        usual = _USUAL.get(name.lower(), "")
        if usual in known:
            return f" (did you mean {usual!r}?)"
        if "spec" in known and name in Spec.model_fields:
            return f": it belongs in the field spec, a JSON object with {name!r} in it"
        return did_you_mean(name, known)

    def _several(self, name: str) -> bool:
        return name in self._files and self._files[name].most > 1

    async def _take(self, data: bytes) -> None:
        self._data += data
        if self._upload is None:
            if len(self._data) > self._texts[self._name]:
                raise TooLarge(
                    f"{self._name} is longer than {self._texts[self._name]} bytes", field=self._name
                )
        elif len(self._data) >= _BLOCK:
            await self._flush(self._upload.writer)

    async def _flush(self, writer: BlobWriter) -> None:
        data, self._data = self._data, bytearray()
        await self._written()
        self._writing = asyncio.ensure_future(to_thread.run_sync(self._keep, writer, data))

    async def _written(self) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})
            writing, self._writing = self._writing, None
            writing.result()

    def _keep(self, writer: BlobWriter, data: bytearray) -> None:
        self._meter(len(data))
        writer.write(data)

    async def _end_field(self) -> None:
        if self._upload is not None:
            await self._flush(self._upload.writer)
            await self._written()
            await to_thread.run_sync(self._upload.writer.close)
            return
        try:
            self._form.texts[self._name] = self._data.decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"{self._name} is not UTF-8", code="invalid_multipart") from error
