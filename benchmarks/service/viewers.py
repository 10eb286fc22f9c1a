"""What people who follow jobs cost the service, and whether they slow down submissions.

Starts redis-server and the console as processes of their own, makes one job report progress four
times per second, and opens N event streams at once: of the list of jobs, of the job's page, and of
the API's JSON events. A stream is all that a browser asks for while it follows: lists come with
their events. Printed are the API's processor time while nobody submits, per viewer too, and with
``--clients`` how many submissions are accepted meanwhile (from a process of their own), as a share
of what is accepted while nobody looks, measured in turn (bar: 0.9), with the API's processor time
for each.

Client, viewers and service share the machine, so the viewers' reader is cheap
(``stream_reader.py``), and its own share of a core is printed. Each time all streams must have got
bytes, nearly the same number, and of three of them every event is held against what happened: of
JSON events all of the job's in their order, of pages a rising count of steps up to the last, and
the newest jobs in the list.

    python -m benchmarks.service.viewers [--viewers 200] [--seconds 15] [--clients 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context

import psutil

from benchmarks.service.console import Console, console
from benchmarks.service.stream_reader import Read, StreamReader, stream_reader
from benchmarks.service.submissions import Load, load
from service.contract.ids import new_job_id
from service.contract.ledger.connection import connect
from service.contract.ledger.event_stream import EventLog
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.times import now, rfc3339

_KINDS = {
    "list of jobs": "/console/jobs/events",
    "page of the job": "/jobs/{id}/view/events",
    "JSON events": "/jobs/{id}/events",
}
#: Seconds from the first bytes of every stream until each has what there was before.
_SETTLE_S = 5.0
#: Seconds between two reports of progress, and until all streams have told the last.
_STEP_S = 0.25
_LATE_S = 4.0


def main() -> None:
    """Print a line for each kind of stream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", choices=_KINDS, default=list(_KINDS))
    options = parser.parse_args()
    with console() as served:
        for name in options.kinds:
            shares, costs = [], []
            for number in range(options.rounds):
                # The machine's speed drifts, and jobs become more: each kind in turn with nobody,
                # and now the one first, now the other.
                order = (None, name) if number % 2 == 0 else (name, None)
                found = {who: _watched(served, who, options) for who in order}
                alone, watched = found[None], found[name]
                if alone is not None and watched is not None:
                    shares.append(watched.rate / alone.rate)
                    costs.append(alone.cpu_ms / watched.cpu_ms)
            if shares:
                print(
                    f"{name}: {_told(shares)} of what is accepted while nobody looks; by the "
                    f"API's processor time per submission alone {_told(costs)}",
                    flush=True,
                )


def _settled(streams: StreamReader | None) -> None:
    """Raises RuntimeError where a stream gets nothing within a minute."""
    deadline = time.monotonic() + 60
    while streams is not None and min(streams.read().bytes, default=0) == 0:
        if time.monotonic() > deadline:
            raise RuntimeError("a stream got nothing")
        time.sleep(0.5)
    time.sleep(_SETTLE_S)


def _told(shares: list[float]) -> str:
    each = ", ".join(f"{share:.2f}" for share in shares)
    return f"{statistics.median(shares):.2f} ({each})"


def _watched(served: Console, name: str | None, options: argparse.Namespace) -> Load | None:
    """Print what viewers of this kind cost; what is accepted meanwhile, where anybody submits."""
    process = psutil.Process(served.pid)
    ledger = Ledger(connect(served.settings), served.settings)
    # Of its own each time: a stream of JSON events begins with all that there were.
    job_id = _running_job(ledger)
    path = "" if name is None else _KINDS[name].format(id=job_id)
    viewers = 0 if name is None else options.viewers
    reading = nullcontext(None) if name is None else stream_reader(served.port, path, viewers)
    with _reporting(ledger, job_id) as steps, reading as streams:
        _settled(streams)
        quiet = _Span(process, streams)
        time.sleep(options.seconds)
        quiet.end()
        per_viewer = "" if streams is None else f", {1e6 * quiet.share / viewers:.0f} us each per s"
        print(
            f"{name or 'nobody'}, {viewers} viewers: API {quiet.share:.1%} of a core{per_viewer}"
            f"{quiet.read}",
            flush=True,
        )
        found = None
        if options.clients:
            busy = _Span(process, streams)
            found = _submitted(name or "nobody", served, options)
            busy.end()
            print(f"{'':>14}  {found.cpu_ms:.3f} ms each{busy.read}", flush=True)
        if streams is not None and name is not None:
            job = (job_id, steps.last)
            time.sleep(_LATE_S)
            log = EventLog(connect(served.settings))
            for body in streams.kept():
                _check(name, body.decode(), ledger, log, job)
    return found


