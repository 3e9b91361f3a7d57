"""A block: what is asked of it, how each of its tensors is coded, encoded and rebuilt."""
