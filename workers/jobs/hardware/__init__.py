"""The machine's resources for a job: device, memory, compute threads."""
