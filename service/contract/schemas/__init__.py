"""What crosses HTTP, the journal and Redis: specs, plans, records, reports, problems."""
