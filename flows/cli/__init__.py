"""The command line, `impart`. Its imports take seconds, in which Ctrl-C is taken care of already."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 done, 1 a fault was found, 2 the request is wrong, 130 Ctrl-C."""
    from impart_flows.cli import interrupt

    interrupt.watch()
    try:
        from impart_flows.cli.surroundings import prepare

        prepare()
        from impart_flows.cli.app import run
    except Exception as error:  # a package that is missing, or does not fit the others
        from impart_flows.cli.failure import report

        code = report(error, sys.argv[1:])
    else:
        code = run(sys.argv[1:])
    interrupt.leave_with(code)
    sys.exit(code)
