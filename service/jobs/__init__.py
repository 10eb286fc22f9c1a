"""Use cases of jobs: submit, notify workers, control, reconcile, retain."""
