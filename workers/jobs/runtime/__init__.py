"""The worker process, its work horse, and the lease that is kept alive."""
