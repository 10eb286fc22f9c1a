"""The limited child that parses uploads, and how it is run."""
