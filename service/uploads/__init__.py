"""Receiving uploads and checking their bytes; nothing here parses a model or inflates data."""
