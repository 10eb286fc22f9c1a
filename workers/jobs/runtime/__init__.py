"""The worker process, its work horse, and the renewal of the work horse's lease."""
