"""Constants of random graphs: computed by operators, and nodes on them alone."""
