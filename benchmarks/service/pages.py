"""What the console's pages cost at 1,000 jobs and at 10,000 samples: time, processor, bytes.

Starts redis-server and the console as processes of their own, enters 1,000 jobs (nine in ten wait,
the others have ended, one of them with 10,000 rows) and a training, and asks for every page in
turn.

    python -m benchmarks.service.pages [--jobs 1000] [--samples 10000] [--rounds 20]

Prints per page the median of the answer's time and the processor time of the API per answer (bar:
50 ms), and the bytes of the page without and with what it loads, thumbnails left out (bar: 150 kB);
then the most of each.
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
#: A curve as workers make it: its grid has 101 points.
_LONG = {
    "curve": {
        "epsilon": [point / 130 for point in range(101)],
        "certified_accuracy": [0.9 * (1 - point / 101) for point in range(101)],
    }
}


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
        ended = options.jobs // 10
        ledger.create_all([_submission() for _ in range(options.jobs - ended)])
        for _ in range(ended - 1):
            _ended(store, ledger, 10)
        job, training = _ended(store, ledger, options.samples), _trained(store, ledger)
        _measure(served.port, served.pid, {job: "{id}", training: "{training}"}, options.rounds)


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
    store.write_json(store.report_path(job.id), report_of(job, samples) | _LONG)
    conclude(store, ledger, job, "succeeded", samples=samples)
    return job.id


def _trained(store: Store, ledger: Ledger) -> str:
    """A training of 200 epochs, without a certification."""
    plan = {
        "method": "emma", "recipe": "paper", "norm": "l2", "epsilon": "1/2", "seed": 0,
        "architecture": "cifar-6c2f",
        "hyperparameters": {
            "epochs": 200, "batch_size": 128, "learning_rate": 0.001, "optimizer": "adam",
        },
    }  # fmt: skip
    data = DatasetSource(kind="digits", name="digits", split="train")
    parts = {"kind": "train", "training": plan, "training_dataset": data}
    job = _submission().model_copy(update={**parts, "spec": {}, "model": None, "dataset": None})
    store.job_dir(job.id)
    store.training_dir(job.id).mkdir()
    names = ("loss", "accuracy", "robust", "validation_accuracy", "validation_robust")
    history = [
        {"epoch": epoch, **dict.fromkeys(names, 1 - 1 / (3 + epoch))} for epoch in range(1, 201)
    ]
    store.write_json(store.training_dir(job.id) / "history.json", {"history": history})
    conclude(store, ledger, job, "succeeded", samples=0)
    return job.id


def _measure(port: int, pid: int, names: dict[str, str], rounds: int) -> None:
    job, training = names
    pages = (
        "/", "/?status=queued&status=failed&kind=certify", "/?status=succeeded", "/new", "/train",
        "/system", "/compare", f"/compare?a={job}&b={job}", f"/jobs/{job}/view",
        f"/jobs/{training}/view", f"/jobs/{job}/samples/view",
        f"/jobs/{job}/samples/view?sort=radius&down=true&part=150", f"/jobs/{job}/report.html",
    )  # fmt: skip
    process = psutil.Process(pid)
    most = [0.0, 0.0, 0.0]
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
            assets = set(re.findall(r'(?:src|href)="(/console/[^"]+)"', answer.text))
            loads = sum(len(client.get(name).content) for name in assets)
            figures = (
                1000 * statistics.median(spent), 1000 * cost, (len(answer.content) + loads) / 1000
            )  # fmt: skip
            most = [max(pair) for pair in zip(most, figures, strict=True)]
            for known, name in names.items():
                path = path.replace(known, name)
            print(
                f"{path:60} {figures[0]:6.1f} ms, processor {figures[1]:5.1f} ms, "
                f"{len(answer.content) / 1000:6.1f} kB, with what it loads {figures[2]:6.1f} kB"
            )
    print(f"most: {most[0]:.1f} ms, processor {most[1]:.1f} ms, {most[2]:.1f} kB")


if __name__ == "__main__":
    main()
