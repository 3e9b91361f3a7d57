"""Files of strangers: each parses to what it says, or is refused with a sentence; quickly, and in little memory."""

import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from impart_core.apply.dense import reconstruct
from impart_core.apply.reader import open_reader
from impart_core.artifacts.delta import open_delta
from impart_core.artifacts.factors import FACTORS_FILE, FactorsContent, locate_factors
from impart_core.base.errors import CorruptArtifactError, ImpartError
from impart_core.blocks.rebuild import rebuild_tensor
from impart_core.checkpoint.header import read_header
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.codec.exact import encode_exact, encode_residual
from impart_core.codec.format import (
    EXACT,
    FORMAT_VERSION,
    PACKED_VERSION,
    BlockFile,
    EncodedTensor,
    TensorHeader,
    write_block,
)
from impart_core.methods import METHODS, Projection
from impart_core.methods.decode import check_delta, decode_delta, decode_stack
from impart_core.store.catalog import entry_of
from impart_core.store.manifest import parse_manifest
from impart_core.store.names import get_ref, resolve, set_ref
from impart_core.store.refs import RefEntry
from impart_core.store.store import Store
from tests.faults.hostile import damage, damage_header, damage_json, time_limit, variants
from tests.impart_core.pipeline import compress, config_of
from tests.support import decaying_delta, make_pair

pytestmark = pytest.mark.faults

SECONDS_PER_FILE = 2.0  # a thousand times what one takes, for a busy machine
MEASURED_EVERY = 40  # tracemalloc makes all of it several times slower
# JSON's smallest values, "[],", become Python objects of 64 bytes and more; pydantic's errors take more.
BYTES_PER_BYTE, SPARE_BYTES = 64, 4 << 20

Parse = Callable[[bytes], object]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a delta, its blocks, their factors, and a name."""
    root = tmp_path_factory.mktemp("hostile")
    base, finetuned = make_pair(root, layers=1)
    store = Store(root / "store")
    delta = compress(store, base, finetuned, config_of(4.0), keep_factors=True)
    set_ref(store, "tiny", delta.manifest.id)
    return store


@pytest.fixture(scope="module", params=[FORMAT_VERSION, PACKED_VERSION])
def block(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A block's file with a tensor of every method, in either format."""
    path = tmp_path_factory.mktemp("block") / "codes.safetensors"
    write_block(path, every_method(), request.param)
    return path.read_bytes()


def every_method() -> dict[str, EncodedTensor]:
    """Return small tensors of every method, a stack, and one with added rows."""

    def item(method: str, shape: tuple[int, ...], codes: dict[str, torch.Tensor], role: Role) -> EncodedTensor:
        header = TensorHeader(method=method, role=role, shape=shape, dtype="BF16", seed=5, parts=tuple(sorted(codes)))
        return EncodedTensor(header, codes)

    made = {}
    for method in METHODS:
        config = config_of(2, seed=5, method=method)
        codes = METHODS.get(method).encode(Projection.of(decaying_delta(16, 24), method), config)
        made[method] = item(method, (16, 24), codes, Role.PROJECTION)
    base = decaying_delta(16, 24).bfloat16()
    few = base.clone()
    few[3, :3] += 1
    for value, reference in ((base * 1.01, base), (few, base), (base.repeat(8, 8), None)):
        way, codes = encode_exact(value, reference)
        made[way] = item(way, tuple(value.shape), codes, Role.PROJECTION)
    residual = encode_residual(base * 1.01, base, None)
    made[residual[0]] = item(residual[0], (16, 24), residual[1], Role.PROJECTION)
    assert {*EXACT} <= {*made}
    part = Projection.of(decaying_delta(16, 24), "stack[1]")
    codes = METHODS.get("dare").encode(part, config_of(2, seed=5, method="dare"))
    made["stack"] = item("dare", (3, 16, 24), {f"1.{name}": code for name, code in codes.items()}, Role.PROJECTION)
    rows = {"rows": torch.tensor([1, 4]).int(), "values": torch.ones(2, 3).half(), "added": torch.ones(1, 3).bfloat16()}
    made["rows"] = item("rows", (7, 3), rows, Role.EMBEDDING)
    made["norm"] = item("keep", (7,), {"delta": torch.ones(7).half()}, Role.NORM)
    made["flags"] = item("value", (3,), {"value": torch.tensor([True, False, True])}, Role.OTHER)
    made["bias"] = item("omitted", (9,), {}, Role.BIAS)
    return made


