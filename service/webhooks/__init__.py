"""Telling somebody's server that a job has ended: whom, signed how, sent when."""
