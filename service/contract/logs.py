"""How every process logs: text, or one JSON object per line (CERTSERVE_LOG_FORMAT).

The ``job_id`` of a line is found among its arguments. Anything that looks like a key or a password
is masked in every line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Literal

from service.contract.ids import is_job_id
from service.contract.times import rfc3339

__all__ = ["configure_logging"]

#: Secrets: our keys, bearer tokens, passwords in addresses.
_SECRETS = (
    (re.compile(r"crt_[a-z2-7]{10}_[A-Za-z0-9_-]+"), "crt_***"),
    (re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]+"), r"\1***"),
    (re.compile(r"(://[^\s:/@]*):[^\s@/]+@"), r"\1:***@"),
)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _without_secrets(super().format(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        job_id = _job_of(record)
        if job_id is not None:
            line["job_id"] = job_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _without_secrets(json.dumps(line, ensure_ascii=False))


def configure_logging(style: Literal["text", "json"], *, level: int = logging.INFO) -> None:
    """Log to stderr from now on, uvicorn and RQ included, with their chatter reduced."""
    handler = logging.StreamHandler(sys.stderr)
    text = _Text("%(asctime)s %(name)s %(levelname)s %(message)s")
    handler.setFormatter(_Json() if style == "json" else text)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    # RQ logs too much, and httpx logs whole addresses: those of webhooks may hold secrets.
    for name in ("rq.worker", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def _job_of(record: logging.LogRecord) -> str | None:
    arguments = record.args if isinstance(record.args, tuple) else ()
    for argument in arguments:
        # The id of a wake-up job begins with the job's id.
        if isinstance(argument, str) and is_job_id(argument[:26]):
            return argument[:26]
    return None


def _without_secrets(text: str) -> str:
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
