"""Bounds in order of cost, each on what is still open, then the attack."""
