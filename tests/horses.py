"""Finds the work horses among what a worker has started."""

from __future__ import annotations

from pathlib import Path

from service.contract.processes import ProcessId

__all__ = ["children_of", "horses_of", "template_of"]


def children_of(pid: int) -> list[int]:
    """The living children of a process' main thread."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split() if ProcessId.of(int(child)) is not None]


def template_of(worker: int) -> int | None:
    """The process that a worker's horses are forked from."""
    return next((child for child in children_of(worker) if _is_template(child)), None)


def horses_of(worker: int) -> list[int]:
    """The horses of a worker: forked from its template, or fresh interpreters."""
    template = template_of(worker)
    fresh = [child for child in children_of(worker) if child != template]
    return fresh + ([] if template is None else children_of(template))


def _is_template(pid: int) -> bool:
    try:
        return b"workers.jobs.runtime.template" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
