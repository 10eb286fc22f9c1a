"""Readers of data sets, and the layout of their samples."""
