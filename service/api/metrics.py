"""Metrics for Prometheus: the queue, the jobs, the workers, and this process' own traffic."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from service.access.limits import KeyLimits
from service.contract.ledger.ledger import Ledger

__all__ = ["Metrics"]

#: Facts of a worker's heartbeat that are numbers: fact -> metric, description.
_WORKER_FACTS = {
    "memory_bytes": (
        "certserve_worker_memory_bytes",
        "Resident memory of a worker and its work horse",
    ),
    "gpu_memory_bytes": ("certserve_worker_gpu_memory_bytes", "Used memory of the worker's GPU"),
}


class Metrics:
    """One per process: counts its requests, and looks at Redis when it is asked."""

    def __init__(self, ledger: Ledger, limits: KeyLimits) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Ledger(ledger, limits))
        self._requests = Counter(
            "certserve_http_requests", "Answers by method and status", ["method", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "certserve_http_request_seconds", "Time until the response begins",
            registry=self._registry,
        )  # fmt: skip

    def count_answer(self, method: str, status: int, seconds: float) -> None:
        """Count a response when it begins."""
        self._requests.labels(method, str(status)).inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format; without Redis only those of this process."""
        return generate_latest(self._registry)


class _Ledger(Collector):
    def __init__(self, ledger: Ledger, limits: KeyLimits) -> None:
        self._ledger = ledger
        self._limits = limits

    def collect(self) -> Iterator[Metric]:
        """Called for every scrape."""
        uploaded = self._limits.uploaded_bytes
        yield CounterMetricFamily(
            "certserve_upload_bytes", "Bytes of files received by this process", value=uploaded
        )
        up = GaugeMetricFamily("certserve_redis_up", "Whether Redis answers")
        try:
            found = [*self._jobs(), *self._work(), *self._workers()]
        except RedisError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from found

    def _jobs(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("certserve_jobs", "Jobs by status", labels=["status"])
        for status, count in self._ledger.index.counts().items():
            jobs.add_metric([status], count)
        yield jobs
        queued, running = self._ledger.index.open_jobs()
        free = sum(seen.free for seen in self._ledger.survey(sorted(running)))
        yield GaugeMetricFamily(
            "certserve_queue_depth",
            "Work items that no worker has taken yet (a queued job counts as one)",
            value=len(queued) + free,
        )

    def _work(self) -> Iterator[Metric]:
        done = self._ledger.totals.read()
        cumulated, buckets = 0, []
        for name, count in done.buckets.items():
            cumulated += count
            buckets.append((name, float(cumulated)))
        shards = HistogramMetricFamily("certserve_shard_seconds", "Worker seconds of a shard")
        shards.add_metric([], buckets, sum_value=done.seconds)
        yield shards
        yield CounterMetricFamily(
            "certserve_samples", "Samples certified in shards", value=done.samples
        )
        yield GaugeMetricFamily(
            "certserve_samples_per_second",
            "Samples per second over the last minute",
            value=done.recent_samples / 60,
        )

    def _workers(self) -> Iterator[Metric]:
        workers = self._ledger.worker_registry.living()
        yield GaugeMetricFamily(
            "certserve_workers", "Workers with a recent heartbeat", value=len(workers)
        )
        for fact, (name, description) in _WORKER_FACTS.items():
            gauge = GaugeMetricFamily(name, description, labels=["worker", "host", "device"])
            for worker in workers:
                if worker.get(fact, "").isdecimal():
                    labels = [worker.get(label, "") for label in ("name", "host", "device")]
                    gauge.add_metric(labels, float(worker[fact]))
            yield gauge
