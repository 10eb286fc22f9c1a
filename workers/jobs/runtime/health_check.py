"""Health check of a container: exit status 0 while a worker of this host sends its heartbeat."""

from __future__ import annotations

import platform
import sys

import redis

from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.problems import Problem
from service.contract.settings import Settings

__all__ = ["main"]


def main() -> int:
    """0, or 1 with the reason on stderr."""
    settings = Settings()
    try:
        workers = Ledger(connect(settings), settings).worker_registry.living()
    except (Problem, redis.RedisError) as error:
        print(f"cannot ask Redis: {error}", file=sys.stderr)
        return 1
    if any(facts.get("host") == platform.node() for facts in workers):
        return 0
    print(f"no worker on {platform.node()} has sent a heartbeat lately", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
