"""A content-addressed store: manifests, names, pins, catalogue and cleaning up. Knows no delta."""
