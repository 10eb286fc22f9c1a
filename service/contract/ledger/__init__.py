"""The state of jobs in Redis: items, leases, scheduling, workers, counters."""
