"""One bound per file, named as its paper names it."""
