"""From shard results to the report."""
