"""Names, ids and paths of strangers: nothing outside of a store is read or written through them."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.errors import CorruptArtifactError, ImpartError
from impart_core.store.names import all_refs, get_ref, resolve, set_ref
from impart_core.store.store import Store
from tests.impart_core.store.samples import sample

pytestmark = pytest.mark.faults

ID = "a" * 64
ESCAPES = [
    "..",
    ".",
    "../outside",
    "../../outside",
    "tiny/../../../outside",
    "/etc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "s3://bucket/key",
    "~/x",
    "%2e%2e%2foutside",
    "%2e%2e/outside",
    "..%2foutside",
    "..\\outside",
    "C:\\windows",
    "\\\\host\\share",
    "tiny\0",
    "tiny\0/../outside",
    "tiny\n",
    "\ntiny",
    " tiny",
    "",
    "x" * 10_000,
    "․․/outside",
    "．．／outside",
    "‥",
    "tiny∕outside",
    "tıny",
    "tiny@",
    "tiny@../../outside",
    "@prod",
    "-rf",
    ".hidden",
    "tiny@.hidden",
    "²",
    "\ud800",
]
opened: list[str] = []
watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and (event == "open" or event.startswith(("os.", "shutil."))) and "env" not in event:
        opened.extend(str(one) for one in arguments if isinstance(one, str | bytes | Path))


sys.addaudithook(_watch)  # it stays for as long as the process runs, and does nothing until it is told to


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with an artifact and a name, whose siblings hold what an escape would find."""
    root = tmp_path_factory.mktemp("names")
    store = Store(root / "prefix" / "store")
    manifest, files = sample(root / "data")
    store.publish(manifest, files)
    set_ref(store, "tiny", manifest.id)
    entry = (root / "prefix" / "store" / "refs" / "tiny" / "00000001.json").read_bytes()
    for outside in (root / "outside", root / "prefix" / "outside", root / "prefix" / "store" / "outside"):
        outside.mkdir()
        (outside / "00000001.json").write_bytes(entry)
        (outside / "manifest.json").write_bytes(manifest.to_json())
    return store


@pytest.fixture
def nothing_outside(store: Store) -> Iterator[None]:
    """Checks that a test opened and changed nothing beside the store."""
    global watching
    root = Path(store.url).parents[1]
    before = snapshot(root)
    opened.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
    strange = {path for path in opened if str(root) in path and not path.startswith(f"{store.url}/")} - {store.url}
    assert not strange
    beside = [path for path in opened if not path.startswith(f"{store.url}/")]
    assert not [path for path in beside if "outside" in path or path == "/etc/passwd"]
    assert snapshot(root) == before


def snapshot(root: Path) -> dict[str, bytes]:
    """Return every file below a folder and its content."""
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def is_refused(call: Callable[[], object]) -> None:
    """Check that a call ends with an error of ours that can be printed."""
    with pytest.raises(ImpartError) as refused:
        call()
    str(refused.value).encode()


@pytest.mark.usefixtures("nothing_outside")
@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_are_none_lead_nowhere(name: str, store: Store) -> None:
    assert get_ref(store, name) is None
    is_refused(lambda: resolve(store, name))
    is_refused(lambda: set_ref(store, name, ID))


@pytest.mark.usefixtures("nothing_outside")
def test_any_text_is_a_name_or_leads_nowhere(store: Store) -> None:
    pieces = st.lists(st.sampled_from(["..", "/", "\\", "%2e", "%2f", "\0", "tiny", "@", "\n", "outside", "．", "~"]))

    @given(pieces.map("".join) | st.text(max_size=50))
    @settings(max_examples=500, deadline=None)
    def check(name: str) -> None:
        found = get_ref(store, name)
        assert found is None or name == "tiny"
        if found is None:
            is_refused(lambda: resolve(store, name))

    check()


