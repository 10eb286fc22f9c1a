"""``certserve upload``, ``models`` and ``datasets``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from service.cli.remote.connection import add_connection, connected, show_json, show_table
from service.supervisor.instance_lock import StartError

__all__ = ["add_parser", "kind_of"]

Kind = Literal["model", "dataset"]

#: What a file is, by the end of its name.
KINDS: dict[str, Kind] = {
    **dict.fromkeys((".onnx", ".safetensors", ".pt", ".pth"), "model"),
    **dict.fromkeys((".npz", ".zip", ".gz"), "dataset"),
}


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add the commands; ``data_dir`` is the default."""
    upload = commands.add_parser("upload", help="upload a model or a data set; prints its id")
    upload.add_argument("file", type=Path)
    upload.add_argument("--kind", choices=("model", "dataset"), help="default: by the file's name")
    upload.add_argument("--labels", type=Path, help="labels of an idx or npy pair")
    upload.add_argument("--name", help="a data set's name is what a spec may call it")
    upload.set_defaults(run=_upload)
    models = commands.add_parser("models", help="list the uploaded and trained models")
    models.set_defaults(run=_list, collection="models")
    datasets = commands.add_parser("datasets", help="list the uploaded data sets")
    datasets.set_defaults(run=_list, collection="datasets")
    for command in (models, datasets):
        command.add_argument("--limit", type=int, default=20, help="how many, up to 200")
    for command in (upload, models, datasets):
        add_connection(command, data_dir)


def kind_of(path: Path) -> Kind:
    """Whether a file is a model or a data set. Raises StartError."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise StartError(
            f"is {path.name} a model or a data set? Say --kind model or --kind dataset"
        )
    return kind


def _upload(options: argparse.Namespace, console: Console) -> int:
    if not options.file.is_file():
        raise StartError(f"there is no file {options.file}")
    kind = options.kind or kind_of(options.file)
    with connected(options) as client:
        if kind == "model":
            record = client.upload_model(options.file, name=options.name)
        else:
            record = client.upload_dataset(options.file, name=options.name, labels=options.labels)
    if options.json:
        return show_json(record)
    # The id alone on stdout, so that a script can take it.
    print(record["id"])
    return 0


def _list(options: argparse.Namespace, console: Console) -> int:
    with connected(options) as client:
        page = client.records(options.collection, limit=options.limit)
    if options.json:
        return show_json(page)
    rows = [
        (record["id"], record.get("format") or "", ", ".join(record["names"]),
         f"{record['size']:,}", record["created_at"])
        for record in page["items"]
    ]  # fmt: skip
    return show_table(console, ("id", "format", "names", "bytes", "created"), rows)
