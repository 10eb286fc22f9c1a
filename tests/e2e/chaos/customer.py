"""Somebody who submits jobs to a service that keeps dying, and asks until there is an answer."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from service.client import Client, ServiceError

#: Answers that say "not now"; anything else is an error of somebody's.
AWAY = frozenset({429, 502, 503})


def order(number: int) -> dict[str, Any]:
    """The spec of job ``number``: no two are equal."""
    return {
        "norm": "l2" if number % 3 else "linf",
        "epsilons": [0.01 * (1 + number % 4), 0.2],
        "samples": "all" if number % 2 else 16,
        "seed": number,
        "attack": {"steps": 100, "restarts": 1, "audit": 1.0, "seed": number},
    }


class Customer:
    """Submits ``count`` jobs over ``seconds``, each under an Idempotency-Key of its own."""

    def __init__(self, url: str, uploads: tuple[Path, Path], count: int, seconds: float) -> None:
        self._url, self._uploads = url, uploads
        self._count, self._seconds = count, seconds
        #: Every id that was ever answered, by the number of the order.
        self.answers: dict[int, list[str]] = {number: [] for number in range(count)}
        #: Set while a POST is under way.
        self.posting = threading.Event()
        #: POSTs without an answer: how often a kill met one in the middle.
        self.unanswered = 0
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="customer")

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the last submission; what went wrong is raised here."""
        self._thread.join()
        if self.errors:
            raise self.errors[0]

    @property
    def ids(self) -> list[str]:
        """The job of every order."""
        return [ids[0] for _, ids in sorted(self.answers.items())]

    def _run(self) -> None:
        chance = random.Random(0)
        try:
            for number in range(self._count):
                self._submit(number)
                # Who is not sure whether an answer arrived asks again, any time.
                if chance.random() < 0.3:
                    self._submit(chance.randrange(number + 1))
                time.sleep(self._seconds / self._count * chance.uniform(0.2, 1.0))
        except BaseException as error:  # noqa: BLE001 - told by join()
            self.errors.append(error)

    def _submit(self, number: int) -> None:
        deadline = time.monotonic() + 120
        while True:
            self.posting.set()
            try:
                with Client(self._url, timeout_s=20) as client:
                    job = client.certify(
                        *self._uploads, order(number), idempotency_key=f"order {number}"
                    )
            except httpx.TransportError:
                self.unanswered += 1
                if time.monotonic() > deadline:
                    raise
            except ServiceError as error:
                if error.status not in AWAY or time.monotonic() > deadline:
                    raise
            else:
                self.answers[number].append(str(job["id"]))
                return
            finally:
                self.posting.clear()
            time.sleep(0.2)
