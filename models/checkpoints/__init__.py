"""State dicts of other people, read without trusting them."""
