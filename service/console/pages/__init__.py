"""The pages, one module of endpoints per subject."""
