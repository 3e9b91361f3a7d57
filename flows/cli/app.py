"""The application: how it is entered, and how errors leave it (a sentence on standard error, exit code 2)."""

import os
import sys
from typing import Annotated, cast

import typer

from impart_core import __version__
from impart_core.base.errors import ImpartError
from impart_flows.cli.output import errors, print_json, print_warnings_of
from impart_flows.cli.verbs import LazyGroup

app = typer.Typer(
    name="impart",
    cls=LazyGroup,
    epilog="Start with `impart demo`, or `impart plan BASE FINETUNED --cr 32` on models of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
)

WRONG_REQUEST, INTERRUPTED = 2, 130
# Typer brings its own copy of click, or uses the installed one, depending on its version. Both derive from this.
_UsageError = cast(
    type[typer.BadParameter], next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"impart {__version__}")
        raise typer.Exit


@app.callback()
def impart(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keep a zoo of fine-tuned language models small: each fine-tune as a tiny delta against its base."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 a fault was found, 2 the request is wrong, 130 Ctrl-C."""
    _quiet_libraries()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    print_warnings_of("impart_core.store")
    try:
        code = int(app(arguments, prog_name="impart", standalone_mode=False) or 0)
    except ImpartError as error:
        errors.print(f"error: {error}", markup=False)
        return _fail(error, str(error), arguments)
    except _UsageError as error:
        error.show()
        return _fail(error, error.format_message(), arguments)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code
        errors.print("Stopped. Finished blocks are kept; run the same command again to go on.", markup=False)
    return code


def _fail(error: Exception, message: str, arguments: list[str]) -> int:
    if "--json" in arguments:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    return WRONG_REQUEST


def _quiet_libraries() -> None:
    """Set what libraries print and send, unless the user has set it."""
    for name, value in {
        "PREFECT_LOGGING_LEVEL": "WARNING",
        # A failed task is told once, as a sentence of ours; its traceback stays in the run's page.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
