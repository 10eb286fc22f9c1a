"""Where the batch axis of a value is in the file, and what shares it."""
