"""Small files that claim to be enormous: refused before they take memory or time."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import save_file

from impart_core.base.errors import CheckpointError, CorruptArtifactError
from impart_core.blocks.rebuild import rebuild_tensor
from impart_core.checkpoint.header import read_header
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.local import local_file
from impart_core.codec.bitpack import packed_bytes
from impart_core.codec.exact import encode_exact, encode_residual
from impart_core.codec.format import PLANES, RESIDUAL, BlockFile, EncodedTensor, TensorHeader, write_block
from impart_core.codec.lossless import SQUEEZED, squeeze
from impart_core.codec.mask import LEVELS, count_kept, kept_of_columns, mask_key
from impart_core.store.manifest import parse_manifest
from tests.faults.hostile import time_limit
from tests.faults.test_hostile import every_method
from tests.support import decaying_delta

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
SHAPES: tuple[list[int], ...] = (
    [2**62, 2**62],
    [2**31, 2**31],
    [2**40, 1],
    [1, 2**40],
    [2**17, 2**17],
    [2**62],
    [0, 2**62],
    [10**30, 1],
    [2**60, 16, 24],
    [2**16, 16, 24],
    [3, 2**31, 2**31],
    [1] * 65,
    [-1, -1],
)
QUANTISING = ("dare-qt", "delta-come", "impart-qt")
SPARE_BYTES = 1 << 30  # of address space: torch and numpy reserve more than they touch
TOUCHED_BYTES = 200 << 20
TAKEN_BYTES = 4 << 20  # of memory while codes of kilobytes are read
CHILD = """
import json, resource, sys
from impart_core.store.provenance import peak_rss_bytes
from impart_core.base.errors import ImpartError
from tests.faults.hostile import time_limit
from tests.faults.test_hostile import Path, read_block, torch
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES,) * 2)
before, outcomes = peak_rss_bytes(), {}
for path in map(Path, sys.argv[1:]):
    try:
        with time_limit(5):
            read_block(path)
        outcomes[path.name] = "taken"
    except ImpartError as error:
        outcomes[path.name] = str(error)
print(json.dumps([outcomes, peak_rss_bytes() - before]))
"""


SPARSE_CHILD = """
import json, math, sys, time
import torch
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.checkpoint.layout import Role
from impart_core.codec.format import TensorHeader
from impart_core.codec.parts import nbytes
from impart_core.methods.decode import check_delta
from impart_core.store.provenance import peak_rss_bytes
from tests.faults.test_hostile_sizes import sparsest
method = sys.argv[1]
side, codes = sparsest(method)
header = TensorHeader(method=method, role=Role.PROJECTION, shape=(side, side), dtype="BF16", parts=tuple(codes))
torch.ones(64, 64) @ torch.ones(64, 64)
before, began = peak_rss_bytes(), time.perf_counter()
with one_thread_per_kernel():
    check_delta("w", header, codes)
