"""Which checkpoints can be calibrated: decoder-only causal language models whose code is transformers' own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from impart_core.base.errors import CalibrationError, ImpartError
from impart_core.base.numerics import is_out_of_device_memory
from impart_core.checkpoint.index import Checkpoint

ADVICE = "Use a method that needs no calibration."
# JSON has no such numbers: transformers writes {"__float__": "Infinity"}.
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def check_calibratable(checkpoint: Checkpoint) -> None:
    """Refuse what is not a decoder-only causal language model, from the configuration alone.

    Raises:
        CalibrationError: it is another kind of model, or one that transformers does not know.
    """
    model_config(checkpoint)


def model_config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of a decoder-only causal language model, as transformers' own class for it.

    A model with another head than that of a language model is taken as well: its layers are the same. No code from
    the checkpoint is run.

    Raises:
        CalibrationError: it is another kind of model, or one that transformers does not know.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = checkpoint.config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise CalibrationError(
            f"The configuration of {checkpoint.location} has the model_type {kind!r}, which this version of "
            "transformers does not know, and code from a checkpoint is not run. Install a newer transformers, or use "
            "a method that needs no calibration."
        )
    # A model that is trained to fill in masked words looks both ways, unless its configuration says otherwise.
    both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not checkpoint.config.get("is_decoder")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or both_ways or checkpoint.config.get("is_encoder_decoder"):
        architecture = next(iter(checkpoint.config.get("architectures") or [kind]))
        raise CalibrationError(
            f"{checkpoint.location} is a {architecture}, and only decoder-only causal language models can be "
            "calibrated. Use a method that needs no calibration."
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(_with_floats(checkpoint.config))
    except Exception as error:  # whatever the model's own class makes of a wrong value
        raise CalibrationError(
            f"transformers cannot read the configuration of {checkpoint.location} as one of {kind!r}: {error}. "
            "Correct its config.json."
        ) from error


@contextmanager
def model_code(location: str) -> Iterator[None]:
    """Turn what goes wrong in a model's own code into a sentence; lack of memory on a device stays what it is.

    Args:
        location: where its checkpoint lies.

    Raises:
        CalibrationError: its code failed on what it was given.
    """
    try:
        yield
    except ImpartError:
        raise
    except Exception as error:  # the code of some hundred models, each with ways of its own to fail
        if is_out_of_device_memory(error):
            raise
        raise CalibrationError(
            f"The layers of {location} cannot be run one by one: transformers' code for it failed "
            f"({type(error).__name__}: {error}). {ADVICE}"
        ) from error


def _with_floats(value: Any) -> Any:
    """Return a copy of a JSON value with the floats that transformers writes as objects."""
    if isinstance(value, Mapping):
        tag = value.get("__float__") if len(value) == 1 else None
        return _FLOATS[tag] if tag in _FLOATS else {key: _with_floats(part) for key, part in value.items()}
    return [_with_floats(part) for part in value] if isinstance(value, list) else value
