"""``certserve-check``: an independent checker of certificates (docs/certificates.md)."""
