"""A block's file: exact bytes, exact round trips, damage noticed."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from impart_core.base.errors import CorruptArtifactError, UnknownNameError
from impart_core.checkpoint.layout import Role
from impart_core.codec.format import (
    FORMAT_VERSION,
    PACKED_VERSION,
    BlockFile,
    EncodedTensor,
    TensorHeader,
    packed_overhead,
    write_block,
)
from impart_core.methods import METHODS, Projection
from impart_core.methods.decode import decode_delta, decode_stack
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

parts = st.dictionaries(
    st.sampled_from(["sigma", "keep", "u", "v", "delta", "value"]),
    st.tuples(
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint16, torch.int64, torch.bool]),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    max_size=4,
)


def encoded(
    codes: dict[str, torch.Tensor],
    method: str = "keep",
    shape: tuple[int, ...] = (2,),
    role: Role = Role.NORM,
    seed: int = 0,
) -> EncodedTensor:
    names = tuple(sorted(codes))
    header = TensorHeader(method=method, role=role, shape=shape, dtype="BF16", seed=seed, parts=names)
    return EncodedTensor(header=header, codes=codes)


def projection(name: str, seed: int = 5, method: str = "impart") -> EncodedTensor:
    config = config_of(2, seed=seed, method=method)
    codes = METHODS.get(method).encode(Projection.of(decaying_delta(16, 24), name), config)
    return encoded(codes, method, (16, 24), Role.PROJECTION, seed)


@pytest.mark.parametrize("version", [FORMAT_VERSION, PACKED_VERSION])
@given(wanted=st.dictionaries(st.text("abc.:ä", min_size=1, max_size=6), parts, max_size=4))
@settings(max_examples=50, deadline=None)
def test_headers_and_codes_come_back_as_they_were(
    version: int, wanted: dict[str, dict[str, tuple[torch.dtype, list[int]]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "block.safetensors"
    tensors = {
        name: encoded({part: (torch.randn(shape) * 5).to(dtype) for part, (dtype, shape) in kinds.items()}, seed=3)
        for name, kinds in wanted.items()
    }
    write_block(path, tensors, version)
    file = BlockFile(path)
    assert file.version == version
    assert file.headers == {name: item.header for name, item in tensors.items()}
    for name, item in tensors.items():
        read = file.codes(name)
        assert set(read) == set(item.codes)
        for part, code in item.codes.items():
            assert read[part].dtype == code.dtype
            assert torch.equal(read[part], code)
    assert file.code_bytes(tensors) == sum(item.nbytes for item in tensors.values())


def test_a_block_is_an_ordinary_safetensors_file_of_exactly_its_codes_and_header(tmp_path: Path) -> None:
    tensors = {"w": projection("w"), "norm": encoded({"delta": torch.ones(7).half()}, shape=(7,))}
    write_block(tmp_path / "block", tensors)
    data = (tmp_path / "block").read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert len(data) == 8 + header + sum(item.nbytes for item in tensors.values())
    assert tensors["norm"].nbytes == 14
    with safetensors.safe_open(tmp_path / "block", "pt") as file:
        assert set(file.keys()) == {"norm:delta", "w:sigma", "w:keep", "w:u", "w:v"}
        assert torch.equal(file.get_tensor("w:u"), tensors["w"].codes["u"])


def test_a_packed_block_has_two_hundred_bytes_around_its_codes_where_another_has_two_thousand(tmp_path: Path) -> None:
    names = [*(f"mlp.{one}_proj" for one in ("down", "gate", "up")), *(f"self_attn.{one}_proj" for one in "kqvo")]
    tensors = {f"model.layers.17.{name}.weight": projection("w", method="ecsq") for name in names}
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.17.{name}.weight"] = encoded({"delta": torch.ones(640).half()}, shape=(640,))
    codes = sum(item.nbytes for item in tensors.values())
    sizes = {}
    for version in (FORMAT_VERSION, PACKED_VERSION):
        write_block(tmp_path / "block", tensors, version)
        sizes[version] = (tmp_path / "block").stat().st_size - codes
    assert sizes[PACKED_VERSION] == packed_overhead(tensors) <= 200
    assert sizes[FORMAT_VERSION] > 2000
    with safetensors.safe_open(tmp_path / "block", "pt") as file:
        assert set(file.keys()) == {"b"}


def test_equal_blocks_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {"w": projection("w"), "b": encoded({"delta": torch.ones(7).half()}), "a": encoded({}, "omitted")}
    write_block(tmp_path / "one", tensors)
    write_block(tmp_path / "two", dict(reversed(tensors.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_projection_decodes_from_its_file_as_from_memory(method: str, tmp_path: Path) -> None:
    item = projection("w", method=method)
    write_block(tmp_path / "block", {"w": item})
    file = BlockFile(tmp_path / "block")
    read = decode_delta("w", file.headers["w"], file.codes("w"))
    assert read is not None
    assert torch.equal(read, METHODS.get(method).decode(dict(item.codes), "w", (16, 24), 5))


def test_omitted_tensors_and_plain_values_have_no_delta_and_kept_ones_their_own() -> None:
    assert decode_delta("a", encoded({}, "omitted").header, {}) is None
    assert decode_delta("a", encoded({"value": torch.ones(2)}, "value").header, {}) is None
    kept = decode_delta("a", encoded({"delta": torch.ones(2)}).header, {"delta": torch.tensor([0.5, -2.0]).half()})
    assert kept is not None
    assert kept.dtype == torch.float32
    assert kept.tolist() == [0.5, -2.0]


@pytest.mark.parametrize(
    ("method", "shape", "codes"),
    [
        ("keep", (3,), {"delta": torch.ones(2)}),
        ("keep", (2,), {}),
        ("impart", (16, 24, 1), projection("w").codes),
        ("impart", (16,), projection("w").codes),
        ("impart", (15, 24), projection("w").codes),
        ("impart", (16, 24), {"sigma": torch.ones(2)}),
        ("impart", (16, 24), {**projection("w").codes, "sigma": torch.ones(1)}),
        *(
            (method, (15, 24), projection("w", method=method).codes)
            for method in ("bitdelta", "dare", "dare-qt", "delta-come", "impart-qt", "lowrank", "magnitude")
        ),
        *(
            (method, (16, 0), projection("w", method=method).codes)
            for method in ("bitdelta", "dare", "dare-qt", "delta-come", "impart-qt", "lowrank", "magnitude")
        ),
        *((method, (16, 24), {}) for method in METHODS),
    ],
)
def test_codes_that_do_not_fit_their_header_are_refused_by_name(
    method: str, shape: tuple[int, ...], codes: dict[str, torch.Tensor]
) -> None:
    header = TensorHeader(method=method, role=Role.PROJECTION, shape=shape, dtype="BF16", seed=5)
    with pytest.raises(CorruptArtifactError, match="codes of 'w'"):
        decode_delta("w", header, codes)


def test_a_method_from_another_version_is_named() -> None:
    with pytest.raises(UnknownNameError, match="'impart2'"):
        decode_delta("w", encoded({}, "impart2", (2, 2)).header, {})


def block_with(path: Path, text: str | None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    save_file(tensors or {"w:delta": torch.ones(2)}, path, None if text is None else {"impart": text})
    return path


HEADER = {"method": "keep", "role": "norm", "shape": [2], "dtype": "F32", "parts": ["delta"]}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        json.dumps({"format": 1}),
        json.dumps({"format": 1, "tensors": []}),
        json.dumps({"format": 1, "tensors": {"w": {}}}),
        json.dumps({"format": 1, "tensors": {"w": {**HEADER, "unknown": 1}}}),
        json.dumps({"format": 1, "tensors": {"w": {**HEADER, "role": "hat"}}}),
        json.dumps({"format": 1, "tensors": {"w": {**HEADER, "parts": ["delta", "more"]}}}),
        json.dumps({"format": 1, "tensors": {"w": {**HEADER, "parts": []}}}),
        json.dumps({"format": 1, "tensors": {}}),
        json.dumps({"format": None, "tensors": {}}),
        '{"format": 1e999, "tensors": {}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_block_is_refused(text: str | None, tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match=r"block of a compressed delta|codes that its header lists"):
        BlockFile(block_with(tmp_path / "file", text))


def test_a_newer_format_says_what_to_do(tmp_path: Path) -> None:
    text = json.dumps({"format": 4, "tensors": {"w": HEADER}})
    with pytest.raises(CorruptArtifactError, match=r"format version 4; this program reads 1 to 3. Use the version"):
        BlockFile(block_with(tmp_path / "file", text))


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_whole_block_is_read(version: int, tmp_path: Path) -> None:
    file = BlockFile(block_with(tmp_path / "file", json.dumps({"format": version, "tensors": {"w": HEADER}})))
    assert file.codes("w")["delta"].tolist() == [1.0, 1.0]


def stack_of(seed: int = 5, method: str = "impart") -> EncodedTensor:
    """Return a stack of three matrices of which the second has no delta."""
    config = config_of(2, seed=seed, method=method)
    codes = {}
    for index in (0, 2):
        projection_ = Projection.of(decaying_delta(16, 24, seed=index), f"w[{index}]")
        own = METHODS.get(method).encode(projection_, config)
        codes |= {f"{index}.{part}": code for part, code in own.items()}
    return encoded(codes, method, (3, 16, 24), Role.PROJECTION, seed)


@pytest.mark.parametrize("method", METHODS)
def test_a_stack_decodes_matrix_by_matrix_each_under_its_own_name(method: str, tmp_path: Path) -> None:
    write_block(tmp_path / "block", {"w": stack_of(method=method)})
    file = BlockFile(tmp_path / "block")
    assert file.headers["w"].is_stack
    first, second, third = decode_stack(file, "w")
    assert second is None
    for index, found in ((0, first), (2, third)):
        assert found is not None
        assert torch.equal(found, METHODS.get(method).decode(file.codes("w", f"{index}."), f"w[{index}]", (16, 24), 5))


def test_matrix_10_of_a_stack_is_not_taken_for_matrix_1(tmp_path: Path) -> None:
    codes = {f"{index}.{part}": code for index in (1, 10) for part, code in projection(f"w[{index}]").codes.items()}
    write_block(tmp_path / "block", {"w": encoded(codes, "impart", (11, 16, 24), Role.PROJECTION, 5)})
    found = list(decode_stack(BlockFile(tmp_path / "block"), "w"))
    assert [index for index, delta in enumerate(found) if delta is not None] == [1, 10]


@pytest.mark.parametrize(
    ("header", "is_stack"),
    [
        ({"method": "impart", "shape": (3, 16, 24)}, True),
        ({"method": "impart", "shape": (16, 24)}, False),
        ({"method": "keep", "shape": (3, 16, 24)}, False),
        ({"method": "omitted", "shape": (3, 16, 24)}, False),
    ],
)
def test_a_stack_is_what_a_method_coded_in_three_dimensions(header: dict[str, Any], is_stack: bool) -> None:
    assert TensorHeader(role=Role.PROJECTION, dtype="BF16", **header).is_stack == is_stack


@pytest.mark.parametrize("shape", [(2, 16, 24), (3, 16, 25)])
def test_codes_that_do_not_fit_their_stack_are_refused_by_name(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes = stack_of().codes
    write_block(tmp_path / "block", {"w": encoded(codes, "impart", shape, Role.PROJECTION, 5)})
    with pytest.raises(CorruptArtifactError, match="'w"):
        list(decode_stack(BlockFile(tmp_path / "block"), "w"))


@pytest.mark.parametrize("part", ["3.sigma", "sigma", "-1.sigma", "00.sigma"])
def test_codes_of_no_matrix_of_the_stack_are_refused(part: str, tmp_path: Path) -> None:
    codes = {**stack_of().codes, part: torch.ones(1)}
    write_block(tmp_path / "block", {"w": encoded(codes, "impart", (3, 16, 24), Role.PROJECTION, 5)})
    with pytest.raises(CorruptArtifactError, match="'w' that belong to none of its matrices"):
        list(decode_stack(BlockFile(tmp_path / "block"), "w"))


def grown(codes: dict[str, torch.Tensor], method: str, rows: int = 5) -> EncodedTensor:
    """Return an embedding of three columns of which the last two rows were added."""
    added = torch.full((2, 3), 0.25).bfloat16()
    return encoded({**codes, "added": added}, method, (rows, 3), Role.EMBEDDING)


@pytest.mark.parametrize(
    ("method", "codes"),
    [
        ("keep", {"delta": torch.ones(3, 3).half()}),
        ("rows", {"rows": torch.tensor([0, 1, 2]).int(), "values": torch.ones(3, 3).half()}),
        ("lowrank", {"sigma": torch.ones(1), "u": torch.ones(1, 3).half(), "v": torch.ones(1, 3).half()}),
    ],
)
def test_added_rows_are_no_part_of_the_delta(method: str, codes: dict[str, torch.Tensor], tmp_path: Path) -> None:
    item = grown(codes, method)
    write_block(tmp_path / "block", {"w": item})
    file = BlockFile(tmp_path / "block")
    delta = decode_delta("w", file.headers["w"], file.codes("w"))
    assert delta is not None
    assert torch.equal(delta, torch.ones(3, 3))
    assert torch.equal(file.codes("w")["added"], item.codes["added"])
    assert file.code_bytes(["w"]) == item.nbytes


def test_a_vocabulary_that_only_grew_has_added_rows_and_no_delta() -> None:
    item = grown({}, "omitted")
    assert decode_delta("w", item.header, item.codes) is None
    assert item.nbytes == 2 * 2 * 3


@pytest.mark.parametrize("method", ["omitted", "keep"])
@pytest.mark.parametrize(
    ("shape", "added"),
    [
        ((1, 3), torch.ones(2, 3).bfloat16()),
        ((5, 4), torch.ones(2, 3).bfloat16()),
        ((5, 3), torch.ones(3).bfloat16()),
        ((5, 3), torch.tensor(1.0).bfloat16()),
        ((), torch.ones(2, 3).bfloat16()),
        ((5, 3), torch.ones(2, 3)),
    ],
)
def test_added_rows_that_do_not_fit_are_refused_by_name(
    method: str, shape: tuple[int, ...], added: torch.Tensor
) -> None:
    codes = {"added": added, **({"delta": torch.ones(3, 3).half()} if method == "keep" else {})}
    with pytest.raises(CorruptArtifactError, match="codes of 'w' do not fit"):
        decode_delta("w", encoded(codes, method, shape, Role.EMBEDDING).header, codes)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4)])
def test_rows_of_no_matrix_are_refused_by_name(shape: tuple[int, ...]) -> None:
    codes = {"rows": torch.tensor([1]).int(), "values": torch.ones(1, 3).half()}
    with pytest.raises(CorruptArtifactError, match="'w'"):
        decode_delta("w", encoded(codes, "rows", shape).header, codes)


def test_the_name_of_the_bases_tensor_is_stored_where_it_is_another(tmp_path: Path) -> None:
    plain = encoded({"delta": torch.ones(2).half()})
    alias = EncodedTensor(plain.header.model_copy(update={"base": "model.embed_tokens.weight"}), plain.codes)
    write_block(tmp_path / "block", {"lm_head.weight": alias, "norm": plain})
    headers = BlockFile(tmp_path / "block").headers
    assert (headers["lm_head.weight"].base, headers["norm"].base) == ("model.embed_tokens.weight", None)
