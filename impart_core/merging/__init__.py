"""Merging fine-tunes of one base: methods, the file that says what is merged how, and the model that comes of it."""