@pytest.mark.usefixtures("nothing_outside")
@pytest.mark.parametrize("escape", [*ESCAPES, f"{ID}\n", f"../{ID}"])
@pytest.mark.parametrize("where", ["id", "parent", "path", "sha256", "block", "carried name", "carried digest"])
def test_manifests_that_point_out_of_the_store_are_refused(where: str, escape: str, store: Store) -> None:
    (made,) = store.ids()
    with altered(store, where, escape):
        is_refused(lambda: store.manifest(made))
        assert store.lookup(made) is None


@pytest.mark.parametrize("where", ["id", "parent", "sha256", "block", "carried digest"])
@pytest.mark.parametrize("wrong", ["A" * 64, "g" * 64, "a" * 63, "a" * 65, "١" * 64])
def test_digests_are_64_hexadecimal_digits(where: str, wrong: str, store: Store) -> None:
    with altered(store, where, wrong):
        is_refused(lambda: store.manifest(store.ids()[0]))


@pytest.mark.parametrize(
    ("where", "harmless"),
    [
        ("parent", ID),
        ("path", "a.bin"),
        ("sha256", ID),
        ("block", ID),
        ("carried name", "x.json"),
        ("carried digest", ID),
    ],
)
def test_it_is_the_pointing_that_is_refused(where: str, harmless: str, store: Store) -> None:
    with altered(store, where, harmless):
        assert store.manifest(store.ids()[0])


@contextmanager
def altered(store: Store, where: str, pointed: str) -> Iterator[None]:
    """Replace the manifest by one that points elsewhere, sealed again, as long as the block lasts."""
    (made,) = store.ids()
    plain = json.loads(store.manifest(made).to_json())
    point(plain, where, pointed)
    del plain["seal"]
    try:
        data = canonical_json({**plain, "seal": digest_of(plain)})
    except UnicodeEncodeError:
        data = json.dumps({**plain, "seal": ID}, sort_keys=True).encode()
    place = Path(store.url) / "artifacts" / made / "manifest.json"
    original = place.read_bytes()
    place.write_bytes(data)
    try:
        yield
    finally:
        place.write_bytes(original)


def point(manifest: dict[str, Any], where: str, escape: str) -> None:
    """Make a place of a manifest lead elsewhere."""
    if where == "id":
        manifest["id"] = escape
    elif where == "parent":
        manifest["parents"] = [escape]
    elif where in ("path", "sha256"):
        manifest["files"][0][where] = escape
    else:
        digest = {escape: ID} if where == "carried name" else {"config.json": escape}
        manifest["content"] = {
            "kind": "delta",
            "blocks": [{"name": "b", "id": escape if where == "block" else ID, "bytes": 1}],
            "base": ID,
            "finetuned": ID,
            "finetuned_bytes": 1,
            "carried": {} if where == "block" else digest,
            "projection_bytes": 1,
            "projection_dense_bytes": 1,
            "data_bytes": 1,
            "cr_projection": None,
        }


@pytest.mark.usefixtures("nothing_outside")
@pytest.mark.parametrize("name", ["²", "٣", "1", "-1", "9" * 200, "+0000001", "00000002 ", "0000_001", "00000001.json"])
def test_files_among_a_names_moves_that_are_none_change_nothing(name: str, store: Store) -> None:
    stray = Path(store.url) / "refs" / "tiny" / f"{name}.json"
    stray.write_bytes(canonical_json({"id": ID, "moved": ""}))
    try:
        assert get_ref(store, "tiny") == all_refs(store)["tiny"] == store.ids()[0]
    finally:
        stray.unlink()


def test_a_ref_that_is_not_one_is_told(store: Store) -> None:
    stray = Path(store.url) / "refs" / "tiny" / "00000009.json"
    stray.write_bytes(canonical_json({"id": "../../../outside", "moved": ""}))
    try:
        with pytest.raises(CorruptArtifactError, match="is not a ref"):
            resolve(store, "tiny")
    finally:
        stray.unlink()
