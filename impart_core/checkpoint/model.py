"""The model that transformers makes of a configuration, on no device: its names for tensors, and which it lacks.

How transformers loads is no documented interface of it; `calibrate.placement.load` and this file are all that uses it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch

from impart_core.base.parallel import making_a_model
from impart_core.checkpoint.index import Checkpoint

_LAYERS = re.compile(r"(n|num|num_hidden|num_decoder|num_encoder|encoder|decoder)_layers?")
# JSON has no such numbers: transformers writes {"__float__": "Infinity"}.
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_REMEMBERED = 16
_found: dict[str, "Gaps"] = {}  # by configuration and tensors, as text
_told = RLock()  # what transformers tells is switched off for all threads


class UnknownModelError(Exception):
    """Transformers makes no model of this configuration; the message says why."""


@dataclass(frozen=True)
class Gaps:
    """What a model needs and its checkpoint does not hold.

    Attributes:
        missing: parameters, and buffers that are saved, by the model's names, that no tensor is loaded into.
        misfits: parameters whose tensors have another shape, with both shapes.
    """

    missing: tuple[str, ...]
    misfits: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def load_transformers() -> None:
    """Import transformers, where it is installed, before threads do so.

    It puts another module in its own place while it is imported: a thread that imports it at that moment too is left
    with the first, which has none of its classes.
    """
    with suppress(ImportError):
        import transformers  # noqa: F401


def transformers_config(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint's configuration as transformers' own class for its `model_type`, which is one that it knows.

    Whatever that class makes of a wrong value is raised.
    """
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[checkpoint.config["model_type"]].from_dict(_with_floats(checkpoint.config))


def _with_floats(value: Any) -> Any:
    """Return a copy of a JSON value with the floats that transformers writes as objects."""
    if isinstance(value, Mapping):
        tag = value.get("__float__") if len(value) == 1 else None
        return _FLOATS[tag] if tag in _FLOATS else {key: _with_floats(part) for key, part in value.items()}
    return [_with_floats(part) for part in value] if isinstance(value, list) else value


def empty_model(checkpoint: Checkpoint) -> Any:
    """Return the model of a checkpoint's configuration, all of it on no device. No code from the checkpoint is run.

    Raises:
        UnknownModelError: transformers is not installed, does not know the architecture, or cannot make it.
    """
    if not _states_sizes(checkpoint.config):
        raise UnknownModelError("the configuration does not say how many layers it has")
    try:
        import transformers
    except ImportError as error:
        raise UnknownModelError("transformers is not installed") from error
    kind = checkpoint.config.get("model_type")
    named = next(iter(checkpoint.config.get("architectures") or ()), None)
    if kind not in transformers.CONFIG_MAPPING:
        raise UnknownModelError(f"transformers {transformers.__version__} does not know the model_type {kind!r:.100}")
    model_class = getattr(transformers, named, None) if isinstance(named, str) else transformers.AutoModel
    if model_class is None or not hasattr(model_class, "from_pretrained"):
        raise UnknownModelError(f"transformers {transformers.__version__} does not know the model {named!r:.100}")
    try:
        with making_a_model(), _quiet(), torch.device("meta"):
            config = transformers_config(checkpoint)
            return model_class.from_config(config) if named is None else model_class(config)
    except Exception as error:  # whatever the model's own class makes of its configuration
        raise UnknownModelError(f"transformers cannot make the model: {error}") from error


def renaming(model: Any, *, convert: bool = True) -> Callable[[str], str]:
    """Return what a tensor of the checkpoint is called in the model.

    Args:
        model: the model.
        convert: whether tensors that are joined, split or transposed are named by what becomes of them, too.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    changes, names = get_model_conversion_mapping(model), model.state_dict()
    simple = [change for change in changes if isinstance(change, WeightRenaming)]
    others = [change for change in changes if isinstance(change, WeightConverter) and convert]
    return lambda name: str(rename_source_key(name, simple, others, model.base_model_prefix, names)[0])


def find_gaps(checkpoint: Checkpoint) -> Gaps:
    """Return what transformers would fill with random values, loading tensors that hold nothing into an empty model.

    Fine-tunes of one base are alike: what was found for the same configuration and the same tensors is remembered.

    Raises:
        UnknownModelError: as for `empty_model`, or transformers loads in a way that is not known here.
    """
    shapes = {name: [info.dtype, *info.shape] for name, info in checkpoint.tensors.items()}
    key = json.dumps([checkpoint.config, shapes], sort_keys=True, default=dict)
    gaps = _found.get(key)
    if gaps is None:
        gaps = _look_for_gaps(checkpoint)
        if len(_found) >= _REMEMBERED:
            _found.clear()
        _found[key] = gaps
    return gaps


def _look_for_gaps(checkpoint: Checkpoint) -> Gaps:
    model = empty_model(checkpoint)
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        tensors = {
            name: torch.empty(info.shape, dtype=info.torch_dtype, device="meta")
            for name, info in checkpoint.tensors.items()
        }
        settings = LoadStateDictConfig(
            weight_mapping=get_model_conversion_mapping(model),
            device_map={"": torch.device("meta")},
            dtype=torch.float32,
        )
        with _quiet():
            found, _ = convert_and_load_state_dict_in_model(model=model, state_dict=tensors, load_config=settings)
            model.tie_weights(missing_keys=found.missing_keys, recompute_mapping=False)
            model._adjust_missing_and_unexpected_keys(found)
        misfits = tuple(sorted((name, tuple(ours), tuple(theirs)) for name, ours, theirs in found.mismatched_keys))
    except Exception as error:
        raise UnknownModelError(f"transformers does not load it: {error}") from error
    return Gaps(tuple(sorted(found.missing_keys - {name for name, *_ in misfits})), misfits)


def _states_sizes(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, or a part of it, states a number of layers; without, a class has defaults of its own."""
    return any(
        _states_sizes(value) if isinstance(value, Mapping) else bool(_LAYERS.fullmatch(key))
        for key, value in config.items()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers print nothing for the moment."""
    from transformers.utils import logging

    with _told:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
