"""The devices: the mesh, data on hardware that may be absent, and the cost of a compiled program on it."""
