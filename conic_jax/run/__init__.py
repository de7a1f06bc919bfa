"""Shared by all runs: state, loop, checkpoints, reports, signals, and the verdict on a run."""
