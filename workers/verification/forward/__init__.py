"""Ball and box pushed through the compiled network, and margins at its end."""
