"""Server-sent events that carry parts of pages."""

from __future__ import annotations

__all__ = ["STREAM_HEADERS", "event"]

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event(name: str, html: str) -> str:
    """One event; the browser joins the lines of its data again."""
    data = "".join(f"data: {line}\n" for line in html.splitlines() or [""])
    return f"event: {name}\n{data}\n"
