"""A first zoo file, from the models that lie at a place."""

import os
from collections.abc import Mapping

import yaml

from impart_core.base.errors import CheckpointError, ConfigError
from impart_core.checkpoint.adapter import ADAPTER_CONFIG
from impart_core.checkpoint.index import CARD, CONFIG
from impart_core.checkpoint.listing import find_models
from impart_core.checkpoint.location import model_name, open_folder
from impart_core.checkpoint.sides import bases_named
from impart_core.checkpoint.source import read_json
from impart_core.zoo.file import Pattern, parse_zoo

_HEAD = """\
# Every setting is explained in docs/zoo.md. Check it with `impart zoo plan`, then `impart zoo run`.
"""
_RECIPE = {
    "steps": [{"method": "impart", "cr": 64}, {"method": "impart", "cr": 32}, {"method": "lowrank", "cr": 4}],
    "gate": {"tasks": [], "loses": 0.02},
}


def initial_zoo(place: str, base: str | None = None) -> str:
    """Return the text of a zoo file for the models at a place; it says in a comment what is to be filled in.

    Args:
        place: a folder of models, an S3 prefix, or an organisation of the Hub as `hf://org`.
        base: what all of them were fine-tuned from; None: what each model's card or configuration says.

    Raises:
        CheckpointError: the place cannot be listed.
        ConfigError: there is no model, or one that does not say what its base is.
    """
    found = find_models(f"{place.rstrip('/')}/*")
    bases = {name: base or _base_of(where, found) for name, where in found.items()}
    # A model that others were tuned from is no fine-tune of this zoo.
    others = {os.path.realpath(one) for one in bases.values() if one}
    models = {name: where for name, where in found.items() if os.path.realpath(where) not in others}
    if not models:
        raise ConfigError(f"No model lies at {place}: no folder in it has a configuration. Give the folder of models.")
    silent = sorted(name for name in models if not bases[name])
    if silent:
        raise ConfigError(
            f"{len(silent)} of {len(models)} models do not say what they were fine-tuned from, first {silent[0]!r}. "
            "Say it for all with --base."
        )
    entries = [
        {"name": Pattern(find="x/*", base="x").model(name, where).name, "base": bases[name], "finetuned": where}
        for name, where in models.items()
    ]
    content = {"zoo": "zoo", "recipes": {"default": _RECIPE}, "models": entries}
    parse_zoo(content)
    text = yaml.safe_dump(content, sort_keys=False, width=110)
    return _HEAD + text.replace("tasks: []", "tasks: []  # without any, everything passes: name tasks of lm-eval")


def _base_of(where: str, known: Mapping[str, str]) -> str | None:
    """Return what a model says that it was fine-tuned from: where that lies, if it is one of the known ones."""
    folder = open_folder(where)
    config = folder.file(ADAPTER_CONFIG) or folder.file(CONFIG)
    try:
        named = bases_named(read_json(config) if config else {}, folder.file(CARD))
    except CheckpointError:
        return None
    here = {model_name(place): place for place in known.values()}
    return next((here.get(model_name(one), one) for one in named if model_name(one) != model_name(where)), None)
