"""Whether the Hugging Face Hub answers: asked once, before libraries ask it many times and wait in between."""

from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE_SECONDS = 10.0


def hub_answers() -> bool:
    """Return whether the Hub can be reached; any answer will do. In offline mode it is not asked."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception:  # a proxy, a certificate, a name that is not known: each with an error of its own
        return False
    return True


@contextmanager
def from_cache_alone(wanted: bool) -> Iterator[None]:
    """Let data sets and the Hub's client look in the local cache only, where that is wanted, while the block lasts.

    Both read the environment when they are imported, which is over by now: their settings are set instead.
    """
    if not wanted:
        yield
        return
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
