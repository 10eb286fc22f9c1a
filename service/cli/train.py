"""``certserve train``: submit a training, follow it, keep the model and its report."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from service.cli.certify import path_or_name
from service.cli.exit_status import YES
from service.cli.local_service import started_service
from service.cli.remote.connection import show_json
from service.cli.terminal import (
    criterion_status,
    print_cascade,
    print_pareto,
    print_summary,
    progress_bar,
)
from service.client import REPORT_FORMS, Client, JobFailed
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.sweeps import value_text
from service.supervisor.instance_lock import StartError

__all__ = ["add_parser"]


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add ``train`` to the commands."""
    train = commands.add_parser("train", help="train a classifier that can be certified")
    train.add_argument("--method", choices=tuple(TRAINING_METHODS), required=True)
    train.add_argument(
        "--dataset", required=True, help="a file (.npz, .npy, .zip), a registered name or an id"
    )
    train.add_argument("--dataset-labels", type=Path, help="labels of an idx or npy pair")
    train.add_argument(
        "--test-dataset",
        help="what the report is made on, as --dataset; default: the test split, or a tenth",
    )
    train.add_argument(
        "--epsilon",
        required=True,
        help="what is trained for: 36/255 or 1.58, in pixel units (of a network that normalises, "
        "too: that is a layer of its architecture)",
    )
    train.add_argument(
        "--certify-epsilon",
        action="append",
        help="of the report, one or several: 36/255 72/255; default: --epsilon alone",
    )
    train.add_argument("--norm", choices=("l2", "linf"), help="default: the method's")
    train.add_argument("--recipe", default="fast", help="fast, paper or JSON hyperparameters")
    train.add_argument("--architecture", help="a name or JSON; default: the recipe's")
    train.add_argument("--activation")
    train.add_argument("--epochs", type=int)
    train.add_argument("--batch-size", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--devices", type=int, help="GPUs (or CPU processes) that share each batch")
    train.add_argument(
        "--sweep", metavar="NAME=VALUE,...", help="a model for each value: alpha=0.1,0.2"
    )
    train.add_argument("--certify", help="spec of the certification as JSON; null: none")
    train.add_argument("--out", type=Path, default=Path("out/train"), help="folder of the results")
    train.add_argument("--json", action="store_true", help="print job and report, and no table")
    train.add_argument("--url", default=os.environ.get("CERTSERVE_URL"))
    train.add_argument("--key", default=os.environ.get("CERTSERVE_KEY"))
    train.add_argument("--data-dir", type=Path, default=data_dir)
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace, console: Console) -> int:
    request = _request(options)
    notes = Console(stderr=True) if options.json else console
    status, report = YES, None
    with ExitStack() as stack:
        url = options.url or stack.enter_context(started_service(options.data_dir))
        client = stack.enter_context(Client(url, key=options.key))
        _upload_data(client, options, request)
        job = client.train(request)
        try:
            with progress_bar(notes) as show:
                done = client.wait(job["id"], on_progress=show)
        except KeyboardInterrupt:
            where = options.url or f"the next service on {options.data_dir}"
            notes.print(f"job {job['id']} is not cancelled: it goes on at {where}", soft_wrap=True)
            raise
        except JobFailed as failure:
            if failure.job["model_id"] is None:
                raise
            # The certification failed, but the trained model exists: keep it.
            _keep_model(client, failure.job, options.out)
            notes.print(
                f"trained, but not certified; model and curve: {options.out}", soft_wrap=True
            )
            raise
        if done["models"] is not None:
            status = _keep_sweep(client, done, options.out, notes)
            if options.json:
                show_json({"job": done, "report": None})
            return status
        _keep_model(client, done, options.out)
        if done["links"]["report"] is not None:
            _keep_report(client, job["id"], options.out)
            report = json.loads((options.out / "report.json").read_text())
            status = criterion_status(report)
    if options.json:
        show_json({"job": done, "report": report})
    elif report is not None:
        print_summary(console, report)
    what = "model and curve" if report is None else "model, curve and report"
    notes.print(f"{what}: {options.out}", highlight=False, markup=False)
    return status


