"""Pretraining: from the user's settings to an evaluated encoder."""
