"""Quantising a published delta: the compression that made it, asked for again with another method and ratio."""

from impart_core.artifacts.delta import Delta, open_delta
from impart_core.base.errors import CheckpointError, ConfigError, WrongBaseError
from impart_core.blocks.coding import coding_of_role
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.digest import checkpoint_id, tensor_digests
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import VOCABULARY
from impart_core.engine.preflight import Checked, check_compress, open_side
from impart_core.engine.requests import CompressRequest, QuantizeRequest, RunRequest, absolute
from impart_core.methods import METHODS, QUANTIZING
from impart_core.methods.depth import depth_of
from impart_core.store.names import resolve
from impart_core.store.store import Store

_KEPT = ("seed", "accounting", "embeddings", "embeddings_cr", "factors_for")


def quantize_request(request: QuantizeRequest) -> tuple[CompressRequest, Checked]:
    """Return the compression that quantises a delta, checked.

    Raises:
        ConfigError: the artifact is no delta, or the method does not quantise.
        CheckpointError: a checkpoint is not where it was.
        WrongBaseError: a checkpoint is another than the delta was made from.
    """
    METHODS.get(request.method)  # refuses a name that is not known
    if request.method not in QUANTIZING:
        raise ConfigError(f"Method {request.method!r} has no codes to quantise to. Use one of {', '.join(QUANTIZING)}.")
    store = Store(request.store)
    delta = open_delta(store, resolve(store, request.ref))
    compression = CompressRequest(
        base=_place(delta, "base", request.base),
        finetuned=_place(delta, "finetuned", request.finetuned),
        config=_config(delta, request),
        **{name: getattr(request, name) for name in RunRequest.model_fields},
    )
    base = _opened(delta, "base", compression.base)
    finetuned = _opened(delta, "finetuned", compression.finetuned, base)
    return compression, check_compress(compression, (base, finetuned))


def _config(delta: Delta, request: QuantizeRequest) -> CompressConfig:
    """Return the delta's settings with those of the request in their place."""
    before = delta.manifest.recipe.config
    asked = {name: before[name] for name in _KEPT if name in before}
    settings = {"method": request.method, "cr": request.cr, "seed": request.seed, "options": request.options}
    asked |= {name: value for name, value in settings.items() if value is not None}
    config = CompressConfig(**asked)
    try:
        for role in (Role.PROJECTION, *VOCABULARY):
            if coding := coding_of_role(role, config):
                depth_of(coding, 2, 2, config.factors_for)
    except ConfigError:  # the delta's factors do not go deep enough for what is asked of them now
        return config.model_copy(update={"factors_for": None})
    return config


def _place(delta: Delta, role: str, given: str | None) -> str:
    """Return where one of a delta's checkpoints is to be read."""
    place = absolute(given) if given else delta.manifest.provenance.place(role)
    if not place:
        made = delta.manifest.id[:12]
        raise ConfigError(f"The delta {made} does not say where its {role} checkpoint lay. Give it with --{role}.")
    return place


def _opened(delta: Delta, role: str, place: str, base: Checkpoint | None = None) -> Checkpoint:
    """Open one of a delta's checkpoints, having checked that it is the same; `base` as in `open_checkpoint`."""
    made = delta.manifest.id[:12]
    try:
        checkpoint = open_side(place, base)
    except CheckpointError as error:
        raise type(error)(f"{error} If the {role} checkpoint of {made} has moved, give it with --{role}.") from error
    if checkpoint_id(tensor_digests(checkpoint)) != getattr(delta.content, role):
        raise WrongBaseError(
            f"{place} is not the {role} checkpoint that {made} was made from: its tensors differ. "
            f"Give the right one with --{role}."
        )
    return checkpoint
