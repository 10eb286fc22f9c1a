"""Normalisation of groups of numbers: as single operators, and as exporters write it in nodes."""
