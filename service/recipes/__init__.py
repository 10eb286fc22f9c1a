"""Training recipes as data, one file per paper, and the plans that are made of them."""
