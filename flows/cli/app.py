"""The application: its verbs, and how a command ends."""

from typing import Annotated, cast

import typer

from impart_core import __version__
from impart_flows.cli import interrupt
from impart_flows.cli.failure import report, report_interrupt, report_object
from impart_flows.cli.output import printed_warnings
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


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code: the one boundary that no error passes."""
    with printed_warnings("impart_core"):
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        code = int(app(arguments, prog_name="impart", standalone_mode=False) or 0)
    except _UsageError as error:
        error.show()
        return report_object(type(error).__name__, error.format_message(), arguments)
    except typer.Abort:
        code = interrupt.INTERRUPTED
    except SystemExit as error:
        return 0 if error.code in (0, None) else report(error, arguments)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return report(error, arguments)
    # Typer turns Ctrl-C into this code; a library may swallow it.
    return report_interrupt(arguments) if code == interrupt.INTERRUPTED else code
