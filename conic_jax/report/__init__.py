"""The page of a run: one HTML file with its figures, curves, pictures, settings and commands."""
