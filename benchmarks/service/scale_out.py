"""How much faster two workers finish one certification than one: wall time, median of N runs.

Starts the whole service (supervisor, Redis, API, workers of one compute thread each) anew for every
run, one worker and two in turn, and submits a certification of 16 shards through HTTP. The attack's
steps are chosen so that a shard takes about --shard-s seconds. The time runs from the submission
to the report, start of the first work horse, preparation and merge included.

    python benchmarks/service/scale_out.py [--shard-s 11] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.client import Client
from service.contract.processes import python_module, spawn, wait_until

ROOT = Path(__file__).parents[2]
MODEL, DATA = ROOT / "examples" / "mnist_certified.onnx", ROOT / "examples" / "mnist_test.npz"
SHARDS, SAMPLES_PER_SHARD = 16, 10


def main() -> None:
    """Calibrate, run in turn, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard-s", type=float, default=11.0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    steps = calibrate(options.shard_s)
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.runs):
        for workers, found in walls.items():
            wall_s, shard_s, digest = measure(workers, steps, SHARDS)
            found.append(wall_s)
            print(
                f"{workers} worker(s): {wall_s:6.1f} s, {SHARDS} shards of {shard_s:.1f} s, "
                f"{digest}",
                flush=True,
            )
    one, two = (statistics.median(found) for found in walls.values())
    print(f"median {one:.1f} s and {two:.1f} s: two workers are {one / two:.2f} times as fast")


def calibrate(shard_s: float) -> int:
    """Attack steps for shards of about so many seconds on this machine."""
    few, many = 50, 250
    seconds = [measure(1, steps, 2)[1] for steps in (few, many)]
    per_step = max(1e-6, (seconds[1] - seconds[0]) / (many - few))
    steps = max(1, round(few + (shard_s - seconds[0]) / per_step))
    # A straight line through two short runs is off by a third: one more run, and a little over.
    return round(1.05 * steps * shard_s / measure(1, steps, 2)[1])


def measure(workers: int, steps: int, shards: int) -> tuple[float, float, str]:
    """Seconds from submission to report, mean seconds of a shard, the result's digest."""
    spec = {
        "norm": "l2",
        "epsilons": [0.05],
        "method": "lipschitz",
        "samples": shards * SAMPLES_PER_SHARD,
        "attack": {"steps": steps, "restarts": 1, "audit": 1.0, "seed": 0},
    }
    with service(workers) as url, Client(url) as client:
        began = time.monotonic()
        job = client.certify(MODEL, DATA, spec)
        client.wait(job["id"], interval_s=0.1)
        wall_s = time.monotonic() - began
        report: dict[str, Any] = json.loads(client.report(job["id"]))
        lines = httpx.get(f"{url}/metrics").text.splitlines()
    totals = dict(line.rsplit(" ", 1) for line in lines if line.startswith("certserve_shard"))
    count = float(totals["certserve_shard_seconds_count"])
    assert count == shards, totals
    return wall_s, float(totals["certserve_shard_seconds_sum"]) / count, report["result_digest"]


@contextmanager
def service(workers: int) -> Iterator[str]:
    """A fresh service; its address."""
    with tempfile.TemporaryDirectory(prefix="certserve-") as folder:
        environment = os.environ | {
            "CERTSERVE_SAMPLES_PER_SHARD": str(SAMPLES_PER_SHARD),
            "CERTSERVE_WORKER_THREADS": "1",
            "CERTSERVE_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("CERTSERVE_REDIS_URL", None)
        data_dir, log = Path(folder) / "data", Path(folder) / "log"
        command = python_module(
            "service.cli.main", "serve", "--port", "0", "--data-dir", str(data_dir)
        )
        with log.open("wb") as file:
            process = spawn(
                [*command, "--workers", str(workers)], environment=environment, log=file
            )
        try:
            facts = data_dir / "run" / "service.json"
            assert wait_until(facts.exists, 30), log.read_text()
            url = str(json.loads(facts.read_text())["url"])

            def all_there() -> bool:
                text = httpx.get(f"{url}/metrics", timeout=30).text
                return f"certserve_workers {workers}.0" in text.splitlines()

            with Client(url) as client:
                assert wait_until(client.ready, 60, interval_s=0.2), log.read_text()
            assert wait_until(all_there, 30, interval_s=0.2), log.read_text()
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
