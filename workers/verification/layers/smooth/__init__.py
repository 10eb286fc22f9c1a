"""Rules of smooth activations, whose deployed kernels are approximations."""