def attack(files: Iterator[bytes], parse: Parse, record: Record) -> Counter[str]:
    """Parse every file; return how many were taken and how many refused, and record it."""
    outcomes: Counter[str] = Counter()
    for number, data in enumerate(files):
        measured = number % MEASURED_EVERY == 0
        if measured:
            tracemalloc.start()
        try:
            with time_limit(SECONDS_PER_FILE):
                parse(data)
            outcomes["taken"] += 1
        except ImpartError as error:
            str(error).encode()  # it can be printed
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"file {number}, {data[:300]!r}: {error!r}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1] if measured else 0
            tracemalloc.stop()
        assert peak <= BYTES_PER_BYTE * len(data) + SPARE_BYTES, (number, peak, len(data))
    for outcome, count in outcomes.items():
        record(outcome, count)
    print(dict(outcomes))
    return outcomes


def through_file(path: Path, parse: Callable[[Path], object]) -> Parse:
    """Return a parser of bytes that writes them to a file first."""

    def parse_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return parse(path)

    return parse_bytes


def read_tensors(path: Path) -> None:
    """Read a safetensors file and hold what it says against itself."""
    infos, metadata = read_header(local_file(path))
    assert all(type(key) is type(value) is str for key, value in metadata.items())
    begin = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert sum(info.nbytes for info in infos.values()) == path.stat().st_size - begin
    for info in infos.values():
        tensor = read_tensor(info)
        assert (tensor.shape, tensor.dtype) == (info.shape, info.torch_dtype)


def read_block(path: Path) -> None:
    """Open a block's file and decode every tensor."""
    file = BlockFile(path)
    for name, header in file.headers.items():
        file.code_bytes([name])
        if header.is_stack:
            for delta in decode_stack(file, name):
                assert delta is None or delta.shape == header.shape[1:]
            continue
        codes = file.codes(name)
        delta = decode_delta(name, header, codes)
        if header.method in EXACT:
            check_delta(name, header, codes)
        added = len(codes["added"]) if "added" in codes else 0
        assert delta is None or delta.dtype == torch.float32
        assert delta is None or delta.shape == (*(n - added for n in header.shape[:1]), *header.shape[1:])


def test_headers(tmp_path: Path, record_property: Record) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3, dtype=torch.int8), "c": torch.empty(0, 4)}
    samples = [save(tensors, {"format": "pt"}), save({"weight": torch.ones(4, 4).bfloat16()})]
    outcomes = attack(
        variants(samples, 4500, 1, damage, damage_header, damage_header),
        through_file(tmp_path / "file", read_tensors),
        record_property,
    )
    assert outcomes["refused"] > 2000
    assert outcomes["taken"] > 100


def test_blocks(block: bytes, tmp_path: Path, record_property: Record) -> None:
    outcomes = attack(
        variants([block], 3000, 2, damage, damage_header, damage_header),
        through_file(tmp_path / "file", read_block),
        record_property,
    )
    assert outcomes["refused"] > 1000
    assert outcomes["taken"] > 100


def test_factors(published: Store, tmp_path: Path, record_property: Record) -> None:
    found = [published.manifest(made) for made in published.ids()]
    manifest = next(one for one in found if isinstance(one.content, FactorsContent))
    content = manifest.content
    assert isinstance(content, FactorsContent)

    def read(path: Path) -> None:
        for name, infos in locate_factors(path, content).items():
            u, sigma, v = map(read_tensor, infos)
            assert (u.shape[1], v.shape[1]) == content.matrices[name].shape
            assert len(u) == len(sigma) == len(v) == content.matrices[name].rank

    with published.local_file(manifest, FACTORS_FILE) as path:
        data = path.read_bytes()
    outcomes = attack(
        variants([data], 1000, 3, damage, damage_header), through_file(tmp_path / "file", read), record_property
    )
    assert outcomes["refused"] > 400


