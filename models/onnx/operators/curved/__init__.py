"""Curved activations: as single operators, and as the nodes that exporters write for them."""
