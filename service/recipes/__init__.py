"""Training recipes as data."""
