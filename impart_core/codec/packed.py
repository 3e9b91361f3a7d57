"""What a block file of format 3 says of its tensors, in about ten bytes a tensor (docs/format.md).

Text that is much alike from block to block is compressed against a text that every reader has.
"""

import json
from collections.abc import Mapping
from typing import Any

import zstandard

from impart_core.codec.tables import number, read_number

PACKED_KEY = "b"  # the file's only entry
_LEVEL = 19
_MOST_TEXT = 100_000_000  # bytes: as many as a safetensors header may have
# Part of the format: what texts are compressed against. It changes with the format's version only.
DICTIONARY = (
    '"role":"bias"omittedrowsvalues.bias.experts.h.ln_1ln_2attn.c_attnattn.c_projmlp.c_fcfc1fc2self_attn.out_proj'
    "self_attn.q_normself_attn.k_normpre_feedforward_layernormpost_feedforward_layernorm"
    '{"format":3,"tensors":{"model.layers.0.input_layernorm.weight":{"dtype":"BF16","method":"keep",'
    '"parts":{"delta":["F16",[4096]],"exponent":["I8",[1]]},"role":"norm","shape":[4096]},'
    '"model.layers.0.mlp.down_proj.weight":{"dtype":"BF16","method":"ecsq","parts":{"symbols":["U8",[0]]},'
    '"role":"projection","shape":[4096,4096]},"model.layers.0.mlp.gate_proj.weight":'
    '"model.layers.0.mlp.up_proj.weight":"model.layers.0.post_attention_layernorm.weight":'
    '"model.layers.0.self_attn.k_proj.weight":"model.layers.0.self_attn.o_proj.weight":'
    '"model.layers.0.self_attn.q_proj.weight":"model.layers.0.self_attn.v_proj.weight":'
    '{"dtype":"BF16","method":"ecsq","parts":{"symbols":["U8",['
)
_SHARED = zstandard.ZstdCompressionDict(DICTIONARY.encode("ascii"), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS


def packed_text(described: Mapping[str, Any]) -> bytes:
    """Return a description as it is stored: the lengths of its JSON and of the zstd frame, and the frame."""
    text = json.dumps(described, separators=(",", ":"), sort_keys=True).encode("ascii")
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=len(text), write_checksum=0, write_content_size=0, write_dict_id=0, format=_FORMAT
    )
    frame = zstandard.ZstdCompressor(compression_params=parameters, dict_data=_SHARED).compress(text)
    return number(len(text)) + number(len(frame)) + frame


def read_packed_text(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the description that bytes begin with, and where it ends.

    Raises:
        ValueError: they begin with none.
    """
    try:
        size, at = read_number(data, 0)
        length, at = read_number(data, at)
    except ValueError:
        raise ValueError("its description is cut short") from None
    if size > _MOST_TEXT or length > len(data) - at:
        raise ValueError("its description is longer than the file")
    try:
        decompressor = zstandard.ZstdDecompressor(dict_data=_SHARED, format=_FORMAT)
        # Unlike `decompress`, it takes no memory by what the frame says of its own size.
        text = decompressor.stream_reader(data[at : at + length]).read(size + 1)
    except zstandard.ZstdError as error:
        raise ValueError(f"its description is no zstd frame: {error}") from error
    if len(text) != size:
        raise ValueError("its description has another length than it says")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("its description is not a JSON object")
    return found, at + length
