"""What the ranks of a training and their work horse say to each other: one JSON object a message.

From a rank: ``progress`` [steps done, of how many, message], ``epoch`` (the curve so far),
``checkpoint``, and at last ``end`` ("trained" or "paused") or ``failed`` (a ``Failure``). From the
work horse, to the first rank alone: ``pause``. Nothing is unpickled.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import torch

from workers.training.config import TrainingError
from workers.training.distributed.ranks import RanksLost

__all__ = ["Failure", "receive", "send"]


def send(connection: Connection, **message: object) -> None:
    """Send a message. Raises OSError where nobody is there to read it."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """The next message. Raises EOFError or OSError where the other process has ended."""
    return cast(dict[str, Any], json.loads(connection.recv_bytes()))


@dataclass(frozen=True)
class Failure:
    """Why a rank could not go on, as its work horse is to take it.

    kind: ``stated`` (an error with a code), ``system`` (an OSError, such as a full disk),
    ``device`` (its GPU failed), ``other``, or ``lost``: only that another rank did not answer.
    """

    kind: str
    text: str
    code: str = ""
    hint: str | None = None
    field: str | None = None
    number: int | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure that an exception is."""
        code, text = getattr(error, "code", None), str(error)
        if isinstance(code, str):
            hint, field = getattr(error, "hint", None), getattr(error, "field", None)
            return cls("stated", text, code, hint or None, field)
        if isinstance(error, RanksLost):
            return cls("lost", text)
        if isinstance(error, OSError):
            return cls("system", error.strerror or text, number=error.errno)
        if isinstance(error, torch.AcceleratorError):
            return cls("device", text)
        return cls("other", "".join(traceback.format_exception_only(error)).strip())

    def message(self) -> dict[str, object]:
        """As it is sent."""
        return asdict(self)

    def error(self, who: str) -> Exception:
        """What the work horse raises: as if it had trained itself. ``who``: rank 1 of 2, say."""
        match self.kind:
            case "stated":
                return TrainingError(self.code, self.text, hint=self.hint, field=self.field)
            case "system":
                return OSError(self.number, self.text)
            case "device":
                return torch.AcceleratorError(f"{who}: {self.text}")
        return RanksLost(f"{who}: {self.text}")
