"""Every verb: where it is, and what `impart --help` says of it. A verb's module is imported when the verb is run."""

from importlib import import_module
from itertools import groupby
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from impart_flows.cli import interrupt


class Verb(NamedTuple):
    """A verb: module of `impart_flows.cli`, function in it, help in one line, and the panel that lists it.

    A group of verbs has neither module nor function, and a table of its own.
    """

    module: str
    function: str
    help: str
    panel: str = "Verbs"


VERBS: dict[str, dict[str, Verb]] = {
    "impart": {
        "plan": Verb("plan", "plan", "Say what a compression would take, from headers alone.", "Make"),
        "compress": Verb("compress", "compress", "Compress the delta between two checkpoints and publish it.", "Make"),
        "quantize": Verb("compress", "quantize", "Quantise a delta that is there, from the factors kept.", "Make"),
        "reconstruct": Verb("reconstruct", "reconstruct", "Rebuild a checkpoint from its base and a delta.", "Make"),
        "evaluate": Verb("evaluate", "evaluate", "Measure a model, or a delta beside its base, on tasks.", "Make"),
        "merge": Verb("merge", "merge", "Merge models as a file says: mergekit's YAML, and more.", "Make"),
        "search": Verb("", "", "Find the best compression on validation items; show what was found.", "Make"),
        "zoo": Verb("", "", "Keep a whole zoo of models up to date, as a file says.", "Make"),
        "ls": Verb("stored", "list_artifacts", "List the deltas and evaluations in a store.", "Look"),
        "inspect": Verb("contents", "inspect", "Show what an artifact holds: blocks, bytes, ratios.", "Look"),
        "lineage": Verb("lineage", "lineage", "Show what an artifact was made from, and what from it.", "Look"),
        "why": Verb("account", "why", "Say why an artifact is what it is.", "Look"),
        "diff": Verb("account", "diff", "List what differs between two artifacts.", "Look"),
        "methods": Verb("methods", "methods", "List the methods, or the options of one.", "Look"),
        "tag": Verb("names", "tag", "Give an artifact a name, or move a name to it.", "Names"),
        "history": Verb("names", "history", "Show every artifact that a name pointed to.", "Names"),
        "rollback": Verb("names", "rollback", "Point a name to an artifact that it pointed to before.", "Names"),
        "untag": Verb("names", "untag", "Remove a name; what it pointed to stays.", "Names"),
        "export": Verb("transfer", "export_artifacts", "Copy artifacts to another store.", "Share"),
        "import": Verb("transfer", "import_artifacts", "Copy artifacts from another store.", "Share"),
        "push-hub": Verb("push_hub", "push_hub", "Make a Hugging Face Hub repository out of a delta.", "Share"),
        "mlflow": Verb("", "", "Register deltas with an MLflow server, as pointers.", "Share"),
        "verify": Verb("stored", "verify", "Re-read every file of an artifact, or of all.", "Keep tidy"),
        "gc": Verb("upkeep", "gc", "Find, and with --delete delete, what no rule keeps.", "Keep tidy"),
        "du": Verb("usage", "du", "Show what is stored, shared, dense, and free to go, in bytes.", "Keep tidy"),
        "demo": Verb("demo", "demo", "Run the main job on the tiny zoo: a table and a picture.", "Try"),
        "selftest": Verb("selftest", "check_device", "Check a GPU against the CPU, and time both.", "Try"),
        "tinyzoo": Verb("", "", "Small real model zoos: a base and fine-tunes of it (math, code, chat).", "Try"),
    },
    "search": {
        "run": Verb("search", "search", "Run a search file; `impart search FILE` is the same."),
        "show": Verb("search", "show", "Show what a search found, as text or as a picture."),
    },
    "zoo": {
        "init": Verb("zoo", "init", "Write a first zoo file for the models at a place."),
        "plan": Verb("zoo", "plan", "Say what a run would do, and what it would take."),
        "run": Verb("zoo", "run", "Bring every entry up to date, and promote what passes its gate."),
        "deploy": Verb("zoo", "deploy", "Have it run by its schedule, on a Prefect server and its workers."),
        "setup": Verb("zoo", "setup", "Prepare a Prefect server: a watchdog, and a limit of GPUs."),
        "status": Verb("zoo", "status", "Show what became of each entry in the last run."),
        "report": Verb("zoo", "report", "Write the last run's report as HTML, Markdown or JSON."),
        "schema": Verb("zoo", "schema", "Print the JSON schema of zoo files, for editors."),
    },
    "mlflow": {
        "push": Verb("mlflow", "push", "Register a delta: its settings, ratios, quality and place."),
    },
    "tinyzoo": {
        "path": Verb("tinyzoo", "path", "Print the folder of one of the zoo's models."),
        "build": Verb("tinyzoo_build", "build", "Make the zoo in a folder: a copy, or trained anew."),
    },
}
DEFAULTS = {"search": "run"}  # of a group the verb that is meant where none is named


class LazyGroup(TyperGroup):
    """A group that lists its verbs from `VERBS`, and imports a verb only to run it or to show its help."""

    def __init__(self, **settings: Any) -> None:
        """Make the group; its name is that of its verbs in `VERBS`."""
        super().__init__(**settings)
        for name, verb in VERBS[str(self.name)].items():
            about: dict[str, Any] = {"name": name, "help": verb.help, "rich_markup_mode": None}
            self.add_command(LazyGroup(**about, no_args_is_help=True) if name in VERBS else TyperCommand(**about))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take arguments; those that name no verb are the default verb's, where the group has one."""
        default = DEFAULTS.get(str(self.name))
        if default and args and args[0] not in (*VERBS[str(self.name)], "--help"):
            args = [default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the verb that was typed, with its module imported."""
        name, found, rest = super().resolve_command(ctx, args)
        if name is not None and name not in VERBS:
            found = load(str(self.name), name)
            interrupt.begin()
        return name, found, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - Typer's signature
        """List the verbs, panel by panel."""
        for panel, verbs in groupby(VERBS[str(self.name)].items(), key=lambda item: item[1].panel):
            with formatter.section(panel):
                formatter.write_dl([(name, verb.help) for name, verb in verbs])


def load(group: str, name: str) -> Any:
    """Return a verb's command, with its module imported."""
    verb = VERBS[group][name]
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(getattr(import_module(f"impart_flows.cli.{verb.module}"), verb.function))
    return typer.main.get_command(app)
