"""What a spec may name: one row per method and per architecture."""
