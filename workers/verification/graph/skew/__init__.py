"""Skew orthogonal convolutions as a network deploys them: their series, and chains of it."""
