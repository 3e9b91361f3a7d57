"""The verb `methods`: what methods there are, and what can be set of each."""

from json import dumps
from typing import Annotated

import typer

from impart_core.base.errors import unknown_name
from impart_core.base.settings import MethodOptions
from impart_core.blocks.request import LOSSLESS, LOSSLESS_SUMMARY
from impart_core.methods import METHODS, QUANTIZING
from impart_flows.cli import options as opt
from impart_flows.cli.output import print_json, print_lines, say

Name = Annotated[str | None, typer.Argument(help="A method, to list its options; all methods when left out.")]


def methods(name: Name = None, json: opt.JsonOption = False) -> None:
    """List the methods that deltas are coded by, or the options of one with their defaults.

    Set an option with `--option KEY=VALUE`; VALUE is JSON, or else text.

    Example: impart methods impart-qt
    """
    if name is None:
        summaries = {**{one: METHODS.get(one).summary for one in METHODS}, LOSSLESS: LOSSLESS_SUMMARY}
        if json:
            print_json({"methods": summaries, "quantize": QUANTIZING})
        else:
            print_lines(summaries)
            say()
            say(f"`impart quantize` takes {', '.join(QUANTIZING)}.")
        return
    summary, model = _described(name)
    fields = {} if name == LOSSLESS else {key: model.model_fields[key] for key in model.names()}
    defaults = {key: field.default for key, field in fields.items()} | model().model_dump(mode="json")
    if json:
        options = {key: {"default": defaults[key], "description": field.description} for key, field in fields.items()}
        print_json({"method": name, "summary": summary, "options": options})
        return
    say(f"{name}: {summary}")
    say()
    print_lines({f"{key}={dumps(defaults[key])}": field.description for key, field in fields.items()})
    if not fields:
        say("It has no options.")


def _described(name: str) -> tuple[str, type[MethodOptions]]:
    """Return what a method keeps, in a few words, and the model of its options."""
    if name == LOSSLESS:
        return LOSSLESS_SUMMARY, MethodOptions
    if name not in METHODS:
        raise unknown_name("method", name, (*METHODS, LOSSLESS))
    return METHODS.get(name).summary, METHODS.get(name).options_model
