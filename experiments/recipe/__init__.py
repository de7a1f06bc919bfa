"""The recipe for a folder of one's own, measured; see README.md."""
