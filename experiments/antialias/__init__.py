"""What antialiasing the crops of training does to kNN accuracy; see README.md."""
