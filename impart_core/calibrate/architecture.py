"""Which checkpoints can be calibrated: decoder-only causal language models whose code is transformers' own."""

from contextlib import AbstractContextManager
from typing import Any

from impart_core.base.errors import CalibrationError
from impart_core.base.foreign import explained_failures
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.model import transformers_config

ADVICE = "Use a method that needs no calibration."


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
        return transformers_config(checkpoint)
    except Exception as error:  # whatever the model's own class makes of a wrong value
        raise CalibrationError(
            f"transformers cannot read the configuration of {checkpoint.location} as one of {kind!r}: {error}. "
            "Correct its config.json."
        ) from error


def model_code(location: str) -> AbstractContextManager[None]:
    """Turn what goes wrong in a model's own code into a `CalibrationError`; see `explained_failures`.

    Args:
        location: where its checkpoint lies.
    """
    doing = f"The layers of {location} cannot be run one by one: transformers' code for it failed"
    return explained_failures(doing, lambda: ADVICE, CalibrationError)
