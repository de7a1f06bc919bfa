"""What every run shares: state, checkpoints, reports, signals, and the word on how it goes."""
