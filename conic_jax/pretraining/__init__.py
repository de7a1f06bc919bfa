"""Pretraining: from the settings of a user to an encoder that was evaluated."""
