"""Commands that check something: a property, a report, this machine."""
