"""Activations that files write as comparisons."""
