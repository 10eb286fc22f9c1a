"""The data directory: blobs, records, job folders, the journal, and the mirror of it."""
