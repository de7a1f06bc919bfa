"""What the frozen encoder is worth: its features, nearest neighbours and a linear classifier."""
