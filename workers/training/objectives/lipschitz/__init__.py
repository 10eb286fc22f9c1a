"""Objectives for l2 that rest on Lipschitz bounds."""
