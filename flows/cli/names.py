"""Verbs for the names of artifacts: tag, history, rollback and untag."""

from typing import Annotated

import typer

from impart_core.base.errors import ArtifactNotFoundError, ConfigError, UnknownNameError
from impart_core.store import names as refs
from impart_core.store.refs import Move
from impart_core.store.store import Store
from impart_flows.cli import options as opt
from impart_flows.cli.output import print_json, print_table, say

Name = Annotated[str, typer.Argument(help="A name, with or without a label (math-13b, math-13b@prod).")]
Number = Annotated[int | None, typer.Option(help="The move to go back to. [default: the one before that in force]")]


def tag(ref: opt.Ref, name: Name, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Give an artifact a name, or move a name to it.

    Whoever resolves the name gets the new artifact from then on. The move is added to the name's history. Earlier
    moves that are damaged are given up by it.

    Example: impart tag math@cr16 math@prod
    """
    opened = Store(store)
    try:
        move = refs.tag(opened, name, refs.resolve(opened, ref))
    except (ArtifactNotFoundError, UnknownNameError, ConfigError) as error:
        if not refs.is_artifact(opened, name):
            raise
        raise ConfigError(
            f"{str(error).rstrip('.')}. But {name!r} is an artifact: the artifact comes first, then its new name. "
            f"Did you mean `impart tag {name} {ref}`?"
        ) from error
    _print_move(name, move, json)


def history(name: Name, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Show every artifact that a name pointed to: when it was moved there, by whom and why; the last one is in force.

    `impart rollback` takes the numbers of the first column.

    Example: impart history math@prod
    """
    moves = refs.history(Store(store), name)
    if json:
        print_json({"name": name, "moves": [move.model_dump(mode="json") for move in moves]})
        return
    rows = [
        [str(move.number), move.id[:12], move.moved, move.by, move.why, "now" if move is moves[-1] else ""]
        for move in moves
    ]
    print_table(["move", "artifact", "when", "by", "why", ""], rows, title=name)


def rollback(name: Name, to: Number = None, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Point a name to an artifact that it pointed to before.

    History is not rewritten: the rollback is one more move. A second rollback goes further back; `--to` goes to any
    move, one that was rolled back too. Nothing happens when someone else moves the name at the same time, or when
    the artifact is gone.

    Example: impart rollback math@prod
    """
    _print_move(name, refs.rollback(Store(store), name, to), json)


def untag(name: Name, store: opt.StoreOption = None, json: opt.JsonOption = False) -> None:
    """Remove a name with its history, damaged or not. Artifacts stay; `impart gc` may take what nothing else keeps.

    Example: impart untag math@old
    """
    moves = refs.untag(Store(store), name)
    if json:
        print_json({"name": name, "moves": moves})
        return
    say(f"{name} is no name any more ({moves} {'move' if moves == 1 else 'moves'} removed)")


def _print_move(name: str, move: Move, json: bool) -> None:
    if json:
        print_json({"name": name, **move.model_dump(mode="json")})
        return
    by = f", by {move.by}" if move.by else ""
    say(f"{name} is {move.id[:12]} (move {move.number}, {move.why or 'named'}{by} at {move.moved})")
