"""What the console's pages cost at 1,000 jobs and at 10,000 samples: time, processor, bytes.

Starts redis-server and the console as processes of their own, enters 1,000 jobs, one of which has
ended with 10,000 rows, and asks for every page in turn.

    python -m benchmarks.service.pages [--jobs 1000] [--samples 10000] [--rounds 20]

Prints per page the median of the answer's time and of the processor time of the API (bar: 50 ms),
and the bytes of the page without and with what it loads, thumbnails left out (bar: 150 kB).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time

import httpx
import psutil

from benchmarks.service.console import console
from service.contract.ids import new_job_id
from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.storage.store import Store
from service.contract.times import now, rfc3339
from tests.service.console.conftest import report_of, sample_rows

PAGE = {"Accept": "text/html"}


def main() -> None:
    """Print a line per page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with console() as served:
        settings = served.settings
        store, ledger = Store(settings.data_dir), Ledger(connect(settings), settings)
        ledger.create_all([_submission() for _ in range(options.jobs)])
        job = _ended(store, ledger, options.samples)
        _measure(served.port, served.pid, job, options.rounds)


def _submission() -> JobSubmission:
    return JobSubmission(
        id=new_job_id(),
        kind="certify",
        spec=Spec.model_validate({"norm": "l2", "epsilons": ["36/255", "1/2"]}).normal(),
        model=ModelSource(digest="sha256:" + "a" * 64, format="onnx", name="a.onnx", size=3),
        dataset=DatasetSource(kind="npz", name="data.npz", id="sha256:" + "b" * 64),
        created_at=rfc3339(now()),
    )


def _ended(store: Store, ledger: Ledger, samples: int) -> str:
    job = _submission()
    store.job_dir(job.id)
    lines = "".join(json.dumps(row) + "\n" for row in sample_rows(samples))
    store.samples_path(job.id).write_text(lines)
    store.write_json(store.report_path(job.id), report_of(job, samples))
    conclude(store, ledger, job, "succeeded", samples=samples)
    return job.id


def _measure(port: int, pid: int, job: str, rounds: int) -> None:
    pages = (
        "/", "/?status=queued&status=failed&kind=certify", "/new", "/train", "/system", "/compare",
        f"/compare?a={job}&b={job}", f"/jobs/{job}/view", f"/jobs/{job}/samples/view",
        f"/jobs/{job}/samples/view?sort=radius&down=true&part=150",
        f"/jobs/{job}/report.html",
    )  # fmt: skip
    process = psutil.Process(pid)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=PAGE, timeout=60) as client:
        for path in pages:
            answer = client.get(path)
            answer.raise_for_status()
            used, spent = sum(process.cpu_times()[:2]), []
            for _ in range(rounds):
                began = time.perf_counter()
                client.get(path)
                spent.append(time.perf_counter() - began)
            cost = (sum(process.cpu_times()[:2]) - used) / rounds
            names = set(re.findall(r'(?:src|href)="(/console/[^"]+)"', answer.text))
            loads = sum(len(client.get(name).content) for name in names)
            print(
                f"{path.replace(job, '{id}'):60} {1000 * statistics.median(spent):6.1f} ms, "
                f"processor {1000 * cost:5.1f} ms, {len(answer.content) / 1000:6.1f} kB, "
                f"with what it loads {(len(answer.content) + loads) / 1000:6.1f} kB"
            )


if __name__ == "__main__":
    main()
