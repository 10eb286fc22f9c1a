"""What bounds know of layers: one file per family, one row per layer in ``registry``."""
