"""Architectures as data: published ones, families, layer lists."""
