"""Telling somebody of a zoo's run: its report as JSON, posted to an address."""

import os

import httpx

from impart_core.base.text import without_secrets
from impart_core.zoo.file import Notify
from impart_core.zoo.record import Counts, ZooRun
from impart_core.zoo.report import headline

_SECONDS = 10.0
_TRIES = 3


def message_of(run: ZooRun) -> dict[str, object]:
    """Return what is posted: `text` for chats that show it, and the entries that somebody should look at."""
    looked_at = run.with_status("failed", "refused")
    return {
        "text": headline(run),
        "zoo": run.zoo,
        "run": run.run,
        "counts": Counts.of(run).model_dump(mode="json"),
        "entries": [
            outcome.model_dump(mode="json", include={"name", "kind", "status", "owner", "ref", "why"})
            for outcome in looked_at
        ],
        "trouble": list(run.trouble),
    }


def notify(settings: Notify, run: ZooRun) -> str:
    """Post a run's report where the settings say; return what went wrong, in a sentence, empty where nothing did."""
    if settings.when == "trouble" and not (run.trouble or run.with_status("failed", "refused")):
        return ""
    address = os.environ.get(settings.webhook_env)
    if not address:
        return f"Nobody was told of this run: the variable {settings.webhook_env} holds no address."
    why = ""
    for _ in range(_TRIES):
        try:
            answer = httpx.post(address, json=message_of(run), timeout=_SECONDS)
            if answer.is_success:
                return ""
            why = f"it answered {answer.status_code}"
            if answer.status_code < 500 and answer.status_code != 429:
                break
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
    # The address may be a secret, and errors may tell it.
    told = without_secrets(why.replace(address, "its address"))
    return f"Nobody was told of this run: the webhook of {settings.webhook_env} did not take the report: {told}."