def test_manifests(published: Store, record_property: Record) -> None:
    samples = [published.manifest(made).to_json() for made in published.ids()]
    originals = set(samples)

    def parse(data: bytes) -> None:
        manifest = parse_manifest(data, "here")
        assert manifest.to_json() == data
        assert data in originals

    outcomes = attack(variants(samples, 3000, 4, damage, damage_json, damage_json), parse, record_property)
    assert outcomes["refused"] > 2700


def test_refs(published: Store, record_property: Record) -> None:
    path = Path(published.url) / "refs" / "tiny" / "00000001.json"
    original = path.read_bytes()
    made = get_ref(published, "tiny")

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = get_ref(published, "tiny")
        assert found is not None
        assert RefEntry.model_validate_json(data).id == found

    try:
        outcomes = attack(variants([original], 1000, 5, damage, damage_json), parse, record_property)
    finally:
        path.write_bytes(original)
    assert outcomes["refused"] > 400
    assert get_ref(published, "tiny") == made


def test_a_delta_brings_no_files_but_those_that_deltas_carry(published: Store, tmp_path: Path) -> None:
    delta = open_delta(published, resolve(published, "tiny"))
    base = open_checkpoint(Path(published.url).parent / "base")
    names = ("model.safetensors", "pytorch_model.bin", "adapter_config.json", "model.safetensors.index.json")
    for name in (*names, "1_Pooling/pytorch_model.bin", "../config.json", "a/b/config.json", "/config.json"):
        content = delta.content.model_copy(update={"carried": {name: "0" * 64}})
        with pytest.raises(CorruptArtifactError, match=re.escape(repr(name))):
            reconstruct(replace(delta, content=content), base, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inputs", [{}, {"base": None}, {"base": ["w"]}])
def test_a_block_that_does_not_say_its_base_is_refused(
    inputs: dict[str, object], published: Store, tmp_path: Path
) -> None:
    delta = open_delta(published, resolve(published, "tiny"))
    recipe = delta.blocks[0].recipe.model_copy(update={"inputs": inputs})
    silent = replace(delta, blocks=(delta.blocks[0].model_copy(update={"recipe": recipe}), *delta.blocks[1:]))
    with pytest.raises(CorruptArtifactError, match="what base"):
        reconstruct(silent, open_checkpoint(Path(published.url).parent / "base"), tmp_path / "out")


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "value", "shape": (3,)},
        {"method": "value", "dtype": "F64"},
        {"base": "absent"},
        {"shape": (1, 2)},
        {"shape": (2**40, 2**20)},
        {"shape": (2, 2, 2)},
    ],
)
def test_a_tensor_that_does_not_fit_the_bases_is_refused(changed: dict[str, object], published: Store) -> None:
    delta = open_delta(published, resolve(published, "tiny"))
    base = open_checkpoint(Path(published.url).parent / "base")
    with open_reader(delta) as reader:
        for name, file in reader.blocks.items():
            header = file.headers[name].model_copy(update=changed)
            with pytest.raises(ImpartError, match=name):
                rebuild_tensor(name, base.tensors, header, file)


@pytest.mark.parametrize("settings", [{"cr": 10**400}, {"cr": 1e308, "method": {}, "seed": [1]}])
def test_a_store_with_strange_settings_can_be_listed(settings: dict[str, object], published: Store) -> None:
    delta = open_delta(published, resolve(published, "tiny"))
    recipe = delta.manifest.recipe.model_copy(update={"config": settings})
    try:
        assert entry_of(delta.manifest.model_copy(update={"recipe": recipe})).summary
    except CorruptArtifactError as error:
        assert delta.manifest.id[:12] in str(error)
