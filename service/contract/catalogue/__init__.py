"""What a spec may name: one row per method, training method and architecture."""
