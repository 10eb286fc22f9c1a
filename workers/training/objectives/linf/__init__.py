"""Objectives for linf that rest on boxes and linear relaxations."""
