"""The command line, `impart`."""

from flows.cli.app import main

__all__ = ["main"]