def _upload_data(client: Client, options: argparse.Namespace, request: dict[str, Any]) -> None:
    """Put the ids of uploads in the place of files that were named."""
    for name, labels in (("dataset", options.dataset_labels), ("test_dataset", None)):
        what = path_or_name(request[name]) if name in request else ""
        if isinstance(what, Path):
            request[name] = client.upload_dataset(what, labels=labels)["id"]


def _keep_model(client: Client, job: dict[str, Any], folder: Path) -> None:
    """Model, weights and curve of a job that trained to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(client.model_file(job["model_id"], "onnx"))
    (folder / "weights.safetensors").write_bytes(client.model_file(job["model_id"], "weights"))
    (folder / "training.json").write_text(json.dumps(client.training(job["id"]), indent=1))
    (folder / "training.svg").write_bytes(client.training_chart(job["id"]))


def _keep_report(client: Client, job_id: str, folder: Path) -> None:
    for suffix in REPORT_FORMS:
        (folder / f"report.{suffix}").write_bytes(client.report(job_id, suffix))


def _keep_sweep(client: Client, job: dict[str, Any], folder: Path, console: Console) -> int:
    """A folder for each model, by its place among the values, and their comparison; of a cascade
    what its stages come to together. The exit status: of a sweep ``NO`` where every model misses
    the criterion, of a cascade where what is proved of the whole does."""
    statuses = []
    folder.mkdir(parents=True, exist_ok=True)
    name = job["plan"].get("sweep", {"name": "stage"})["name"]
    for place, model in enumerate(job["models"]):
        value = f"{name} = {value_text(model['value'])}"
        own = folder / str(place)
        if model["error"] is not None:
            console.print(f"{value}: {model['error']['detail']}", highlight=False)
            continue
        run = client.job(model["links"]["self"].rpartition("/")[2])
        _keep_model(client, run, own)
        if model["links"]["report"] is not None:
            _keep_report(client, run.id, own)
            statuses.append(criterion_status(json.loads((own / "report.json").read_text())))
        console.print(f"{value}: {own}", highlight=False)
    if job["links"]["cascade"] is not None:
        (folder / "cascade.json").write_bytes(client.cascade(job["id"]))
        cascade = json.loads((folder / "cascade.json").read_text())
        print_cascade(console, cascade)
        return criterion_status(cascade)
    if job["links"]["pareto"] is not None:
        suffixes: tuple[Literal["json", "html", "svg"], ...] = ("json", "html", "svg")
        for suffix in suffixes:
            (folder / f"pareto.{suffix}").write_bytes(client.pareto(job["id"], suffix))
        print_pareto(console, json.loads((folder / "pareto.json").read_text()))
    return min(statuses, default=YES)


def _sweep(text: str) -> dict[str, list[Any]]:
    """``alpha=0.1,0.2`` or ``name=[...]``, as JSON has it. Raises StartError."""
    name, sign, values = text.partition("=")
    if not sign or not values:
        raise StartError("--sweep is NAME=VALUE,VALUE, as in alpha=0.1,0.2")
    if values.lstrip().startswith("["):
        return {name.strip(): _json(values, "--sweep")}
    return {name.strip(): [_plain(value.strip()) for value in values.split(",")]}


def _plain(text: str) -> Any:
    """A number, true, false or null; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _request(options: argparse.Namespace) -> dict[str, Any]:
    """The body of POST /train."""
    request: dict[str, Any] = {
        "method": options.method,
        "dataset": options.dataset,
        "epsilon": options.epsilon,
        "seed": options.seed,
        "recipe": _json_or_name(options.recipe),
    }
    for name in (
        *("norm", "test_dataset", "activation", "epochs", "batch_size", "learning_rate"),
        "devices",
    ):
        if getattr(options, name) is not None:
            request[name] = getattr(options, name)
    if options.architecture is not None:
        request["architecture"] = _json_or_name(options.architecture)
    if options.sweep is not None:
        request["sweep"] = _sweep(options.sweep)
    if options.certify is not None:
        request["certify"] = _json(options.certify, "--certify")
    if options.certify_epsilon is not None:
        members = request.get("certify", {})
        if not isinstance(members, dict):
            raise StartError("--certify-epsilon needs a report: leave --certify null out")
        request["certify"] = members | {"epsilons": options.certify_epsilon}
    return request


def _json_or_name(text: str) -> Any:
    return _json(text, "JSON") if text.lstrip().startswith("{") else text


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise StartError(f"{what} is not JSON: {error}") from error
