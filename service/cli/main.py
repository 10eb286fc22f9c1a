"""The command line: serve, worker, certify, train, demo, keys. Exit status 0, 1 or 2 (usage)."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError
from rich.console import Console

from service.cli import keys, train
from service.cli.demo import run_demo
from service.cli.keys import ring_of
from service.cli.local_service import started_service
from service.cli.settings_check import explain, unknown_settings
from service.cli.terminal import print_summary, progress_bar
from service.client import Client, ServiceError
from service.contract.logs import configure_logging
from service.contract.processes import python_module
from service.contract.schemas.problems import Problem
from service.contract.settings import Settings
from service.supervisor.embedded_redis import RedisServerError
from service.supervisor.instance_lock import StartError, running_service
from service.supervisor.supervisor import Supervisor, is_loopback

__all__ = ["main"]

logger = logging.getLogger(__name__)

#: Forms of a report, as file names end.
REPORTS = ("json", "html", "csv", "svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``certserve``."""
    try:
        options = _parser().parse_args(arguments)
        console = Console(stderr=options.command == "serve")
        status: int = options.run(options, console)
    except (StartError, RedisServerError, ServiceError, Problem, TimeoutError, OSError) as error:
        print(f"certserve: {error}", file=sys.stderr)
        return 1
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        print(f"certserve: {explain(error)}", file=sys.stderr)
        return 1
    except httpx.HTTPError as error:
        print(f"certserve: the service does not answer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    settings = Settings()
    parser = argparse.ArgumentParser(prog="certserve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the service until it is told to stop")
    serve.add_argument("--host", default=settings.host)
    serve.add_argument(
        "--port", type=_count(65535), default=settings.port, help="0 takes a free one"
    )
    serve.add_argument("--data-dir", type=Path, default=settings.data_dir)
    serve.add_argument("--workers", type=_count(1000), default=1)
    serve.set_defaults(run=_serve)

    worker = commands.add_parser("worker", help="run one more worker for a service")
    worker.add_argument("--data-dir", type=Path, default=settings.data_dir)
    worker.set_defaults(run=_worker)

    certify = commands.add_parser("certify", help="certify a model and print what is proved")
    certify.add_argument("model", help="a file (.onnx, .safetensors, .pt) or a model id")
    certify.add_argument("--dataset", required=True, help="a file (.npz, .zip), a name or an id")
    certify.add_argument("--dataset-labels", type=Path, help="labels of an idx pair")
    certify.add_argument("--norm", choices=("l2", "linf"), required=True)
    certify.add_argument(
        "--epsilon", action="append", required=True, help="36/255 or 0.5; may be repeated"
    )
    certify.add_argument("--method", default="auto")
    certify.add_argument("--samples", type=_samples, help="a number or 'all'")
    certify.add_argument("--architecture", help="of a state dict: a name or a JSON layer list")
    certify.add_argument("--spec", default="{}", help="further members of the spec, as JSON")
    certify.add_argument("--out", type=Path, help="where the report goes (.json .html .csv .svg)")
    certify.add_argument("--url", default=os.environ.get("CERTSERVE_URL"))
    certify.add_argument("--key", default=os.environ.get("CERTSERVE_KEY"))
    certify.add_argument("--data-dir", type=Path, default=settings.data_dir)
    certify.set_defaults(run=_certify)

    train.add_parser(commands, settings.data_dir)

    demo = commands.add_parser("demo", help="certify the example network, start to end")
    demo.add_argument("--data-dir", type=Path, default=None, help="default: a temporary folder")
    demo.add_argument("--out", type=Path, default=Path("out/demo"))
    demo.set_defaults(run=_demo)
    keys.add_parser(commands, settings.data_dir)
    return parser


def _count(most: int) -> Callable[[str], int]:
    """A number from 0 to ``most``, as argparse wants it."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {most}")
        return int(text)

    return parse


def _serve(options: argparse.Namespace, console: Console) -> int:
    settings = Settings(data_dir=options.data_dir)
    given = tuple(key.get_secret_value() for key in settings.keys)
    ring = ring_of(options.data_dir, given)  # raises where a given key is too short
    configure_logging(settings.log_format)
    for warning in unknown_settings():
        logger.warning("%s", warning)
    if not is_loopback(options.host) and not ring.configured:
        raise StartError(
            f"{options.host} is no loopback address and no API key is configured; "
            f"certserve keys create NAME --data-dir {options.data_dir}, or bind 127.0.0.1"
        )
    supervisor = Supervisor(
        data_dir=options.data_dir,
        host=options.host,
        port=options.port,
        workers=options.workers,
        settings=settings,
    )
    return supervisor.run()


def _worker(options: argparse.Namespace, console: Console) -> int:
    """Become a worker: of CERTSERVE_REDIS_URL, else of the service on the data directory."""
    environment = {**os.environ, "CERTSERVE_DATA_DIR": str(options.data_dir.absolute())}
    if Settings().redis_url is None:
        running = running_service(options.data_dir)
        if running is None:
            raise StartError(
                f"no service runs on {options.data_dir}; set CERTSERVE_REDIS_URL or --data-dir"
            )
        environment["CERTSERVE_REDIS_URL"] = running["redis_url"]
    command = python_module("workers.jobs.runtime.worker")
    os.execve(command[0], command, environment)


def _certify(options: argparse.Namespace, console: Console) -> int:
    spec = _spec(options)
    suffix = "json" if options.out is None else options.out.suffix.lstrip(".") or "json"
    if suffix not in REPORTS:
        raise StartError(f"--out takes a name that ends in one of .{', .'.join(REPORTS)}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        url = options.url or stack.enter_context(started_service(options.data_dir))
        client = stack.enter_context(Client(url, key=options.key))
        job = client.certify(
            _path_or_name(options.model),
            _path_or_name(options.dataset),
            spec,
            dataset_labels=options.dataset_labels,
        )
        try:
            with progress_bar(console) as show:
                client.wait(job["id"], on_progress=show)
        except KeyboardInterrupt:
            # Nobody waits for it any more; left alone it would go on, here or with the next start.
            client.cancel(job["id"])
            console.print(f"job {job['id']} is cancelled", highlight=False)
            raise
        report = json.loads(client.report(job["id"]))
        print_summary(console, report)
        if options.out is not None:
            options.out.write_bytes(client.report(job["id"], suffix))
            console.print(f"report: {options.out}", highlight=False)
    return 0


def _spec(options: argparse.Namespace) -> dict[str, Any]:
    try:
        spec: dict[str, Any] = json.loads(options.spec)
        architecture = options.architecture
        if architecture is not None and architecture.lstrip().startswith(("{", "[")):
            architecture = json.loads(architecture)
    except ValueError as error:
        raise StartError(f"--spec and --architecture take JSON: {error}") from error
    spec |= {"norm": options.norm, "epsilons": options.epsilon, "method": options.method}
    if architecture is not None:
        spec["architecture"] = architecture
    if options.samples is not None:
        spec["samples"] = options.samples
    return spec


def _samples(text: str) -> int | str:
    return text if text == "all" else int(text)


def _path_or_name(text: str) -> Path | str:
    """A file to upload, or the name or id of what the service has."""
    path = Path(text)
    if path.is_file():
        return path
    if path.suffix or "/" in text:
        raise StartError(f"there is no file {text}")
    return text


def _demo(options: argparse.Namespace, console: Console) -> int:
    run_demo(console, data_dir=options.data_dir, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
