"""The cascade: bounds in order of cost, each on the samples that are still open, and the attack."""
