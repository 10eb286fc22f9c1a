"""Requests made to hurt, by what they attack; ``test_hostile.py`` posts them all."""
