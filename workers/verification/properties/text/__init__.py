"""VNN-LIB as text: words, exact numbers, conditions; ``vnnlib`` reads it."""
