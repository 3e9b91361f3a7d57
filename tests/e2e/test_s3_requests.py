"""How many requests a compression makes of an S3 store: so many for each block, and a few beside."""

from pathlib import Path

import pytest

from tests.s3proxy import S3Proxy
from tests.support import Environment, make_pair, run_json

pytestmark = pytest.mark.e2e

PER_BLOCK, BESIDE = 15, 7
PER_BLOCK_REUSED, BESIDE_REUSED = 2, 13


def requests(s3: dict[str, str], environment: Environment, *words: str) -> tuple[int, int]:
    """Return how many blocks a compression had, and the requests that it made."""
    with S3Proxy(s3["AWS_ENDPOINT_URL"]) as proxy:
        report = run_json(*words, environment={**environment, **s3, "AWS_ENDPOINT_URL": proxy.url})
        proxy.settle()
        return report["blocks"], proxy.count()


@pytest.mark.parametrize("layers", [1, 4])
def test_requests_grow_with_blocks_only(
    layers: int, s3: dict[str, str], environment: Environment, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path, layers=layers)
    words = ["compress", *map(str, pair), "--cr", "4", "--store", f"s3://impart/requests-{layers}"]
    blocks, made = requests(s3, environment, *words)
    assert blocks == layers + 1
    assert made <= PER_BLOCK * blocks + BESIDE
    _, reused = requests(s3, environment, *words)
    assert reused <= PER_BLOCK_REUSED * blocks + BESIDE_REUSED
