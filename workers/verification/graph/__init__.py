"""The network compiled for verification, and its affine maps."""
