"""Uploaded state dicts, read without trusting them."""
