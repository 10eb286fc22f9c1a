"""Commands that look at a running service, and change what it has."""
