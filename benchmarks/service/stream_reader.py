"""Reads many event streams at once for a measurement: a process of its own that costs little.

It waits with epoll, takes what has come at most twenty times per second, counts bytes and throws
them away; of a few streams it keeps them, so that what they told can be held against what happened.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

__all__ = ["Read", "StreamReader", "stream_reader"]

#: Of so many streams the bytes are kept.
_KEPT = 3
#: Seconds in which what comes is left to collect.
_PAUSE_S = 0.05
_ROOM = 2**20


@dataclass(frozen=True)
class Read:
    """So far: bytes of each stream, and processor seconds of the reader."""

    bytes: Sequence[int]
    cpu_s: float


@dataclass(frozen=True)
class StreamReader:
    """The other end of the process."""

    _pipe: Connection

    def read(self) -> Read:
        """What has been read so far. Raises EOFError where the process has died."""
        self._pipe.send("read")
        found: Read = self._pipe.recv()
        return found

    def kept(self) -> list[bytes]:
        """All that the first few streams have got, as bodies of HTTP answers."""
        self._pipe.send("kept")
        answers: list[bytes] = self._pipe.recv()
        return [_body(answer) for answer in answers]


@contextmanager
def stream_reader(port: int, path: str, viewers: int) -> Iterator[StreamReader]:
    """Open that many streams of ``path``; they are closed on leaving."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, port, path, viewers), daemon=True)
    process.start()
    there.close()
    try:
        yield StreamReader(here)
    finally:
        here.close()
        process.join(30)


def _serve(pipe: Connection, port: int, path: str, viewers: int) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n"
    counts: dict[int, int] = {}
    kept: dict[int, list[bytes]] = {}
    streams: dict[int, socket.socket] = {}
    waiting = select.epoll()
    for place in range(viewers):
        stream = socket.create_connection(("127.0.0.1", port))
        stream.sendall(request.encode())
        stream.setblocking(False)
        number = stream.fileno()
        streams[number], counts[number] = stream, 0
        if place < _KEPT:
            kept[number] = []
        waiting.register(number, select.EPOLLIN)
    wishes = select.epoll()
    wishes.register(pipe.fileno(), select.EPOLLIN)
    room = bytearray(_ROOM)
    while True:
        if wishes.poll(_PAUSE_S):
            try:
                wish = pipe.recv()
            except EOFError:
                return
            if wish == "read":
                pipe.send(Read(list(counts.values()), sum(os.times()[:2])))
            else:
                pipe.send([b"".join(parts) for parts in kept.values()])
        for number, _ in waiting.poll(0, max(1, viewers)):
            size = streams[number].recv_into(room)
            if size == 0:
                waiting.unregister(number)  # the stream has ended; its count stands still
            counts[number] += size
            if number in kept:
                kept[number].append(bytes(room[:size]))


def _body(answer: bytes) -> bytes:
    """The body of a chunked answer, as far as it is whole. Raises ValueError for another answer."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or b"transfer-encoding: chunked" not in head.lower():
        raise ValueError(f"the stream was answered with {head[:200]!r}")
    parts = []
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if len(rest) < length + 2:
            break
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(parts)
