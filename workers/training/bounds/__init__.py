"""Ball and box in training, with gradients."""
