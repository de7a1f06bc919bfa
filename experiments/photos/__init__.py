"""Every method on the photographs; see README.md."""
