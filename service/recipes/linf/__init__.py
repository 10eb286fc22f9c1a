"""Recipes of the methods for linf that rest on boxes, published and ours."""
