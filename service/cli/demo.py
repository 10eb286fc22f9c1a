"""``certserve demo``: runs the whole service once, on the example network and real images."""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli.local_service import started_service
from service.cli.spec_options import number_or_all
from service.cli.terminal import print_summary, progress_bar
from service.client import Client
from service.supervisor.instance_lock import StartError

__all__ = ["add_parser", "run_demo", "save_reports"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL, DATASET = "mnist_certified.onnx", "mnist_test.npz"
SPEC = {"norm": "l2", "epsilons": [0.3, 1.0]}


def add_parser(commands: Any) -> None:
    """Add ``demo`` to the commands."""
    demo = commands.add_parser("demo", help="certify the example network, start to end")
    demo.add_argument("--data-dir", type=Path, default=None, help="default: a temporary folder")
    demo.add_argument("--out", type=Path, default=Path("out/demo"))
    demo.add_argument("--samples", type=number_or_all, default="all", help="how many images")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace, console: Console) -> int:
    run_demo(console, data_dir=options.data_dir, out=options.out, samples=options.samples)
    return 0


def run_demo(
    console: Console, *, data_dir: Path | None, out: Path, samples: int | str = "all"
) -> None:
    """Start a service with one worker, certify the example, save its reports, stop the service."""
    model, dataset = EXAMPLES / MODEL, EXAMPLES / DATASET
    for path in (model, dataset):
        if not path.is_file():
            raise StartError(f"{path} is missing; the demo runs in a checkout of certserve")
    with ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="certserve-")))
        console.print("starting Redis, the API and one worker ...")
        url = stack.enter_context(started_service(data_dir))
        console.print(f"POST {url}/certify  model={model.name}  dataset={dataset.name}")
        with Client(url) as client:
            job = client.certify(model, dataset, {**SPEC, "samples": samples})
            with progress_bar(console) as show:
                client.wait(job["id"], on_progress=show)
            report = save_reports(client, job["id"], out)
        print_summary(console, report)
        console.print(f"reports: {out}/report.json .html .csv .svg", highlight=False)


def save_reports(client: Client, job_id: str, out: Path) -> dict[str, object]:
    """Write the report in every format into ``out``; the report."""
    out.mkdir(parents=True, exist_ok=True)
    for suffix in ("json", "html", "csv", "svg"):
        (out / f"report.{suffix}").write_bytes(client.report(job_id, suffix))
    report: dict[str, object] = json.loads((out / "report.json").read_text())
    return report
