"""`python -m impart_flows.cli` is `impart`."""

from impart_flows.cli import main

main()
