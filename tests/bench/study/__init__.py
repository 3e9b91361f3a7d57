"""The study: every method at every ratio on the tiny zoos, in bytes on disk, and what is made of its figures."""
