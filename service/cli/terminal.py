"""What a person sees in a terminal: a progress bar while a job runs, then what is proved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from service.cli.exit_status import NO, YES
from service.contract.sweeps import value_text
from service.reports.axes import percent, radius_text
from service.reports.epsilon_names import epsilon_names
from service.reports.evidence import criterion
from service.reports.words.advice import advice, in_terminal, in_verify
from service.reports.words.counted import counted
from service.reports.words.stated_property import stated_property

__all__ = [
    "criterion_status",
    "print_cascade",
    "print_pareto",
    "print_summary",
    "printable",
    "progress_bar",
]

#: Seconds between two plain lines of a job whose status does not change.
PLAIN_EVERY_S = 2.0


def printable(text: str) -> str:
    """Text from elsewhere without what a terminal would obey: no control characters."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "�" for sign in text)


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback that shows the job records it is given; plain lines where there is no terminal."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
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
                description=printable(state.get("message") or job["status"]),
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
        line = printable(f"{job['status']}: {state.get('message') or ''}{counted}")
        # A training has millions of steps: do not print a line for each.
        if line == last or (job["status"] == status and time.monotonic() < due):
            return
        left = _left(state)
        console.print(f"{line}, {left}" if left else line, highlight=False, markup=False)
        last, status, due = line, job["status"], time.monotonic() + PLAIN_EVERY_S

    return show


def _left(state: dict[str, Any]) -> str:
    seconds = state.get("eta_s")
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


def print_summary(console: Console, report: dict[str, Any]) -> None:
    """What a report says: of samples per epsilon what is certified, attacked and undecided, of a
    property the verdict; then warnings and the criterion."""
    if report.get("property") is None:
        _print_accuracies(console, report)
    else:
        _print_verdict(console, report)
    told = advice(report, in_terminal if report.get("property") is None else in_verify)
    if told:
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    for warning in report.get("warnings") or ():
        console.print(f"warning: {printable(warning)}", highlight=False, markup=False)
    _print_criterion(console, report)


def _print_criterion(console: Console, report: dict[str, Any]) -> None:
    found = criterion(report)
    if found is not None:
        verdict = "[bold]PASS[/bold]" if found["met"] else "[bold]FAIL[/bold]"
        reached = "" if found["reached"] is None else f"; reached {_percent(found['reached'], 2)}"
        console.print(
            f"criterion: {verdict}, at least {_percent(found['demanded'], 2)} certified at "
            f"epsilon {found['epsilon']}{reached}",
            highlight=False,
        )


def criterion_status(report: dict[str, Any]) -> int:
    """The exit status of a command that computed the report: ``NO`` where it misses its
    criterion."""
    found = criterion(report)
    return YES if found is None or found["met"] else NO


def _print_accuracies(console: Console, report: dict[str, Any]) -> None:
    model, dataset, threat = report["model"], report["dataset"], report["threat"]
    console.print(
        f"[bold]{_name(model)}[/bold]: "
        f"{model['parameters']:,} parameters, {counted(len(model['layers']), 'layer')}; "
        f"{counted(dataset['samples'], 'sample')} of {_named(dataset['name'])}; "
        f"norm {threat['norm']}, {_soundness(report)}",
        highlight=False,
    )
    made_of = model.get("rewritten_from")
    if made_of:
        console.print(
            f"certified is the rewritten file {model['id']}, not the uploaded one: "
            f"GET /models/{model['id']}/onnx",
            highlight=False,
            soft_wrap=True,
        )
    table = Table()
    for name in ("epsilon", "certified", "attacked", "clean", "undecided"):
        table.add_column(name, justify="right")
    for name, row in zip(epsilon_names(report), report["results"], strict=True):
        table.add_row(
            name,
            _percent(row["certified_accuracy"]),
            _percent(
                row["attack_accuracy"], up=row["attack_accuracy"] != row["certified_accuracy"]
            ),
            _percent(report["clean_accuracy"]),
            str(row["undecided"]),
        )
    console.print(table)
    radius = report.get("radius")
    if radius:
        console.print(
            f"certified radius: mean {radius_text(radius['mean'])}, "
            f"median {radius_text(radius['median'])}",
            highlight=False,
        )
    deciders = ", ".join(f"{name} {count}" for name, count in report["by_method"].items())
    console.print(f"decided by: {deciders}", highlight=False)
    timing = report["timing"]
    console.print(
        f"{timing['wall_s']:.1f} s, {timing['samples_per_s']:.1f} samples/s on {report['device']}",
        highlight=False,
    )
    if report.get("budget_spent"):
        console.print("the time was over before every sample was decided", highlight=False)


