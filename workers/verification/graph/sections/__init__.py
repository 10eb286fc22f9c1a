"""Parts of the graph whose Lipschitz constant is proved as a whole, where steps alone lose much."""
