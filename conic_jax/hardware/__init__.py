"""The devices: the mesh, hardware that need not be here, and what a compiled program costs on it."""
