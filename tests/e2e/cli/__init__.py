"""Every command against a real service, one that runs or one that it starts itself."""
