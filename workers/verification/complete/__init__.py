"""Complete verification: branch and bound on the unstable neurons of a sample."""
