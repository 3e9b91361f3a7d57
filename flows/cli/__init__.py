"""The command line, `impart`."""

from impart_flows.cli.app import main

__all__ = ["main"]
