"""Does this machine's device compute what the CPU does, and how fast: `impart selftest`."""