def print_pareto(console: Console, pareto: dict[str, Any]) -> None:
    """The models of a sweep: clean, attacked and certified accuracy, and which are on the front."""
    table = Table(title=f"{pareto['norm']} epsilon {pareto['epsilon_exact']}")
    table.add_column(pareto["parameter"])
    for name in ("clean", "attacked", "certified"):
        table.add_column(name, justify="right")
    table.add_column("front")
    for point in pareto["points"]:
        shares = (
            _percent(point[f"{name}_accuracy"], up=name == "attack")
            for name in ("clean", "attack", "certified")
        )
        front = "*" if point["on_front"] else ""
        table.add_row(value_text(point["value"]), *shares, front)
    console.print(table)


def print_cascade(console: Console, cascade: dict[str, Any]) -> None:
    """A cascade of networks at each epsilon: what is estimated, what is proved, who answers."""
    table = Table(title=f"cascade of {len(cascade['stages'])}, {cascade['norm']}")
    for name in ("epsilon", "clean", "CAP's protocol (ESTIMATE)", "certified", "answered by stage"):
        table.add_column(name, justify="right")
    for name, row in zip(epsilon_names(cascade), cascade["results"], strict=True):
        shares = (row[f"{name}_accuracy"] for name in ("clean", "protocol", "certified"))
        counts = [f"{stage}: {count}" for stage, count in enumerate(row["answered"], 1)]
        answered = ", ".join([*counts, f"none certified: {row['uncertified']}"])
        table.add_row(name, *map(_percent, shares), answered)
    console.print(table)
    _print_criterion(console, cascade)
    for warning in cascade["warnings"]:
        console.print(_named(warning), highlight=False)


def _print_verdict(console: Console, report: dict[str, Any]) -> None:
    found = report["property"]
    by = "" if found["verdict"] == "unknown" else f"by {found['method']}, "
    console.print(
        f"[bold]{found['verdict']}[/bold]: {_named(found['name'])} on {_name(report['model'])}, "
        f"{by}{_soundness(report)} "
        f"({found['proved']} of {counted(found['boxes'], 'box', 'boxes')} proved, "
        f"{report['timing']['wall_s']:.1f} s)",
        highlight=False,
    )
    _print_stated(console, report)
    if report.get("budget_spent"):
        console.print("the time was over before there was an answer", highlight=False)


def _print_stated(console: Console, report: dict[str, Any]) -> None:
    """The intervals and the unsafe condition of each box that the report writes out."""
    boxes, more = stated_property(report)
    for box in boxes:
        lines = [f"{box.title}:"] if box.title else []
        lines += [f"  {interval}" for interval in box.intervals]
        lines += [f"  {box.more}"] if box.more else []
        lines += [f"  unsafe if {box.unsafe}"]
        for line in lines:
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    if more:
        console.print(f"and {more}", highlight=False, markup=False)


def _name(model: dict[str, Any]) -> str:
    return _named(model.get("name") or model["id"][:19])


def _named(name: str | None) -> str:
    return escape(printable(str(name)))


def _soundness(report: dict[str, Any]) -> str:
    sound = report["soundness"] == "sound"
    return "sound" if sound else "[bold]ESTIMATE, NOT A PROOF[/bold]"


def _percent(share: float | None, digits: int = 1, *, up: bool = False) -> str:
    return "-" if share is None else percent(share, digits, up=up)
