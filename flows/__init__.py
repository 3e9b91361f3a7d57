"""Which tasks run in what order, and the command line."""
