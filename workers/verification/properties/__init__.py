"""Properties of one network: inputs whose outputs are unsafe, as VNN-LIB states them."""
