"""Webhooks: signed messages to a user's server when a job has ended."""
