"""What this machine has for a job: device, memory, compute threads."""
