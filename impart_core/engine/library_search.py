"""The library's verb `search`, apart from the others: what it needs is not loaded for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from impart_core.base.errors import ConfigError
from impart_core.base.settings import nearest
from impart_core.engine import search as searching
from impart_core.engine.executor import Progress, ThreadExecutor
from impart_core.engine.library import opened_store
from impart_core.engine.requests import Trust
from impart_core.engine.search import SearchReport, SearchRequest
from impart_core.searching.file import SearchFile, parse_search, read_search_file
from impart_core.store.store import Store


class SearchKeywords(TypedDict, total=False):
    """How a search is run; see `SearchRequest`."""

    device: str
    workers: int
    run_code: bool
    run_code_without_sandbox: bool
    trust: Trust


def search(
    file: str | Path | Mapping[str, Any] | SearchFile,
    *,
    store: str | Path | Store | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[SearchKeywords],
) -> SearchReport:
    """Search for the best filling of a template on validation items, and score it once on the test split.

    Args:
        file: the search: a YAML file, what such a file holds, or the settings themselves.
        store: where everything is kept; None: IMPART_STORE, else the user's own.
        progress: called with `search`, trials done, their number, and the best so far.
        keywords: how it is run, by name; see `SearchKeywords`.

    Returns:
        The study: `report.record.study` has all trials, `report.record.verdict` the winner beside others.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    for name in keywords:
        if name not in SearchKeywords.__annotations__:
            raise ConfigError(f"Unknown setting {name!r}.{nearest(name, SearchKeywords.__annotations__)}")
    if isinstance(file, str | Path):
        file = read_search_file(file)
    elif not isinstance(file, SearchFile):
        file = parse_search(dict(file) if isinstance(file, Mapping) else file)
    request = SearchRequest(file=file, store=opened_store(store).url, **keywords)
    with ThreadExecutor(request.workers or file.parallel) as executor:
        return searching.search(request, executor, progress=progress)
