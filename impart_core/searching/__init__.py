"""Searching: a template with holes, what may fill them, and a study that finds the best filling on validation items."""
