"""A folder for each claim: its commands, its table, its picture."""
