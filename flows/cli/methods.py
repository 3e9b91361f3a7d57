"""The verb `methods`: what methods there are, and what can be set of each."""

from json import dumps
from typing import Annotated

import typer

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
        summaries = {one: METHODS.get(one).summary for one in METHODS}
        if json:
            print_json({"methods": summaries, "quantize": QUANTIZING})
        else:
            print_lines(summaries)
            say()
            say(f"`impart quantize` takes {', '.join(QUANTIZING)}.")
        return
    method = METHODS.get(name)
    fields = method.options_model.model_fields
    defaults = method.options_model().model_dump(mode="json")
    if json:
        options = {key: {"default": defaults[key], "description": field.description} for key, field in fields.items()}
        print_json({"method": name, "summary": method.summary, "options": options})
        return
    say(f"{name}: {method.summary}")
    say()
    print_lines({f"{key}={dumps(defaults[key])}": field.description for key, field in fields.items()})
    if not fields:
        say("It has no options.")
