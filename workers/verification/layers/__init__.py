"""What bounds know of the layers that are not affine."""
