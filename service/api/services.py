"""What an API process holds while it runs, and how endpoints get at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.access.keys import KeyRing
from service.access.limits import KeyLimits
from service.access.quotas import Quotas
from service.access.sessions import Sessions
from service.access.signing_key import SigningKeys
from service.api.metrics import Metrics
from service.contract.ledger.connection import connect
from service.contract.ledger.event_stream import EventLog
from service.contract.ledger.ledger import Ledger
from service.contract.settings import Settings
from service.contract.storage.journal import Journal
from service.contract.storage.store import Store
from service.jobs.bulk import Bulk
from service.jobs.control import Jobs
from service.jobs.event_hub import EventHub
from service.jobs.idempotency import Repeats
from service.jobs.intake import Intake
from service.jobs.notifier import Notifier
from service.jobs.reconciler import Reconciler
from service.jobs.report_signer import ReportSigner
from service.jobs.results import Results
from service.jobs.retention import Retention
from service.jobs.submit import Submissions
from service.webhooks.dispatcher import Webhooks

__all__ = ["Services", "UsesServices"]


@dataclass(frozen=True)
class Services:
    """One of each per process."""

    settings: Settings
    store: Store
    ledger: Ledger
    #: The same with a short time-out, for endpoints that must answer soon.
    probe: Ledger
    journal: Journal
    intake: Intake
    notifier: Notifier
    jobs: Jobs
    bulk: Bulk
    results: Results
    reconciler: Reconciler
    webhooks: Webhooks
    events: EventHub
    keys: KeyRing
    signing_keys: SigningKeys
    signer: ReportSigner
    sessions: Sessions
    limits: KeyLimits
    submissions: Submissions
    metrics: Metrics

    @classmethod
    def start(cls, settings: Settings) -> Services:
        """Open the store and start the journal, the notifier and the reconciler.

        Redis may still be away: the reconciler waits for it, and /readyz says so.
        """
        store = Store.of(settings)
        store.sweep()
        # A Redis that hangs costs a request seconds: what was accepted is in the journal by then.
        redis = connect(settings, timeout_s=5.0)
        ledger = Ledger(redis, settings)
        probe = Ledger(connect(settings, retries=0, timeout_s=2.0), settings)
        journal = Journal(store.folder("journal"))
        notifier = Notifier(connect(settings, text=False), settings)
        intake = Intake(journal, ledger, notifier)
        quotas = Quotas(connect(settings, retries=1, timeout_s=1.0))
        limits = KeyLimits(quotas, settings)
        jobs = Jobs(store, ledger, journal, notifier, limits)
        retention = Retention(settings, store, ledger, journal)
        webhooks = Webhooks(settings, store)
        webhooks.start()
        repeats = Repeats(redis)
        signing_keys = SigningKeys(settings.data_dir / "signing", settings.signing_key_file)
        signer = ReportSigner(store, signing_keys)
        reconciler = Reconciler(
            settings,
            store,
            ledger,
            notifier,
            repeats,
            retention=retention,
            webhooks=webhooks,
            signer=signer,
        )
        reconciler.start()
        events = EventHub(
            EventLog(redis),
            store,
            quiet_s=settings.keep_alive_s,
            max_viewers=settings.max_event_streams,
        )
        keys = KeyRing(
            settings.data_dir / "keys", [key.get_secret_value() for key in settings.keys]
        )
        submissions = Submissions(
            store=store,
            journal=journal,
            intake=intake,
            jobs=jobs,
            repeats=repeats,
            limits=limits,
            reuse=settings.reuse_results,
            caught_up=lambda: reconciler.caught_up,
        )
        return cls(
            settings=settings,
            store=store,
            ledger=ledger,
            probe=probe,
            journal=journal,
            intake=intake,
            notifier=notifier,
            jobs=jobs,
            bulk=Bulk(jobs, ledger),
            results=Results(jobs, store, signer),
            reconciler=reconciler,
            webhooks=webhooks,
            events=events,
            keys=keys,
            signing_keys=signing_keys,
            signer=signer,
            sessions=Sessions(redis, keys, quotas, lifetime_s=settings.session_s),
            limits=limits,
            submissions=submissions,
            metrics=Metrics(ledger, limits),
        )

    def close(self) -> None:
        """Write the waiting journal lines, send the waiting wake-up jobs, stop."""
        self.reconciler.close()
        self.webhooks.close()
        self.journal.close()
        self.intake.close()
        self.notifier.close()


def _services(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


#: The process' services, as an endpoint's parameter.
UsesServices = Annotated[Services, Depends(_services)]
