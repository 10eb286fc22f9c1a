"""A worker process: waits for wake-up jobs on one RQ queue and starts a work horse for each.

RQ's own SpawnWorker cannot use unix sockets, drops TLS, shows the Redis password in ``ps`` and
leaves its work horse running when it is killed; this subclass starts the work horse in another way.
This process does not import torch. The template does, a process that work horses are forked from;
the memory of a work horse is freed when it ends.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

import redis
from rq import Queue
from rq.job import Job
from rq.worker import SpawnWorker

from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Ledger
from service.contract.logs import configure_logging
from service.contract.schemas.problems import Problem
from service.contract.settings import Settings
from workers.jobs.hardware.compute_threads import prepare_threads
from workers.jobs.hardware.device_check import DEVICE_LOST, out_of_order
from workers.jobs.hardware.owned_devices import hide_other_gpus, owned_devices
from workers.jobs.hardware.usage import usage
from workers.jobs.runtime import held_lease, template
from workers.jobs.runtime.fork_server import Forked, ForkServer, ForkServerLost
from workers.jobs.runtime.lease_watchdog import LeaseWatchdog

__all__ = ["CertificationWorker", "Heartbeat", "main", "rq_connection"]

logger = logging.getLogger(__name__)

#: Tries of a worker's Redis calls: about half a minute.
RETRIES = 8

#: How long a wake-up job waits for a template that still imports, because a fresh work horse would
#: import the same modules. Far more than the imports take, also on a busy machine.
TEMPLATE_S = 60.0


class CertificationWorker(SpawnWorker):
    """SpawnWorker with ``workers.jobs.runtime.work_horse`` as its work horse: it reads JSON only,
    has a process group of its own, and dies with this process.
    """

    #: A Redis that comes back is noticed within seconds, not a minute.
    max_connection_wait_time = 5.0

    def __init__(
        self, queues: list[str], *, ledger: Ledger | None = None, devices: int = 1, **options: Any
    ) -> None:
        super().__init__(
            queues,
            serializer="json",
            worker_ttl=20,
            job_monitoring_interval=5,
            maintenance_interval=10,
            log_job_description=False,
            default_result_ttl=0,
            **options,
        )
        self.ledger = ledger
        #: How many devices it owns.
        self.devices = devices
        self.horse_status = 0
        #: The template that work horses are forked from; None: start fresh interpreters.
        self.template: ForkServer | None = None
        self._forked: Forked | None = None

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Start the work horse. It gets the settings, the Redis address too, by environment."""
        assert threading.current_thread() is threading.main_thread(), "the death signal needs it"
        assert self.execution is not None
        arguments = [self.name, job.id, queue.name, self.execution.id]
        self._await_template(job)
        self._forked = self._fork(arguments)
        if self._forked is not None:
            self._horse_pid = self._forked.pid
        else:
            self._horse_pid = os.posix_spawn(
                sys.executable,
                [
                    sys.executable,
                    "-m",
                    "workers.jobs.runtime.work_horse",
                    *arguments,
                    str(os.getpid()),
                ],
                os.environ,
                setpgroup=0,
            )
        self.procline(f"Spawned {self._horse_pid}")
        if self._stop_requested:
            # The worker was asked to stop before there was a work horse to pass that on to.
            os.kill(self._horse_pid, signal.SIGTERM)

    def _await_template(self, job: Job) -> None:
        """Wait for the template's imports, and keep the wake-up job alive meanwhile."""
        until = time.monotonic() + TEMPLATE_S
        while (
            self.template is not None
            and not self.template.lost
            and not self.template.ready(self.job_monitoring_interval / 5)
            and not self._stop_requested
            and time.monotonic() < until
        ):
            self.maintain_heartbeats(job)

    def _fork(self, arguments: list[str]) -> Forked | None:
        """A work horse forked from the template; None where that is not possible.

        A template that has ended is replaced for the next wake-up job, unless it was never ready:
        then the next would not be either. The environment is passed to the work horse in a file
        that the template never reads.
        """
        if self.template is None:
            return None
        ready = self.template.ready(0)
        note = int(os.environ[held_lease.VARIABLE])
        sealed = os.memfd_create("certserve-environment")
        try:
            os.write(sealed, json.dumps(dict(os.environ)).encode())
            return self.template.fork(
                "horse", "workers.jobs.runtime.work_horse", arguments, [sealed, note]
            )
        except ForkServerLost as error:
            logger.warning("the work horse starts as a fresh interpreter: %s", error)
            if self.template.lost:
                self.template.close()
                self.template = template.start() if ready else None
            return None
        finally:
            os.close(sealed)

    def get_heartbeat_ttl(self, job: Job) -> int:
        """Seconds until a dead worker's wake-up job counts as abandoned (RQ's own: 60 more)."""
        return int(self.job_monitoring_interval) + 20

    def maintain_heartbeats(self, job: Job) -> None:
        """Send a heartbeat. While Redis is away the work horse goes on; it retries its commits."""
        try:
            super().maintain_heartbeats(job)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            logger.warning("Redis is away while wake-up job %s runs: %s", job.id, error)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run one wake-up job; the item of a killed work horse is given back, with the reason.

        Work horses work on whatever comes next, so most wake-up jobs find their work done: then no
        work horse is started.
        """
        if self.ledger is not None:
            following = self.ledger.scheduler.next_job(devices=self.devices)
            if not following.soon:
                self._drop(job, queue)
                return
        descriptor = held_lease.create()
        os.environ[held_lease.VARIABLE] = str(descriptor)
        try:
            with ExitStack() as watched:
                if self.ledger is not None:
                    horse = lambda: self._horse_pid  # noqa: E731 - read when it is needed
                    watched.enter_context(LeaseWatchdog(self.ledger, descriptor, horse))
                super().execute_job(job, queue)
        finally:
            held = held_lease.read(descriptor)
            os.close(descriptor)
            if held is not None and self.ledger is not None:
                reason = f"the worker process ended with {_status_text(self.horse_status)}"
                logger.warning("job %s: %s during %s", held.job_id, reason, held.item)
                self.ledger.release(held, error=reason)
            if self.horse_status == DEVICE_LOST << 8:
                self.look_at_device()

    def look_at_device(self) -> None:
        """Stop where the GPU no longer works: every job would fail here."""
        broken = out_of_order("cuda")
        if broken is not None:
            logger.error("the worker stops: %s", broken)
            self._stop_requested = True

    def _drop(self, job: Job, queue: Queue) -> None:
        """Drop a wake-up job whose work is done."""
        self.connection.lrem(queue.intermediate_queue_key, 1, job.id)
        job.delete(remove_from_queue=False)

    def wait_for_horse(self) -> Any:
        """Wait for the work horse and remember how it ended."""
        ended = super().wait_for_horse() if self._forked is None else self._wait_for_forked()
        self.horse_status = ended[1] or 0
        return ended

    def _wait_for_forked(self) -> tuple[int, int, None]:
        assert self._forked is not None
        try:
            raw = self._forked.raw(None)
        except ForkServerLost:
            raw = int(signal.SIGKILL)  # which the kernel sends when the template dies
        assert raw is not None
        return self._forked.pid, raw, None

    def handle_warm_shutdown_request(self) -> None:
        """Ask the work horse to give its item back, so that stopping takes seconds."""
        super().handle_warm_shutdown_request()
        if self._horse_pid:
            try:
                os.kill(self._horse_pid, signal.SIGTERM)
            except ProcessLookupError:
                pass


class Heartbeat(threading.Thread):
    """Tells the ledger every few seconds that this worker is alive (/readyz looks at it)."""

    def __init__(self, ledger: Ledger, name: str, facts: dict[str, str], interval_s: float) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._ledger, self._worker, self._facts = ledger, name, facts
        self._interval_s = interval_s
        self._stop_event = threading.Event()

    def run(self) -> None:
        """Send heartbeats until ``stop``; retry while Redis is away."""
        while not self._stop_event.is_set():
            try:
                facts = {**self._facts, **usage(self._facts.get("device", "cpu"))}
                self._ledger.worker_registry.heartbeat(self._worker, facts)
            except redis.RedisError as error:
                logger.warning("heartbeat not sent: %s", error)
            self._stop_event.wait(self._interval_s)

    def stop(self) -> None:
        """End the thread and deregister this worker."""
        self._stop_event.set()
        try:
            self._ledger.worker_registry.deregister(self._worker)
        except redis.RedisError as error:
            logger.info("the worker was not deregistered: %s", error)


def rq_connection(settings: Settings) -> redis.Redis:
    """A client for RQ alone: RQ changes the time-outs of the pool it is given."""
    return connect(settings, retries=RETRIES, text=False)


def _status_text(status: int) -> str:
    if status == DEVICE_LOST << 8:
        return "a failed GPU"
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"status {os.waitstatus_to_exitcode(status)}"


def main() -> int:
    """Work until SIGTERM or until Redis is lost for good; the supervisor starts a new worker."""
    settings = Settings()
    configure_logging(settings.log_format)
    prepare_threads(settings.worker_threads)
    try:
        hide_other_gpus(settings, os.environ)
    except ValueError as error:
        logger.error("the worker cannot start: %s", error)
        return 1
    broken = out_of_order(settings.device)
    if broken is not None:
        # Its jobs would fail three times here and succeed elsewhere.
        logger.error("the worker cannot start: %s", broken)
        return 1
    try:
        connection = rq_connection(settings)
        ledger = Ledger(connect(settings, retries=RETRIES), settings)
        worker = CertificationWorker(
            [settings.queue_name],
            connection=connection,
            ledger=ledger,
            devices=owned_devices(settings),
        )
    except (Problem, redis.RedisError) as error:
        logger.error("the worker cannot start: %s", error)
        return 1
    facts = {
        "host": platform.node(),
        "pid": str(os.getpid()),
        "device": settings.device,
        "devices": str(worker.devices),
    }
    heartbeat = Heartbeat(ledger, worker.name, facts, settings.worker_ttl_s / 4)
    heartbeat.start()
    logger.info("worker %s waits for wake-up jobs on %s", worker.name, settings.queue_name)
    worker.template = template.start()
    try:
        # End now and then, so that leaks stay bounded; the supervisor starts the next worker.
        worker.work(with_scheduler=False, max_jobs=500, logging_level="WARNING")
    finally:
        heartbeat.stop()
        if worker.template is not None:
            worker.template.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
