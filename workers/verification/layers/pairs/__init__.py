"""Layers that look at pairs of numbers: what compares them, and what is near to them."""
