"""Receiving uploads and looking at their bytes; nothing here parses a model or inflates data."""
