"""Uploads in parts whose requests and answers are lost: the object is whole, or not there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from impart_core.base.errors import StoreUnreachableError
from impart_core.base.files import sha256_of
from impart_core.store.store import Store
from tests.faults.places import Place
from tests.faults.tally import Tally
from tests.s3proxy import Fault, Request, S3Proxy

pytestmark = pytest.mark.faults


def completes(request: Request) -> bool:
    """Return whether a request ends an upload in parts."""
    return request.method == "POST" and "uploadId=" in request.path


def is_part(request: Request) -> bool:
    """Return whether a request uploads a part."""
    return request.method == "PUT" and "partNumber=" in request.path


TROUBLES: dict[str, Callable[[S3Proxy], Fault]] = {
    "end of an upload done but not told": lambda proxy: proxy.cut_answers(times=2, match=completes),
    "end of an upload not done": lambda proxy: proxy.answer(500, times=2, match=completes),
    "part stored but not told": lambda proxy: proxy.cut_answers(times=2, match=is_part),
    "part cut": lambda proxy: proxy.cut_requests(times=2, match=is_part),
    "part refused with 503": lambda proxy: proxy.answer(503, times=2, match=is_part),
}


@pytest.mark.parametrize("what", TROUBLES)
def test_a_large_file_arrives_whole(
    what: str, behind_proxy: Place, proxy: S3Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: Tally
) -> None:
    for name, value in behind_proxy.environment.items():
        if value is not None and not name.startswith("PREFECT"):
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it would go on with the last test's proxy
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * (20 << 12))  # 20 MiB: two parts
    fault = TROUBLES[what](proxy)
    objects = Store(behind_proxy.url).objects
    try:
        objects.put("artifacts/large", source, sha256_of(source))
    except StoreUnreachableError:  # what a task tries again
        objects.put("artifacts/large", source, sha256_of(source))
    assert fault.injected == 2
    count(what, 2)
    assert objects.fetch("artifacts/large", tmp_path / "back") == sha256_of(source)
