"""The command line: one module per command; ``exit_status`` says how commands end."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import httpx
from pydantic import ValidationError
from rich.console import Console

from service.cli import certify, demo, keys, serve, train, worker
from service.cli.checks import doctor, verify, verify_report
from service.cli.exit_status import FAILED, INTERRUPTED
from service.cli.remote import jobs, methods, uploads
from service.cli.settings_check import explain
from service.cli.spec_options import one_by_one
from service.client import ServiceError
from service.contract.schemas.problems import Problem
from service.contract.settings import Settings
from service.supervisor.embedded_redis import RedisServerError
from service.supervisor.instance_lock import StartError

__all__ = ["main"]

_ABOUT = "Certify classifiers: for every sample a radius inside which no input changes the answer."

#: Commands with an option that takes several epsilons.
EPSILONS = {"certify": "--epsilon", "train": "--certify-epsilon"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``certserve``."""
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        if given and given[0] in EPSILONS:
            given = one_by_one(given, EPSILONS[given[0]])
        options = _parser().parse_args(given)
        console = Console(stderr=options.command == "serve")
        with _stopped_by(signal.SIGTERM, options.command):
            status: int = options.run(options, console)
    except (StartError, RedisServerError, ServiceError, Problem, TimeoutError, OSError) as error:
        print(f"certserve: {error}", file=sys.stderr)
        return FAILED
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        print(f"certserve: {explain(error)}", file=sys.stderr)
        return FAILED
    except httpx.HTTPError as error:
        print(f"certserve: the service does not answer: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


@contextmanager
def _stopped_by(number: signal.Signals, command: str) -> Iterator[None]:
    """What ends a command from outside (``timeout``, a scheduler) is to it what Ctrl-C is: a job
    for which nobody waits any longer does not go on. Servers and workers do so by themselves."""
    if command in ("serve", "worker"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before)


def _parser() -> argparse.ArgumentParser:
    settings = Settings()
    parser = argparse.ArgumentParser(prog="certserve", description=_ABOUT)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve.add_parser(commands, settings)
    for command in (worker, certify, verify, train, verify_report, jobs, uploads):
        command.add_parser(commands, settings.data_dir)
    for alone in (demo, methods, doctor):
        alone.add_parser(commands)
    keys.add_parser(commands, settings.data_dir)
    return parser


if __name__ == "__main__":
    sys.exit(main())
