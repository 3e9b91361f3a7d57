"""A checkpoint as its model would have saved it: names without wrappers, and values instead of codes."""

import re
from dataclasses import replace

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.quantized import dequantized
from impart_core.checkpoint.weights import NAMED

# What torch.compile, FSDP and activation checkpointing put into names, and what others put before all of them.
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BEFORE = ("module.", "_forward_module.", "base_model.model.")
_ADAPTER = re.compile(
    r"\.(lora_\w+|modules_to_save|original_module|ia3_\w|hada_\w+|lokr_\w+|(b?oft|vera|fourierft)_\w+)\b"
)


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with its model's own names for tensors, and with the values that quantised ones stand for.

    Raises:
        CheckpointError: it holds an adapter beside the weights, or is quantised in a format that is not read here.
    """
    # The rebuilt model's weights are in the usual files.
    return dequantized(_unwrapped(checkpoint)).without_settings([NAMED])


def _unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    adapter = next((name for name in checkpoint.tensors if _ADAPTER.search(name)), None)
    if adapter is not None:
        raise CheckpointError(
            f"{checkpoint.location} holds an adapter beside the weights that it changes ({adapter!r}). Merge it with "
            "`merge_and_unload()` and save the model."
        )
    names = {name: _INSIDE.sub("", name) for name in checkpoint.tensors}
    while prefix := next((p for p in _BEFORE if all(own.startswith(p) for own in names.values())), None):
        names = {name: own.removeprefix(prefix) for name, own in names.items()}
    wrapped = next((name for name, own in names.items() if own != name), None)
    if wrapped is None:
        return checkpoint
    tensors = {own: replace(checkpoint.tensors[name], name=own) for name, own in names.items()}
    if len(tensors) < len(names):
        raise CheckpointError(
            f"{checkpoint.location} holds tensors twice, with and without the names of a wrapper ({wrapped!r}). "
            "Save the model itself, without what it was wrapped in."
        )
    note = (
        f"{checkpoint.location} was saved with what its model was wrapped in: {wrapped!r} is taken as "
        f"{names[wrapped]!r}, and its like. The rebuilt model has the latter names, which transformers loads."
    )
    return replace(checkpoint, tensors=dict(sorted(tensors.items())), notes=(*checkpoint.notes, note))
