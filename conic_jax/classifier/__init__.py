"""The instance matrix: one classifier row for every image, split over the mesh."""
