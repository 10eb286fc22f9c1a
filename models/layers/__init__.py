"""Layers of the network graph."""
