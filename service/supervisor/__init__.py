"""``certserve serve``: Redis, API and workers as children of one process."""
