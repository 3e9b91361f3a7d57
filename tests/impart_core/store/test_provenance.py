"""Who, when, with what, and at what cost."""

import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import impart_core
from impart_core import __version__
from impart_core.store.manifest import Manifest
from impart_core.store.provenance import Provenance, Stopwatch, code_digest, peak_rss_bytes
from tests.impart_core.store.samples import sample


def test_it_records_versions_start_and_duration() -> None:
    watch = Stopwatch()
    time.sleep(0.02)
    found = watch.provenance()
    assert found.code_version == __version__
    assert found.libraries["torch"] == metadata.version("torch")
    assert 0.02 <= found.seconds <= watch.seconds + 0.001
    started = datetime.fromisoformat(found.started)
    assert started.utcoffset() == timedelta(0)
    assert timedelta(0) <= datetime.now(UTC) - started < timedelta(minutes=1)
    assert Provenance.model_validate_json(found.model_dump_json()) == found


def test_peak_memory_is_in_bytes_and_follows_what_is_touched() -> None:
    before = peak_rss_bytes()
    assert 10 << 20 < before < 1 << 40
    held = bytearray(before + (64 << 20))
    held[::4096] = b"\1" * len(held[::4096])
    assert peak_rss_bytes() >= before + (64 << 20)


def test_it_records_where_inputs_lay_and_the_run_as_they_were_given() -> None:
    found = Stopwatch({"base": "/models/base"}, run="r1").provenance()
    assert (found.sources, found.run) == ({"base": "/models/base"}, "r1")
    assert (Stopwatch().provenance().sources, Stopwatch().provenance().run) == ({}, "")


def test_nothing_of_it_is_part_of_an_artifacts_id(tmp_path: Path) -> None:
    manifest, _ = sample(tmp_path)
    fields = {name: getattr(manifest, name) for name in ("files", "content")}
    others: dict[str, object] = {
        **dict.fromkeys(("code_version", "code_digest", "system", "user", "started", "run"), "another"),
        **{field: {"base": "elsewhere"} for field in ("libraries", "sources")},
        **dict.fromkeys(("seconds", "peak_rss_bytes"), 12345),
        "imported": True,
    }
    assert others.keys() == Provenance.model_fields.keys()
    for field, value in others.items():
        made = manifest.provenance.model_copy(update={field: value})
        other = Manifest.make(manifest.recipe, provenance=made, **fields)
        assert other.id == manifest.id
        assert other.seal != manifest.seal  # it is recorded all the same


def digest_elsewhere(folder: Path) -> str:
    """Return the digest that a process finds whose `impart_core` lies in a folder."""
    code = "from impart_core.store.provenance import code_digest; print(code_digest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_digest_of_the_code_is_that_of_its_sources_wherever_they_lie(tmp_path: Path) -> None:
    ours = Path(impart_core.__file__).parent
    copy = shutil.copytree(ours, tmp_path / "impart_core", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    assert digest_elsewhere(tmp_path) == code_digest()
    with (copy / "base" / "numerics.py").open("a") as file:
        file.write("\n")
    assert digest_elsewhere(tmp_path) != code_digest()
