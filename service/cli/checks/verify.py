"""``certserve verify``: whether a VNN-LIB property of a model holds.

Exit status 0: it holds; 1: it is violated; 3: neither was found out. With ``--vnncomp`` 0 for every
answer, which is the printed word; what gets no answer prints ``error``, says why on stderr and ends
with 2 as ever.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli.certify import path_or_name
from service.cli.exit_status import NO, OPEN, YES
from service.cli.local_service import started_service
from service.cli.remote.connection import show_json
from service.cli.spec_options import add_model_options, further_members, model_members
from service.cli.terminal import print_summary, progress_bar
from service.client import Client
from service.supervisor.instance_lock import StartError

__all__ = ["add_parser", "competition_words", "spec_of"]

#: The competition's words for what is known.
WORDS = {"holds": "unsat", "violated": "sat"}
STATUS = {"holds": YES, "violated": NO, "unknown": OPEN}


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add ``verify`` to the commands; ``data_dir`` is the default."""
    verify = commands.add_parser("verify", help="verify a VNN-LIB property of a model")
    verify.add_argument("model", help="a file (.onnx, .safetensors, .pt) or a model id")
    verify.add_argument("property", type=Path, help="a file (.vnnlib)")
    verify.add_argument("--timeout", type=float, metavar="S", help="worker seconds")
    verify.add_argument("--method", default="auto")
    add_model_options(verify)
    verify.add_argument("--spec", default="{}", help="further members of the spec, as JSON")
    verify.add_argument(
        "--vnncomp",
        action="store_true",
        help="print unsat, sat (and the counterexample), timeout, unknown or error",
    )
    verify.add_argument("--json", action="store_true", help="print the report")
    verify.add_argument("--out", type=Path, help="where the report goes (.json .html)")
    verify.add_argument("--url", default=os.environ.get("CERTSERVE_URL"))
    verify.add_argument("--key", default=os.environ.get("CERTSERVE_KEY"))
    verify.add_argument("--data-dir", type=Path, default=data_dir)
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace, console: Console) -> int:
    try:
        return _answer(options, console)
    except Exception:
        if options.vnncomp:
            print("error")
        raise


def _answer(options: argparse.Namespace, console: Console) -> int:
    suffix = "json" if options.out is None else options.out.suffix.lstrip(".")
    if suffix not in ("json", "html"):
        raise StartError("--out takes a name that ends in .json or .html")
    if not options.property.is_file():
        raise StartError(f"there is no file {options.property}")
    spec = spec_of(options)
    # The verdict alone on stdout, so that a script can take it.
    notes = Console(stderr=True) if options.vnncomp or options.json else console
    with ExitStack() as stack:
        url = options.url or stack.enter_context(started_service(options.data_dir))
        client = stack.enter_context(Client(url, key=options.key))
        job = client.verify(path_or_name(options.model), options.property, spec)
        try:
            with progress_bar(notes) as show:
                client.wait(job["id"], on_progress=show)
        except KeyboardInterrupt:
            client.cancel(job["id"])
            notes.print(f"job {job['id']} is cancelled", highlight=False)
            raise
        report = json.loads(client.report(job["id"]))
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_bytes(client.report(job["id"], suffix))
            notes.print(f"report: {options.out}", highlight=False, markup=False)
    if options.vnncomp:
        print(competition_words(report))
        return YES
    if options.json:
        show_json(report)
    else:
        print_summary(console, report)
    return STATUS[report["property"]["verdict"]]


def spec_of(options: argparse.Namespace) -> dict[str, Any]:
    """The spec, as JSON has it. Raises StartError that names the option at fault."""
    spec = further_members(options.spec) | {"method": options.method} | model_members(options)
    if options.timeout is not None:
        spec["time_budget_s"] = options.timeout
    return spec


def competition_words(report: dict[str, Any]) -> str:
    """``unsat``, ``sat`` with the counterexample in the lines after it, ``timeout`` or
    ``unknown``."""
    found = report["property"]
    word = WORDS.get(found["verdict"]) or ("timeout" if report["budget_spent"] else "unknown")
    point = found["counterexample"]
    if point is None:
        return word
    rows = [f"(X_{place} {value!r})" for place, value in enumerate(point["x"])]
    rows += [f"(Y_{place} {value!r})" for place, value in enumerate(point["y"])]
    return "\n".join([word, "(" + "\n".join(rows) + ")"])
