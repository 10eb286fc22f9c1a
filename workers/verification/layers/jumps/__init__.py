"""Layers that jump."""
