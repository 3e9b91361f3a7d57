"""docs/format.md holds: a reader written from that page alone decodes what the library decodes.

The library encodes and writes; `tests.docs.reader` reads. Golden compressions are made with the command.
"""

import ast
import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

# All that is needed of the library, in one place.
from impart_core.checkpoint.header import DTYPES
from impart_core.checkpoint.layout import Role
from impart_core.codec.bitpack import pack
from impart_core.codec.exact import bits_of, encode_exact, encode_residual
from impart_core.codec.format import (
    EXACT,
    FORMAT_VERSION,
    PACKED_VERSION,
    BlockFile,
    EncodedTensor,
    TensorHeader,
    write_block,
)
from impart_core.codec.half import encode_half
from impart_core.codec.rows import encode_rows
from impart_core.methods import METHODS, QUANTIZING, Coding, Projection
from impart_core.methods.decode import decode_delta, decode_stack
from impart_core.store.manifest import KINDS, kind_of
from tests.docs import reader
from tests.e2e.test_golden import COMPRESSIONS, GOLDEN
from tests.impart_core.methods.codes import calibrated
from tests.support import VECTORS, decaying_delta, run_json

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
NAME = "model.layers.0.mlp.up_proj.weight"
ODD_NAME = 'mod\u00e8le:\u007f"\\\n\U0001f600.0.w'  # all that the text of a mask's key escapes
PRODUCTS = ("impart", "impart-qt", "delta-come", "ecsq", "lowrank")  # sums whose order is not specified
ROUNDING = 1e-5  # of the largest entry: float32 sums of at most some dozens of terms
CASES: dict[str, tuple[str, float, dict[str, Any]]] = {
    **{f"{method} plain": (method, 8.0, {}) for method in METHODS},
    "impart uniform": ("impart", 4.0, {"allocation": "uniform", "rescale": False}),
    "impart-qt all widths": ("impart-qt", 8.0, {"ladder": "16x1,8x2,4x3,3x4,2"}),
    "impart-qt not lossless": ("impart-qt", 12.0, {"ladder": "3x5,2", "lossless": False, "group_size": 7}),
    "impart-qt one group a range": ("impart-qt", 12.0, {"ladder": "4x5,3", "group_size": 65535}),
    "delta-come all widths": ("delta-come", 6.0, {"ladder": "16x1,8x2,4x3,3x4,2", "group_size": 50}),
    "delta-come not lossless": ("delta-come", 8.0, {"ladder": "16x2,3", "lossless": False}),
    "dare-qt 8 bits": ("dare-qt", 6.0, {"bits": 8}),
    "dare-qt not lossless": ("dare-qt", 16.0, {"bits": 2, "lossless": False, "group_size": 33}),
    "dare-qt of nothing": ("dare-qt", 2000.0, {}),
    "dare of nothing": ("dare", 4000.0, {}),
    "ecsq of few bits": ("ecsq", 64.0, {"gain": 0.5}),
    "ecsq of entries": ("ecsq", 20.0, {"domain": "entries"}),
    "ecsq of many bits": ("ecsq", 1.5, {}),
    "bitdelta of rows, all kept": ("bitdelta", 8.0, {"per_row": True}),
    "bitdelta masked": ("bitdelta", 40.0, {}),
    "bitdelta of nothing": ("bitdelta", 4000.0, {}),
}


def encode(method: str, cr: float, options: Mapping[str, Any], name: str, delta: torch.Tensor) -> dict[str, Any]:
    """Return a delta's parts by a method; those that quantise round to nearest, as nothing is known of inputs."""
    nearest = {"solver": "nearest"} if method in QUANTIZING else {}
    if method in ("impart-qt", "delta-come"):
        nearest["ladder"] = "3x4,2"
    config = Coding(method=method, cr=cr, seed=7, options={**nearest, **options})
    return METHODS.get(method).encode(Projection.of(delta, name), config)


def tensor(method: str, shape: tuple[int, ...], parts: Mapping[str, Any], dtype: str = "F32") -> EncodedTensor:
    header = TensorHeader(
        method=method, role=Role.PROJECTION, shape=shape, dtype=dtype, seed=7, parts=tuple(sorted(parts))
    )
    return EncodedTensor(header, dict(parts))


