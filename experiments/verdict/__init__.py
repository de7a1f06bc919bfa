"""Runs of which it is known what they are, and the verdict on each at half of its training; see README.md."""
