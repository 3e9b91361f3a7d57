"""Where an artifact came from and what came of it, read from a store alone."""