def compare(path: Path) -> set[str]:
    """Hold what the reader decodes of a block file against the library; return the methods that were met."""
    file = BlockFile(path)
    headers, parts = reader.read_block(path)
    assert set(headers) == set(file.headers)
    for name, header in file.headers.items():
        theirs = list(decode_stack(file, name)) if header.is_stack else [decode_delta(name, header, file.codes(name))]
        ours = list(reader.deltas_of(name, headers[name], parts[name]))
        assert len(ours) == len(theirs)
        for mine, delta in zip(ours, theirs, strict=True):
            assert (mine is None) == (delta is None)
            if delta is None:
                continue
            expected = delta.numpy()
            assert mine.dtype == expected.dtype
            if header.method in PRODUCTS:
                np.testing.assert_allclose(mine, expected, rtol=0, atol=ROUNDING * max(1e-30, np.abs(expected).max()))
            else:
                np.testing.assert_array_equal(mine, expected)
    return {header.method for header in file.headers.values()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [NAME, ODD_NAME])
@pytest.mark.parametrize("shape", [(50, 37), (24, 61)])
def test_every_method_is_decoded_as_the_page_says(case: str, name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    method, cr, options = CASES[case]
    parts = encode(method, cr, options, name, decaying_delta(*shape))
    for version in (FORMAT_VERSION, PACKED_VERSION):
        write_block(tmp_path / "block", {name: tensor(method, shape, parts)}, version)
        assert compare(tmp_path / "block") == {method}


@pytest.mark.parametrize("of_rows", [False, True])
def test_lines_that_share_words_are_decoded(of_rows: bool, tmp_path: Path) -> None:
    shape = (150, 140)
    projection = calibrated(decaying_delta(*shape), NAME, of_rows=of_rows)
    config = Coding(method="impart-qt", cr=8.0, seed=7, options={"ladder": "3x4,2", "beta": 0.0, "fill": False})
    parts = METHODS.get("impart-qt").encode(projection, config)
    assert len(parts["sigma"]) > 64
    write_block(tmp_path / "block", {NAME: tensor("impart-qt", shape, parts)})
    assert compare(tmp_path / "block") == {"impart-qt"}


def test_codes_of_an_older_version_are_decoded(tmp_path: Path) -> None:
    parts = load_file(VECTORS / "impart_qt_4.safetensors")
    expected = parts.pop("decoded").numpy()
    write_block(tmp_path / "block", {"layer.w": tensor("impart-qt", (48, 80), parts)})
    headers, found = reader.read_block(tmp_path / "block")
    (delta,) = reader.deltas_of("layer.w", headers["layer.w"], found["layer.w"])
    np.testing.assert_allclose(delta, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_every_form_of_a_stream_is_decoded(tmp_path: Path) -> None:
    forms: set[int] = set()
    for number, ladder in enumerate(("16x2,8x2,3", "3", "2")):
        delta = decaying_delta(300, 200)
        delta[::3] *= 1e-3  # codes that are far from uniform
        parts = encode("delta-come", 16.0, {"ladder": ladder, "group_size": 2000}, NAME, delta)
        write_block(tmp_path / f"{number}", {NAME: tensor("delta-come", (300, 200), parts)})
        compare(tmp_path / f"{number}")
        forms |= set(parts["forms"].tolist())
    assert forms == {0, 1, 2}


@pytest.mark.parametrize("method", list(METHODS))
def test_a_stack_is_decoded_matrix_by_matrix(method: str, tmp_path: Path) -> None:
    shape, parts = (12, 40, 30), {}
    for index in (0, 2, 11):
        codes = encode(method, 6.0, {}, f"{NAME}[{index}]", decaying_delta(40, 30, seed=index))
        parts |= {f"{index}.{part}": code for part, code in codes.items()}
    write_block(tmp_path / "block", {NAME: tensor(method, shape, parts)})
    compare(tmp_path / "block")
    headers, found = reader.read_block(tmp_path / "block")
    decoded = list(reader.deltas_of(NAME, headers[NAME], found[NAME]))
    assert [index for index, delta in enumerate(decoded) if delta is not None] == [0, 2, 11]


def test_what_no_method_codes_is_decoded(tmp_path: Path) -> None:
    delta, few = decaying_delta(20, 30), torch.zeros(20, 30)
    few[[3, 7, 19]] = delta[:3]
    added = torch.randn(4, 30).to(torch.bfloat16)
    tensors = {
        "keep": tensor("keep", (20, 30), encode_half(delta, "delta", "keep")),
        "keep at a large scale": tensor("keep", (600,), encode_half(1e9 * delta.flatten(), "delta", "keep")),
        "keep of format 1": tensor("keep", (600,), {"delta": delta.flatten().bfloat16()}),
        "rows": tensor("rows", (24, 30), {**encode_rows(few, "rows"), "added": added}, "BF16"),
        "added": tensor("omitted", (24, 30), {"added": added}, "BF16"),
        "omitted": tensor("omitted", (3,), {}),
        "value": tensor("value", (3,), {"value": torch.tensor([1, -2, 3])}, "I64"),
        "head": tensor("impart", (24, 30), {**encode("impart", 4.0, {}, "head", delta), "added": added}, "BF16"),
    }
    for version in (PACKED_VERSION, FORMAT_VERSION):
        write_block(tmp_path / "block", tensors, version)
        assert compare(tmp_path / "block") == {"keep", "rows", "omitted", "value", "impart"}
    _, parts = reader.read_block(tmp_path / "block")
    np.testing.assert_array_equal(parts["value"]["value"], [1, -2, 3])
    np.testing.assert_array_equal(parts["rows"]["added"], added.float().numpy())


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I32", "U8"])
@pytest.mark.parametrize("share", [0.01, 1.0])
def test_bits_are_decoded_as_the_page_says(dtype: str, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    kind = DTYPES[dtype]
    base = (40 * torch.randn(140_000, generator=generator)).to(kind)
    changed = torch.rand(len(base), generator=generator) < share
    scale = 1000 * torch.finfo(kind).eps if kind.is_floating_point else 3.0
    value = (base.double() + scale * changed * torch.randn(len(base), generator=generator)).to(kind)
    met = set()
    for reference in (base, None):
        way, codes = encode_exact(value, reference)
        met.add(way)
        if way == "value":
            continue
        theirs = bits_of(torch.zeros_like(value) if reference is None else reference)
        parts = {part: code.numpy() for part, code in codes.items()}
        np.testing.assert_array_equal(reader.exact_bits(way, parts, dtype, theirs), bits_of(value))
        if reference is not None:  # the residual to a lossy delta that rebuilds the same
            way, codes = encode_residual(value, reference, None)
            parts = {part: code.numpy() for part, code in codes.items()}
            np.testing.assert_array_equal(reader.exact_bits(way, parts, dtype, theirs), bits_of(value))
            assert way == "residual" or dtype == "U8"
    assert reader.exact_bits("residual", {}, dtype, theirs).tolist() == theirs.tolist()
    assert met & {"sparse" if share < 1 else "difference"} or dtype == "U8"


def test_parts_lie_in_the_order_of_the_page(tmp_path: Path) -> None:
    tensors = {
        name: tensor("impart", (50, 37), encode("impart", 8.0, {}, name, decaying_delta(50, 37))) for name in "ba"
    }
    write_block(tmp_path / "block", tensors)
    keys = list(reader.read_entries(tmp_path / "block"))
    assert keys == ["a:sigma", "b:sigma", *(f"{name}:{part}" for name in "ab" for part in ("keep", "u", "v"))]
    assert (tmp_path / "block").read_bytes()[0] % 8 == 0


def test_the_known_answers_of_the_page_are_right() -> None:
    page = PAGE.read_text()
    key = reader.mask_key(7, "layer.weight", "u")
    lines = reader.words(key, lines=2, length=10)
    for number in (key, *lines[0, :4], *lines[1, :4]):
        assert f"{int(number):#x}" in page
    assert pack(np.array([1, 2, 7], dtype=np.uint8), 3).tobytes() == b"\xd1\x01"
    assert "`0xd1 0x01`" in page


@pytest.mark.parametrize("length", [1, 8, 9, 64])
def test_words_are_those_of_philox_by_its_definition(length: int) -> None:
    key = reader.mask_key(3, NAME, "delta")
    blocks = -(-length // 8)
    for line, found in enumerate(reader.words(key, lines=3, length=length)):
        outputs = [x for block in range(blocks) for x in reader.philox(key, line * blocks + block + 1)]
        assert found.tolist() == [half for x in outputs for half in (x & 0xFFFFFFFF, x >> 32)][:length]


def test_the_reader_uses_nothing_of_the_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(reader.__file__).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        imported |= {name.partition(".")[0] for name in names}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "zstandard"}


@pytest.fixture(scope="module")
def golden(environment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder store with a delta of every golden compression, and their ids."""
    store = tmp_path_factory.mktemp("format") / "store"
    shutil.copytree(GOLDEN / "store", store)  # the factors, so that block files are the golden ones bit by bit
    base, finetuned = str(GOLDEN / "base"), str(GOLDEN / "finetuned")
    found = {
        name: run_json("compress", base, finetuned, *flags, "--store", str(store), environment=environment)["artifact"]
        for name, flags in COMPRESSIONS.items()
    }
    return store, found


@pytest.mark.e2e
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_golden_deltas_are_read_from_the_store(name: str, golden: tuple[Path, dict[str, str]]) -> None:
    store, made = golden
    delta = reader.read_manifest(store, made[name])
    methods, expected = set(), json.loads((GOLDEN / "golden.json").read_text())[name]["files"]
    for pointer in delta["content"]["blocks"]:
        block = reader.read_manifest(store, pointer["id"])
        assert block["recipe"]["operation"] == "compress-block"
        (entry,) = block["files"]
        assert entry["sha256"] == expected[pointer["name"]]
        methods |= compare(store / "artifacts" / pointer["id"] / entry["path"])
    method = delta["recipe"]["config"]["method"]
    assert method in methods or (method == "lossless" and methods <= {"omitted", "value", *EXACT})
    for side in ("base", "finetuned"):
        digests = reader.tensor_digests(GOLDEN / side / "model.safetensors")
        assert delta["content"][side] == delta["recipe"]["inputs"][side] == reader.digest(digests)


@pytest.mark.e2e
def test_a_reconstruction_is_base_plus_delta(
    golden: tuple[Path, dict[str, str]], environment: dict[str, Any], tmp_path: Path
) -> None:
    store, made = golden
    base, out = str(GOLDEN / "base"), str(tmp_path / "rebuilt")
    run_json("reconstruct", made["dare"], "--base", base, "--out", out, "--store", str(store), environment=environment)
    ours = reader.read_entries(GOLDEN / "base" / "model.safetensors")
    theirs = reader.read_entries(tmp_path / "rebuilt" / "model.safetensors")
    rebuilt = {}
    for pointer in reader.read_manifest(store, made["dare"])["content"]["blocks"]:
        (entry,) = reader.read_manifest(store, pointer["id"])["files"]
        headers, parts = reader.read_block(store / "artifacts" / pointer["id"] / entry["path"])
        for name, header in headers.items():
            (delta,) = reader.deltas_of(name, header, parts[name])
            rebuilt[name] = ours[header.get("base", name)] + (0 if delta is None else delta)
    assert set(rebuilt) == set(theirs)
    for name, expected in theirs.items():
        np.testing.assert_array_equal(rebuilt[name], expected)


def test_the_versions_of_methods_are_those_that_stand_there() -> None:
    (current,) = re.findall(r"^- Current: (.*?)\n- ", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = {name: int(version) for name, version in re.findall(r"`([a-z-]+)` (\d+)", " ".join(current.split()))}
    assert found == {name: METHODS.get(name).version for name in METHODS}


def test_every_kind_of_artifact_stands_there() -> None:
    table = PAGE.read_text().partition("| `kind` | files | content |")[2].partition("\n\n")[0]
    assert kind_of("delta"), "loads all kinds"
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == set(KINDS)


def test_every_operation_stands_there_with_its_version() -> None:
    table = PAGE.read_text().partition("| operation, version |")[2].partition("\n\n")[0]
    told = {name: int(version) for name, version in re.findall(r"^\| `([a-z-]+)` (\d+) \|", table, re.MULTILINE)}
    assert told == dict(_operations())


def _operations() -> Iterator[tuple[str, int]]:
    """Yield the operation and version of every recipe that the library makes, as its sources say."""
    for source in (PAGE.parents[1] / "impart_core" / "artifacts").glob("[!_]*.py"):
        module = importlib.import_module(f"impart_core.artifacts.{source.stem}")
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Recipe":
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                version = given["version"]
                assert isinstance(version, ast.Subscript), "a version is one of the module's VERSIONS"
                yield ast.literal_eval(given["operation"]), module.VERSIONS[ast.literal_eval(version.slice)]
