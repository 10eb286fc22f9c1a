"""What an API process holds while it runs, and how endpoints get at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.contract.connection import connect
from service.contract.events import EventLog
from service.contract.journal import Journal
from service.contract.ledger import Ledger
from service.contract.settings import Settings
from service.contract.store import Store
from service.events import EventHub
from service.jobs import Jobs
from service.queue import Bell
from service.reconciler import Reconciler

__all__ = ["Services", "UsesServices"]


@dataclass(frozen=True)
class Services:
    """One of each per process."""

    settings: Settings
    store: Store
    ledger: Ledger
    journal: Journal
    bell: Bell
    jobs: Jobs
    reconciler: Reconciler
    events: EventHub

    @classmethod
    def start(cls, settings: Settings) -> Services:
        """Open the store and begin the journal, the bell and the reconciler.

        Redis may still be away: that is the reconciler's business, and /readyz says so.
        """
        store = Store(settings.data_dir)
        store.sweep()
        redis = connect(settings)
        ledger = Ledger(redis, settings)
        journal = Journal(store.folder("journal"))
        bell = Bell(connect(settings, text=False), settings)
        jobs = Jobs(store, ledger, journal, bell)
        reconciler = Reconciler(settings, store, ledger, bell)
        reconciler.start()
        events = EventHub(
            EventLog(redis),
            store,
            quiet_s=settings.keep_alive_s,
            most_viewers=settings.max_event_streams,
        )
        return cls(settings, store, ledger, journal, bell, jobs, reconciler, events)

    def close(self) -> None:
        """Write what waits, ring what waits, stop."""
        self.reconciler.close()
        self.journal.close()
        self.bell.close()


def _services(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


#: The process' services, as an endpoint's parameter.
UsesServices = Annotated[Services, Depends(_services)]
