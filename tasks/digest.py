"""Stage: what a checkpoint is, by content."""

from impart_tasks.resources import NETWORK, stage

from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint


@stage("digest checkpoint", "digest {location}", NETWORK)
def digest_checkpoint(location: str, refresh: bool = False) -> dict[str, str]:
    """Return the digest of every tensor of a checkpoint, remembered between runs."""
    return tensor_digests(open_checkpoint(location), refresh=refresh)
