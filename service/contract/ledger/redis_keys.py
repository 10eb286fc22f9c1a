"""Names of the keys in Redis, and the states of jobs that some of them name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STATUSES", "Keys"]

STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")

_PARTS = ("free", "holder", "tries", "done", "progress", "events")


@dataclass(frozen=True)
class Keys:
    """All keys begin with ``prefix``."""

    prefix: str

    def of(self, name: str) -> str:
        """The key of that name."""
        return f"{self.prefix}:{name}"

    def status(self, status: str) -> str:
        """The set of the jobs in a state."""
        assert status in STATUSES, status
        return self.of(f"status:{status}")

    def job(self, job_id: str) -> list[str]:
        """A job's hash and what belongs to it, in the order of the scripts' KEYS."""
        base = self.of(f"job:{job_id}")
        return [base, *(f"{base}:{part}" for part in _PARTS)]
