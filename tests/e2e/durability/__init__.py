"""Parts of a service, or all of it, are killed in the middle of a job."""
