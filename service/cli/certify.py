"""``certserve certify``: certify a model, follow the job, print what is proved."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli.local_service import started_service
from service.cli.remote.connection import show_json
from service.cli.spec_options import add_spec_options, spec_of
from service.cli.terminal import criterion_status, print_summary, progress_bar
from service.client import REPORT_FORMS, Client
from service.supervisor.instance_lock import StartError

__all__ = ["add_parser", "data_beside", "path_or_name"]


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add ``certify`` to the commands; ``data_dir`` is the default."""
    certify = commands.add_parser("certify", help="certify a model and print what is proved")
    certify.add_argument("model", help="a file (.onnx, .safetensors, .pt) or a model id")
    certify.add_argument(
        "--model-data",
        type=Path,
        action="append",
        help="a file in which an ONNX model keeps its tensors; one beside it is found by itself",
    )
    certify.add_argument(
        "--dataset", required=True, help="a file (.npz, .npy, .zip, idx, also .gz), a name or an id"
    )
    certify.add_argument("--dataset-labels", type=Path, help="labels of an idx or npy pair")
    add_spec_options(certify)
    certify.add_argument("--out", type=Path, help="where the report goes (.json .html .csv .svg)")
    certify.add_argument("--json", action="store_true", help="print the report, and no table")
    certify.add_argument("--url", default=os.environ.get("CERTSERVE_URL"))
    certify.add_argument("--key", default=os.environ.get("CERTSERVE_KEY"))
    certify.add_argument("--data-dir", type=Path, default=data_dir)
    certify.set_defaults(run=_certify)


def _certify(options: argparse.Namespace, console: Console) -> int:
    spec = spec_of(options)
    suffix = "json" if options.out is None else options.out.suffix.lstrip(".") or "json"
    if suffix not in REPORT_FORMS:
        raise StartError(f"--out takes a name that ends in one of .{', .'.join(REPORT_FORMS)}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    # The report alone on stdout, so that a script can take it.
    notes = Console(stderr=True) if options.json else console
    with ExitStack() as stack:
        url = options.url or stack.enter_context(started_service(options.data_dir))
        client = stack.enter_context(Client(url, key=options.key))
        model = path_or_name(options.model)
        job = client.certify(
            model,
            path_or_name(options.dataset),
            spec,
            dataset_labels=options.dataset_labels,
            model_data=options.model_data or data_beside(model),
        )
        try:
            with progress_bar(notes) as show:
                client.wait(job["id"], on_progress=show)
        except KeyboardInterrupt:
            # The user no longer waits: without this the job would go on, now or after a restart.
            client.cancel(job["id"])
            notes.print(f"job {job['id']} is cancelled", highlight=False)
            raise
        report = json.loads(client.report(job["id"]))
        if options.json:
            show_json(report)
        else:
            print_summary(console, report)
        if options.out is not None:
            options.out.write_bytes(client.report(job["id"], suffix))
            notes.print(f"report: {options.out}", highlight=False, markup=False)
    return criterion_status(report)


def data_beside(model: Path | str) -> list[Path]:
    """The files beside an ONNX file in which it says that its tensors lie."""
    if isinstance(model, str) or model.suffix.lower() != ".onnx":
        return []
    content = model.read_bytes()
    found = []
    for path in sorted(model.parent.iterdir()):
        name = path.name.encode()
        # An entry of two texts, as protobuf writes it: "location", then the file's name.
        entry = b"\x0a\x08location\x12" + bytes([len(name) & 0x7F]) + name
        if len(name) < 128 and entry in content and path.is_file():
            found.append(path)
    return found


def path_or_name(text: str) -> Path | str:
    """A file to upload, or the name or id of what the service has."""
    path = Path(text)
    if path.is_file():
        return path
    if path.suffix or "/" in text:
        raise StartError(f"there is no file {text}")
    return text
