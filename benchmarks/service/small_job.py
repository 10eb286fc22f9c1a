"""From POST to report: how long a network of a few weights takes, and where the time goes.

Starts a service of its own (embedded Redis, API, one worker), posts a 2-2 network with three
samples over and over, each time after the last report has come, and prints the median, least and
most seconds, the share of each step by the job's own progress events, and how much processor time
the service's processes used per job. Two first jobs, whose figures are printed apart, come before.

    python benchmarks/service/small_job.py [--jobs 10] [--pause 1.0]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from service.client import Client
from service.contract.processes import python_module, spawn, wait_until
from service.supervisor.instance_lock import running_service

SPEC = {"norm": "l2", "epsilons": [0.1]}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two jobs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="certserve-") as name:
        folder = Path(name)
        files = _uploads(folder)
        # The same job again and again: it is to be computed every time.
        environment = {
            **os.environ,
            "CERTSERVE_REUSE_RESULTS": "false",
            "CERTSERVE_DEVICE": "cpu",
        }
        environment.pop("CERTSERVE_REDIS_URL", None)
        command = python_module("service.cli.main", "serve", "--port", "0", "--workers", "1")
        with (folder / "log").open("wb") as log:
            process = spawn(
                [*command, "--data-dir", str(folder / "data")], environment=environment, log=log
            )
        try:
            _measure(process.pid, folder / "data", files, options.jobs, options.pause)
        finally:
            process.terminate()
            process.wait(60)


def _measure(pid: int, data_dir: Path, files: tuple[Path, Path], jobs: int, pause_s: float) -> None:
    assert wait_until(lambda: running_service(data_dir) is not None, 120)
    facts = running_service(data_dir)
    assert facts is not None
    with Client(str(facts["url"])) as client:
        assert wait_until(client.ready, 120)
        for number in (1, 2):
            print(f"first job {number}: {_job(client, files)[0]:.2f} s")
            time.sleep(max(pause_s, 3.0))
        times, steps = [], []
        used = _processor_s(pid)
        for _ in range(jobs):
            seconds, step = _job(client, files)
            times.append(seconds)
            steps.append(step)
            time.sleep(pause_s)
        used = _processor_s(pid) - used
    print(
        f"{jobs} jobs: median {statistics.median(times):.2f} s, "
        f"min {min(times):.2f} s, max {max(times):.2f} s, "
        f"{used / jobs:.2f} s of processor per job (pauses included)"
    )
    for name in steps[0]:
        print(f"{name:>12}: {statistics.median(step.get(name, 0.0) for step in steps):.3f} s")
    _print_memory(pid)


def _job(client: Client, files: tuple[Path, Path]) -> tuple[float, dict[str, float]]:
    """Seconds from POST to the report in hand, and seconds until each state was seen."""
    began = time.perf_counter()
    job = client.certify(*files, SPEC)
    seen = {"accepted": time.perf_counter() - began}
    while job["status"] in ("queued", "running"):
        job = client.job(job["id"])
        message = job["progress"].get("message") or job["status"]
        seen.setdefault(message, time.perf_counter() - began)
        time.sleep(0.002)
    assert job["status"] == "succeeded", job
    client.report(job["id"])
    total = time.perf_counter() - began
    return total, seen | {"report": total}


def _processor_s(pid: int) -> float:
    """Processor seconds of a process and its descendants, the ended and waited-for included."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def _print_memory(pid: int) -> None:
    for process in psutil.Process(pid).children(recursive=True):
        try:
            command, memory = " ".join(process.cmdline()), process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        if "workers." in command:
            module = next(word for word in command.split() if "workers." in word)
            print(
                f"{module:>24} ({process.name()}): "
                f"{memory.rss / 2**20:.0f} MiB resident, {memory.pss / 2**20:.0f} MiB its share"
            )


def _uploads(folder: Path) -> tuple[Path, Path]:
    """A network of six weights on inputs [N, 2], and three labelled samples."""
    weights = np.array([[1.0, -1.0], [-0.5, 2.0]], dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([0.0, 0.1], dtype=np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "two.onnx"))
    x = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.2]], dtype=np.float32)
    np.savez(folder / "two.npz", x=x, y=(x @ weights.T + [0.0, 0.1]).argmax(1))
    return folder / "two.onnx", folder / "two.npz"


if __name__ == "__main__":
    main()
