"""A run's report page: one HTML file with its figures, curves, pictures, settings and commands."""