class _Span:
    """The API's processor time from here to ``end``, and what the streams got."""

    def __init__(self, process: psutil.Process, streams: StreamReader | None) -> None:
        self._process, self._streams = process, streams
        self._before = None if streams is None else streams.read()
        self._used, self._began = sum(process.cpu_times()[:2]), time.monotonic()
        self.share = 0.0
        self.read = ""

    def end(self) -> None:
        """Raises RuntimeError where a stream got much less than the others."""
        spent = time.monotonic() - self._began
        self.share = (sum(self._process.cpu_times()[:2]) - self._used) / spent
        if self._streams is None or self._before is None:
            return
        after: Read = self._streams.read()
        got = [now - then for now, then in zip(after.bytes, self._before.bytes, strict=True)]
        if min(got) <= 0 or min(got) < 0.5 * max(got):
            raise RuntimeError(f"the streams got {min(got)} to {max(got)} bytes")
        share = (after.cpu_s - self._before.cpu_s) / spent
        self.read = (
            f"; reader {share:.1%} of a core, {min(got) / 1000:.1f} to {max(got) / 1000:.1f} kB "
            "to each"
        )


def _submitted(name: str, served: Console, options: argparse.Namespace) -> Load:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        wish = (name, served.port, options.clients, options.seconds, served.pid)
        return pool.submit(load, *wish).result()


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


@dataclass
class _Steps:
    """How far the job has reported."""

    last: int = -1


@contextmanager
def _reporting(ledger: Ledger, job_id: str) -> Iterator[_Steps]:
    over, steps = threading.Event(), _Steps()

    def report() -> None:
        while not over.wait(_STEP_S):
            step = steps.last + 1
            done = step % 100
            ledger.progress(job_id, "prepare", done, total=100, message=f"step {step} of many")
            steps.last = step

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield steps
    finally:
        over.set()
        thread.join()


def _check(name: str, text: str, ledger: Ledger, log: EventLog, job: tuple[str, int]) -> None:
    """Raises RuntimeError where a stream did not tell what happened."""
    job_id, reported = job
    events = list(_events(text))
    if name == "JSON events":
        found = [(event["id"], event["event"], json.loads(event["data"])) for event in events]
        happened = [(event.id, event.type, event.data) for event in log.after(job_id, "")]
        if found != happened[: len(found)]:
            raise RuntimeError(f"{name}: {found[-3:]}, where {happened[-3:]} happened")
    lists = [event["data"] for event in events if event["event"] == "list"]
    if lists:  # others were submitted: the job may have left the list
        shown = re.findall(r'<tr id="job-(\w+)"', lists[-1])
        newest = ledger.index.ids(before=None, limit=len(shown))
        if shown != newest:
            raise RuntimeError(f"{name}: it shows {shown[:3]}, where {newest[:3]} are the newest")
    # Rows of other jobs have steps of their own.
    own = "".join(
        event["data"] for event in events if event["event"] in ("progress", f"job-{job_id}")
    )
    seen = [int(step) for step in re.findall(r"step (\d+) of many", own)]
    if seen != sorted(seen) or (not lists and seen[-1] < reported):
        raise RuntimeError(f"{name}: steps {seen[-20:]} where the job had come to {reported}")


def _events(text: str) -> Iterator[dict[str, str]]:
    """Events of a stream with their fields; the lines of their data are joined."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            field, _, value = line.partition(": ")
            if field:  # not a comment
                fields[field] = f"{fields[field]}\n{value}" if field in fields else value
        if "event" in fields:
            yield fields


if __name__ == "__main__":
    main()
