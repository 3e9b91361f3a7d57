"""ΔW between two checkpoints: read, decomposed, and what a budget of bytes allows of it."""
