"""ImPart as a library: deltas between checkpoints, their compression, and the artifacts that hold them."""

__version__ = "0.1.0"