print(json.dumps([nbytes(codes), 4 * side**2, peak_rss_bytes() - before, time.perf_counter() - began]))
"""


def sparsest(method: str) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the side of a square matrix of 276 MB, and right codes of the fewest bytes that stand for it."""
    side = 8_300
    if method in QUANTISING:
        return side, {**few_streams(method, side)}
    if method == "magnitude":
        quotients, width = torch.full((2**14 // 8,), 255, dtype=torch.uint8), 11
        return side, {
            "values": torch.ones(2**14, dtype=torch.float16),
            "width": torch.tensor([width], dtype=torch.uint8),
            "quotients": quotients,
            "remainders": torch.zeros(2**14 * width // 8, dtype=torch.uint8),
        }
    code = np.array([287 if method == "bitdelta" else 17], dtype=np.uint16)  # one of 228, one of 3,641
    if method == "impart":
        pairs = side // 2
        codes = np.repeat(code, pairs)
        kept = {role: int(kept_of_columns(mask_key(0, "w", role), side, codes).sum()) for role in "uv"}
        factors = {role: torch.ones(number, dtype=torch.float16) for role, number in kept.items()}
        return side, {"sigma": torch.ones(pairs), "keep": torch.from_numpy(codes), **factors}
    kept_entries = count_kept(mask_key(0, "w", "delta"), side, side, code)
    keep = {"keep": torch.from_numpy(code)}
    if method == "dare":
        return side, {**keep, "values": torch.ones(kept_entries, dtype=torch.float16)}
    return side, {**keep, "scales": torch.ones(1), "signs": torch.zeros(-(-kept_entries // 8), dtype=torch.uint8)}


def few_streams(method: str, side: int) -> dict[str, torch.Tensor]:
    """Return codes of a quantising method in as few bytes as are ever stored: one 64th of their packed size."""
    pairs = side // 2
    if method == "dare-qt":
        code = np.array([LEVELS // 4 - 1], dtype=np.uint16)
        rows, kept = side, [count_kept(mask_key(0, "w", "delta"), side, side, code)]
        own = {"keep": torch.from_numpy(code)}
    elif method == "impart-qt":
        rows, codes = pairs, np.full(pairs, LEVELS // 4 - 1, dtype=np.uint16)
        of_pairs = (kept_of_columns(mask_key(0, "w", role), side, codes, 64 if role == "v" else 1) for role in "uv")
        kept = [int(counts.sum()) for counts in of_pairs]
        own = {"sigma": torch.ones(pairs).bfloat16(), "keep_shared_v": torch.full((pairs,), 63, dtype=torch.uint8)}
    else:
        rows, kept, own = pairs, [pairs * side] * 2, {"sigma": torch.ones(pairs).bfloat16()}
    packed = [packed_bytes(number, 2) for number in kept]
    streams = [
        squeeze(np.random.default_rng(0).bytes(size // 64 + 1) + bytes(size - size // 64 - 1)) for size in packed
    ]
    return {
        **own,
        "layout": torch.tensor([0, 1, 2, rows], dtype=torch.uint16),
        "scales": torch.ones(len(kept), dtype=torch.float16),
        "zeros": torch.zeros(len(kept), dtype=torch.uint8),
        "forms": torch.full((len(kept),), SQUEEZED, dtype=torch.uint8),
        "lengths": torch.tensor([len(stream) for stream in streams], dtype=torch.uint32),
        "packed": torch.tensor([sum(packed)], dtype=torch.uint32),
        "codes": torch.from_numpy(np.frombuffer(b"".join(streams), dtype=np.uint8).copy()),
    }


@pytest.mark.parametrize("method", ["bitdelta", "dare", "impart", "magnitude", *QUANTISING])
def test_right_codes_of_few_bytes_are_checked_without_the_matrix_that_they_stand_for(method: str) -> None:
    """Made as a whole they took 0.3 to 0.4 GB, those of the quantising methods 1.3 to 2.4 GB."""
    command = [sys.executable, "-c", SPARSE_CHILD, method]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    stored, decoded, touched, _ = json.loads(done.stdout)
    assert decoded > 2**28 > (900 if method in QUANTISING else 2_000) * stored
    assert touched < 64 << 20


def claiming(path: Path) -> Iterator[tuple[str, bytes]]:
    """Give a block's file with each of its tensors said to be of each of the shapes, and what it is called."""
    write_block(path, every_method())
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    inner = json.loads(header["__metadata__"]["impart"])
    for name, described in inner["tensors"].items():
        for shape in SHAPES:
            tensors = {**inner["tensors"], name: {**described, "shape": shape}}
            header["__metadata__"]["impart"] = json.dumps({**inner, "tensors": tensors})
            yield f"{name} of {shape}"[:80], framed(json.dumps(header).encode(), data[end:])


def framed(header: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file of this header."""
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own size under /proc")
def test_tensors_that_claim_any_shape_take_neither_memory_nor_time(tmp_path: Path) -> None:
    paths = []
    for name, data in claiming(tmp_path / "block"):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    code = CHILD.replace("SPARE_BYTES", str(SPARE_BYTES))
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes, touched = json.loads(done.stdout)
    assert len(outcomes) == len(paths)
    taken = {name for name, said in outcomes.items() if said == "taken"}
    # Of these nothing is decoded: what is stored whole has no delta, and what is zero has none of any shape.
    # Sparse differences are added to a base of the same shape, which has to be there.
    sparse = {"sparse of [65536, 16, 24]", "sparse of [131072, 131072]"}
    told = {name for name in taken if name.split()[0] not in ("bias", "flags")}
    assert told == {"stack of [65536, 16, 24]", *sparse}
    assert touched < TOUCHED_BYTES


def lying_bits() -> Iterator[tuple[str, str, dict[str, torch.Tensor]]]:
    """Give codes bit for bit of 64×64 entries of which one part lies: what about, the way, the codes."""
    base = decaying_delta(64, 64).bfloat16()
    few = base.clone()
    few[::16, ::8] += 1
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    for value, lossy in ((base * 1.01, None), (base * 1.01, base), (few, base)):
        way, codes = encode_exact(value, None) if lossy is None else encode_residual(value, lossy, None)
        assert way == (PLANES if lossy is None else RESIDUAL)
        lengths = codes["lengths"].long()
        planes = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
        lies: dict[str, dict[str, torch.Tensor]] = {
            "lengths beyond the planes": {"lengths": torch.full_like(lengths, 2**32 - 1).to(torch.uint32)},
            "many more lengths": {"lengths": torch.zeros(1 << 16, dtype=torch.uint32)},
            "a frame of 256 MiB": {"planes": planes, "lengths": torch.tensor([len(bomb), 0], dtype=torch.uint32)},
        }
        if "quotients" in codes:
            lies["positions beyond the tensor"] = {"quotients": torch.full((1 << 16,), 255, dtype=torch.uint8)}
            lies["remainders of 255 bits"] = {"width": torch.tensor([255], dtype=torch.uint8)}
            lies["gaps of 32 bits"] = {"width": torch.tensor([32], dtype=torch.uint8)}
        for what, lie in lies.items():
            yield what, way, {**codes, **lie}


def test_bits_that_claim_much_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    reference, info = decaying_delta(64, 64).bfloat16(), tmp_path / "base.safetensors"
    save_file({"w": reference}, info)
    base, _ = read_header(local_file(info))
    for shape in ((64, 64), (1 << 17, 1 << 17), (1 << 34,)):
        for what, way, codes in lying_bits():
            header = TensorHeader(
                method=way, role=Role.PROJECTION, shape=shape, dtype="BF16", parts=tuple(sorted(codes))
            )
            write_block(tmp_path / "block", {"w": EncodedTensor(header, codes)})
            file = BlockFile(tmp_path / "block")
            tracemalloc.start()
            try:
                with time_limit(10), pytest.raises(CorruptArtifactError, match="'w'"):
                    raise AssertionError(f"{what}: {rebuild_tensor('w', base, header, file, lossy=reference)}")
                assert tracemalloc.get_traced_memory()[1] < TAKEN_BYTES, (what, shape)
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62] * 1_000_000, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1] * 1_000_000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]},
        {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
        {"dtype": "x" * 10_000_000, "shape": [], "data_offsets": [0, 0]},
    ],
)
def test_headers_that_claim_much(entry: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(framed(json.dumps({"w": entry}).encode(), bytes(8)))
    with time_limit(10), pytest.raises(CheckpointError) as refused:
        read_header(local_file(tmp_path / "file"))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        b'{"files":[' + b"{}," * 300_000 + b"{}]}",
        b'{"parents":[' + b"1," * 300_000 + b"1]}",
        json.dumps(dict.fromkeys(map(str, range(100_000)))).encode(),
        json.dumps({"content": {"kind": "block", "tensors": dict.fromkeys(map(str, range(100_000)))}}).encode(),
        b'{"recipe":' + b"[" * 1_000_000,
        b'{"format":' + b"9" * 1_000_000 + b"}",
    ],
    ids=["files", "parents", "keys", "tensors", "deep", "long number"],
)
def test_manifests_with_many_faults_take_a_small_multiple_of_their_bytes(text: bytes) -> None:
    tracemalloc.start()
    try:
        with time_limit(20), pytest.raises(CorruptArtifactError) as refused:
            parse_manifest(text, "here")
        assert tracemalloc.get_traced_memory()[1] < 128 * len(text)
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 1000
