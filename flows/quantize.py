"""Quantising a published delta: the compression that made it, asked for again with another method and ratio."""

from typing import Any

from impart_flows.compress import CompressRequest, absolute

from impart_core.artifacts.delta import Delta, open_delta
from impart_core.base.errors import CheckpointError, ConfigError, WrongBaseError
from impart_core.base.settings import build_config
from impart_core.blocks.coding import coding_of_role
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.digest import checkpoint_id, tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import VOCABULARY
from impart_core.methods import METHODS, QUANTIZING
from impart_core.store.names import resolve
from impart_core.store.store import Store

_KEPT = ("seed", "accounting", "embeddings", "embeddings_cr", "factors_for")


def quantize_request(
    store: str, ref: str, settings: dict[str, Any], *, base: str | None, finetuned: str | None, **others: Any
) -> CompressRequest:
    """Return the compression that quantises a delta.

    Args:
        store: the store's URL.
        ref: the delta's name or id.
        settings: `method`, `cr`, `options` and `seed`; what is None is as for the delta.
        base: where the base lies; None: where it lay.
        finetuned: where the fine-tuned checkpoint lies; None: where it lay.
        others: the rest of the request.

    Raises:
        ConfigError: the artifact is no delta, or the method does not quantise.
        CheckpointError: a checkpoint is not where it was.
        WrongBaseError: a checkpoint is another than the delta was made from.
    """
    method = settings["method"]
    METHODS.get(method)  # refuses a name that is not known
    if method not in QUANTIZING:
        raise ConfigError(f"Method {method!r} has no codes to quantise to. Use one of {', '.join(QUANTIZING)}.")
    opened = Store(store)
    delta = open_delta(opened, resolve(opened, ref))
    before = delta.manifest.recipe.config
    asked = {name: before[name] for name in _KEPT if name in before}
    asked |= {name: value for name, value in settings.items() if value is not None}
    config = build_config(CompressConfig, **asked)
    if config.factors_for and not all(
        _serves(config.factors_for, role, config) for role in (Role.PROJECTION, *VOCABULARY)
    ):
        config = config.model_copy(update={"factors_for": None})
    return CompressRequest(
        base=_place(delta, "base", base),
        finetuned=_place(delta, "finetuned", finetuned),
        config=config,
        store=store,
        **others,
    )


def _serves(factors_for: float, role: Role, config: CompressConfig) -> bool:
    """Whether factors for a ratio go deep enough for what codes the tensors of a role."""
    settings = coding_of_role(role, config)
    if settings is None:
        return True
    method = METHODS.get(settings.method)
    if method.needed_rank(2, 2, settings) is None:
        return True
    usual = method.usual_cr(settings)
    return usual is not None and factors_for <= usual


def _place(delta: Delta, role: str, given: str | None) -> str:
    """Return where one of a delta's checkpoints lies, having checked that it is the same."""
    place = absolute(given) if given else delta.manifest.provenance.sources.get(role)
    made = delta.manifest.id[:12]
    if not place:
        raise ConfigError(f"The delta {made} does not say where its {role} checkpoint lay. Give it with --{role}.")
    try:
        checkpoint = open_checkpoint(place)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} If the {role} checkpoint of {made} has moved, give it with --{role}."
        ) from error
    if checkpoint_id(tensor_digests(checkpoint)) != getattr(delta.content, role):
        raise WrongBaseError(
            f"{place} is not the {role} checkpoint that {made} was made from: its tensors differ. "
            f"Give the right one with --{role}."
        )
    return place
