"""Linear forms carried from the margins back to the input."""
