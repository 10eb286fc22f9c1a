"""Proved upper bounds on operator norms."""
