"""What people who follow jobs in the console cost the API: its share of a core with N viewers.

Starts redis-server and the console as processes of their own, makes one job report progress four
times per second, and opens N event streams at once: of the list of jobs, of the job's page, and of
the API's JSON events. With ``--clients`` also how many submissions are accepted meanwhile, from a
process of their own, as a share of what is accepted while nobody looks (bar: 0.9). A stream is all
that a browser asks for while it follows: lists come with their events.

    python -m benchmarks.service.viewers [--viewers 200] [--seconds 15] [--clients 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

import httpx
import psutil

from benchmarks.service.console import console
from benchmarks.service.submissions import load
from service.contract.ids import new_job_id
from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.times import now, rfc3339


def main() -> None:
    """Print a line for each kind of stream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with console() as served:
        ledger = Ledger(connect(served.settings), served.settings)
        asyncio.run(_measure(ledger, served.port, served.pid, options))


def _running_job(ledger: Ledger) -> str:
    job = JobSubmission(
        id=new_job_id(),
        kind="certify",
        spec=Spec.model_validate({"norm": "l2", "epsilons": ["36/255"]}).normal(),
        model=ModelSource(digest="sha256:" + "a" * 64, format="onnx", name="a.onnx", size=3),
        dataset=DatasetSource(kind="digits", name="digits", split="test"),
        created_at=rfc3339(now()),
    )
    ledger.create(job)
    ledger.lease(job.id, worker="nobody")
    return job.id


async def _measure(ledger: Ledger, port: int, pid: int, options: argparse.Namespace) -> None:
    for name in ("list of jobs", "page of the job", "JSON events"):
        shares = []
        for _ in range(options.rounds):
            # The machine's speed drifts: each kind in turn with nobody.
            alone = await _watched(ledger, "nobody", port, pid, options)
            shares.append(await _watched(ledger, name, port, pid, options) / alone)
        if options.clients:
            told = ", ".join(f"{share:.2f}" for share in shares)
            print(f"{name}: {told} of what is accepted while nobody looks")


async def _watched(
    ledger: Ledger, name: str, port: int, pid: int, options: argparse.Namespace
) -> float:
    """Print what viewers of this kind cost; submissions accepted per second meanwhile."""
    # Of its own each time: a stream of JSON events begins with all that there were.
    job_id = _running_job(ledger)
    paths = {
        "nobody": None,
        "list of jobs": "/console/jobs/events",
        "page of the job": f"/jobs/{job_id}/view/events",
        "JSON events": f"/jobs/{job_id}/events",
    }
    process = psutil.Process(pid)
    seen = [0] * (options.viewers if paths[name] else 0)
    progress = asyncio.create_task(_report(ledger, job_id))
    streams = [
        asyncio.create_task(_view(f"http://127.0.0.1:{port}{paths[name]}", seen, place))
        for place in range(len(seen))
    ]
    await asyncio.sleep(5)
    used, told, began = sum(process.cpu_times()[:2]), sum(seen), time.monotonic()
    await asyncio.sleep(options.seconds)
    spent = time.monotonic() - began
    share = (sum(process.cpu_times()[:2]) - used) / spent
    rate = (sum(seen) - told) / spent / max(1, len(seen))
    print(f"{name}, {len(seen)} viewers: API {share:.1%} of a core, {rate:.1f} events/s each")
    accepted = await _submitted(name, port, pid, options) if options.clients else 1.0
    for task in (progress, *streams):
        task.cancel()
    await asyncio.gather(progress, *streams, return_exceptions=True)
    return accepted


async def _submitted(name: str, port: int, pid: int, options: argparse.Namespace) -> float:
    """Submissions per second, sent by a process of their own: this one reads the streams."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            pool, load, name, port, options.clients, options.seconds, pid
        )


async def _report(ledger: Ledger, job_id: str) -> None:
    for step in range(10**9):
        await asyncio.to_thread(
            ledger.progress, job_id, "prepare", step % 100, total=100, message=f"step {step}"
        )
        await asyncio.sleep(0.25)


async def _view(url: str, seen: list[int], place: int) -> None:
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient(timeout=None) as client, client.stream("GET", url) as answer:
            async for line in answer.aiter_lines():
                seen[place] += line.startswith("event: ")


if __name__ == "__main__":
    main()
