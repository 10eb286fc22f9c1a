"""``certserve jobs``, ``show``, ``cancel`` and ``report``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from service.cli.remote.connection import add_connection, connected, show_json, show_table
from service.cli.terminal import print_summary
from service.client import REPORT_FORMS
from service.contract.schemas.submissions import JobKind, JobStatus
from service.supervisor.instance_lock import StartError

__all__ = ["add_parser"]


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add the commands; ``data_dir`` is the default."""
    jobs = commands.add_parser("jobs", help="list jobs, newest first")
    jobs.add_argument("--kind", choices=get_args(JobKind))
    jobs.add_argument(
        "--status", action="append", choices=get_args(JobStatus), help="may be repeated"
    )
    jobs.add_argument("--limit", type=int, default=20, help="how many, up to 200")
    jobs.set_defaults(run=_jobs)
    show = commands.add_parser("show", help="show a job: how far it is, its spec, its error")
    show.add_argument("job")
    show.set_defaults(run=_show)
    cancel = commands.add_parser("cancel", help="cancel jobs")
    cancel.add_argument("job", nargs="+")
    cancel.set_defaults(run=_cancel)
    report = commands.add_parser("report", help="print the report of a job, or save it")
    report.add_argument("job")
    report.add_argument("--out", type=Path, help="where it goes (.json .html .csv .svg)")
    report.add_argument(
        "--certificate", type=Path, help="where its certificate goes, for certserve-check"
    )
    report.set_defaults(run=_report)
    for command in (jobs, show, cancel, report):
        add_connection(command, data_dir)


def _jobs(options: argparse.Namespace, console: Console) -> int:
    with connected(options) as client:
        page = client.jobs(kind=options.kind, status=options.status, limit=options.limit)
    if options.json:
        return show_json(page)
    rows = [
        (job["id"], job["kind"], job["status"], _progress(job), job["created_at"], _why(job))
        for job in page["items"]
    ]
    show_table(console, ("id", "kind", "status", "progress", "created", "error"), rows)
    if page["next_cursor"] is not None:
        console.print("there are more: --limit shows up to 200")
    return 0


def _progress(job: dict[str, Any]) -> str:
    state = job["progress"]
    return f"{state.get('done') or 0}/{state['total']}" if state.get("total") else ""


def _why(job: dict[str, Any]) -> str:
    return "" if job["error"] is None else str(job["error"].get("code", "failed"))


def _show(options: argparse.Namespace, console: Console) -> int:
    with connected(options) as client:
        job = client.job(options.job)
    if options.json:
        return show_json(job)
    state, error = job["progress"], job["error"]
    rows: list[tuple[str, object]] = [
        ("id", job["id"]),
        ("kind", job["kind"]),
        ("status", job["status"]),
        ("progress", " ".join(filter(None, (_progress(job), state.get("message"))))),
        *((name, job[name]) for name in ("created_at", "started_at", "finished_at") if job[name]),
        *((name, job[name]) for name in ("model_id", "dataset_id") if job[name]),
        *([] if error is None else [("error", f"{error.get('code')}: {error.get('detail')}")]),
        *([("what to do", error["hint"])] if error is not None and error.get("hint") else []),
        *((name, json.dumps(job[name])) for name in ("spec", "plan") if job.get(name)),
    ]
    return show_table(console, ("", ""), rows)


def _cancel(options: argparse.Namespace, console: Console) -> int:
    with connected(options) as client:
        answers = [client.cancel(job) for job in options.job]
    if options.json:
        return show_json(answers)
    for answer in answers:
        console.print(f"job {answer['id']} is {answer['status']}", highlight=False)
    return 0


def _report(options: argparse.Namespace, console: Console) -> int:
    out = options.out
    form = "json" if out is None else out.suffix.lstrip(".") or "json"
    if form not in REPORT_FORMS:
        raise StartError(f"--out takes a name that ends in one of .{', .'.join(REPORT_FORMS)}")
    # The report alone on stdout, so that a script can take it.
    notes = Console(stderr=True) if options.json else console
    with connected(options) as client:
        data = client.report(options.job, form)
        proofs = None if options.certificate is None else client.certificate(options.job)
        shown = data if form == "json" or not options.json else client.report(options.job)
    if proofs is not None:
        options.certificate.parent.mkdir(parents=True, exist_ok=True)
        options.certificate.write_bytes(proofs)
        notes.print(f"certificate: {options.certificate}", highlight=False, markup=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
        notes.print(f"report: {out}", highlight=False, markup=False)
    if options.json:
        return show_json(json.loads(shown))
    if out is None:
        print_summary(console, json.loads(data))
    return 0
