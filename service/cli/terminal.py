"""What a person sees in a terminal: a progress bar while a job runs, then a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from service.contract.sweeps import value_text

__all__ = ["print_pareto", "print_summary", "progress_bar"]

#: Seconds between two plain lines of a job whose status does not change.
PLAIN_EVERY_S = 2.0


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback that shows the job records it is given; plain lines where there is no terminal."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        # The service's estimate: a viewer that connects late has not seen the job's rate.
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task("submitted", total=None, left="")

        def show(job: dict[str, Any]) -> None:
            state = job["progress"]
            progress.update(
                task,
                description=state.get("message") or job["status"],
                total=state.get("total"),
                completed=state.get("done") or 0,
                left=_left(state),
            )

        yield show


def _plain(console: Console) -> Callable[[dict[str, Any]], None]:
    last = status = ""
    due = 0.0

    def show(job: dict[str, Any]) -> None:
        nonlocal last, status, due
        state = job["progress"]
        total = state.get("total")
        counted = f" {state.get('done') or 0}/{total} {state.get('unit') or ''}" if total else ""
        line = f"{job['status']}: {state.get('message') or ''}{counted}"
        # A training has millions of steps: do not print a line for each.
        if line == last or (job["status"] == status and time.monotonic() < due):
            return
        left = _left(state)
        console.print(f"{line}, {left}" if left else line, highlight=False)
        last, status, due = line, job["status"], time.monotonic() + PLAIN_EVERY_S

    return show


def _left(state: dict[str, Any]) -> str:
    seconds = state.get("eta_s")
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


def print_summary(console: Console, report: dict[str, Any]) -> None:
    """Model, data, and per epsilon what is certified, attacked and undecided."""
    model, dataset, threat = report["model"], report["dataset"], report["threat"]
    console.print(
        f"[bold]{model.get('name') or model['id'][:19]}[/bold]: "
        f"{model['parameters']:,} parameters, {len(model['layers'])} layers; "
        f"{dataset['samples']} samples of {dataset['name']}; "
        f"norm {threat['norm']}, {report['soundness']}",
        highlight=False,
    )
    table = Table()
    for name in ("epsilon", "certified", "attacked", "clean", "undecided"):
        table.add_column(name, justify="right")
    for row in report["results"]:
        table.add_row(
            row.get("epsilon_exact") or f"{row['epsilon']:g}",
            _percent(row["certified_accuracy"]),
            _percent(row["attack_accuracy"]),
            _percent(report["clean_accuracy"]),
            str(row["undecided"]),
        )
    console.print(table)
    radius = report.get("radius")
    if radius:
        console.print(
            f"certified radius: mean {radius['mean']:.4g}, median {radius['median']:.4g}",
            highlight=False,
        )
    deciders = ", ".join(f"{name} {count}" for name, count in report["by_method"].items())
    console.print(f"decided by: {deciders}", highlight=False)
    timing = report["timing"]
    console.print(
        f"{timing['wall_s']:.1f} s, {timing['samples_per_s']:.1f} samples/s on {report['device']}",
        highlight=False,
    )


def print_pareto(console: Console, pareto: dict[str, Any]) -> None:
    """The models of a sweep: clean, attacked and certified accuracy, and which are on the front."""
    table = Table(title=f"{pareto['norm']} epsilon {pareto['epsilon_exact']}")
    table.add_column(pareto["parameter"])
    for name in ("clean", "attacked", "certified"):
        table.add_column(name, justify="right")
    table.add_column("front")
    for point in pareto["points"]:
        shares = (point[f"{name}_accuracy"] for name in ("clean", "attack", "certified"))
        front = "*" if point["on_front"] else ""
        table.add_row(value_text(point["value"]), *map(_percent, shares), front)
    console.print(table)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
