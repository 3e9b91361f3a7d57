"""A delta applied: one open delta, a checkpoint rebuilt from it, a model loaded from it."""
