"""Endpoints of models and data sets, and how an upload becomes a source of a job."""
