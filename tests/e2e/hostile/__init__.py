"""Requests made to hurt, by what they attack; ``tests.e2e.test_hostile`` posts them all."""
