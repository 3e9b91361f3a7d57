"""The format on disk: masks, packed codes, positions, and the file of a block. Knows no method."""
