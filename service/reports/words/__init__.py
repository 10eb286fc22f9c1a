"""Sentences of reports, the same on pages and in a terminal."""
