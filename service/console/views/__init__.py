"""What pages show, computed from reports and rows: plain functions and tables."""
