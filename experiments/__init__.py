"""One folder per claim: its commands, its table, its figure."""
