"""Residual layers that descend a convex potential: x - W^T L relu(W x + b), L diagonal."""
