"""The items of a job: prepare, train, shard, merge."""
