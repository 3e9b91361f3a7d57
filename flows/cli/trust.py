"""How far a run trusts what is there already, from its flags."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impart_core.engine.requests import Trust


def read_trust(verify_cache: bool, refresh: bool, refresh_from: str | None) -> "Trust":
    """Return the trust that `--verify-cache`, `--refresh` and `--refresh-from` ask for.

    Raises:
        ConfigError: two of them cannot go together.
        UnknownNameError: there is no such stage; the message gives the nearest.
    """
    from impart_core.base.errors import ConfigError, unknown_name
    from impart_core.engine.requests import STAGES, Trust

    if refresh and refresh_from is not None:
        raise ConfigError("--refresh and --refresh-from are both given; --refresh is --refresh-from digest. Give one.")
    if refresh_from is not None and refresh_from not in STAGES:
        raise unknown_name("stage", refresh_from, STAGES)
    stage = STAGES[0] if refresh else refresh_from
    return Trust.model_validate({"reread": verify_cache, "refresh_from": stage})
