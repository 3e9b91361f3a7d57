"""Blocks and roles: which tensors are worked on together, and which of them are projections.

Both come from names, shapes and the configuration, not from a list of models. A block is one layer; everything
else is one more block.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from impart_core.checkpoint.header import TensorInfo

_LAYER = re.compile(r"^(?P<prefix>(?:[^.]+\.)*?)(?P<index>\d+)\.")
_HEAD = re.compile(
    r"head|embed_out|output_layer|score|classifier|qa_outputs|predictions|lm_loss|(^|\.)cls\.|(^|\.)output\.weight$"
)
_EMBEDDING = re.compile(r"emb|wte|wpe|relative_attention_bias|(^|\.)shared\.weight$")
_ROUTER = re.compile(r"(^|\.)[^.]*router\.")
_GATE = re.compile(r"(^|\.)gate\.")  # a router where it has as many sides as experts, else half of a gated layer
_LINEAR = re.compile(r"(^|\.)([^.]*weight|[^.]*proj|w\d+)$")
_NORM = re.compile(r"norm|(^|[._])ln[._\d]")
_NORM_MATRIX = re.compile(r"norm[^.]*(\.weight)?$")  # one row a head; a norm's own linear layers are none
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_NARROWEST_EXPERT = 16  # on both sides: the last side of a convolution's weight is its width
OUTSIDE = "outside"  # the block of embeddings, head, final norm and whatever else is in no layer


class Role(StrEnum):
    """What a tensor is in the model."""

    PROJECTION = "projection"
    EMBEDDING = "embedding"
    HEAD = "head"
    ROUTER = "router"
    NORM = "norm"
    BIAS = "bias"
    OTHER = "other"


@dataclass(frozen=True)
class Block:
    """The unit of work: its name (`model.layers.3`, or `outside`) and its tensors' names, sorted."""

    name: str
    tensors: tuple[str, ...]


def role_of(info: TensorInfo, config: Mapping[str, Any]) -> Role:
    """Return a tensor's role.

    A projection is a floating matrix that a linear module multiplies by: inside a layer, or outside of them where
    it is neither an embedding nor a head. Experts that are stored as one tensor, (experts, m, n), are a stack of
    projections. Routers choose between experts; they are small, and an error in them changes who computes. A head
    is all that stands between the model's body and its outputs, several layers where it has them.

    Args:
        info: the tensor.
        config: the model's configuration, for the number of its experts.
    """
    name, shape = info.name.lower(), info.shape
    if name.endswith("bias"):
        return Role.BIAS
    if info.is_floating and len(shape) == 3 and shape[0] and _are_experts(info):
        return Role.PROJECTION
    if info.is_floating and len(shape) == 2 and min(shape) > 0 and _is_of_head(name):
        return Role.HEAD
    if info.is_floating and len(shape) == 2 and min(shape) > 1:
        return _role_of_matrix(name, shape, config)
    return Role.NORM if _NORM.search(name) else Role.OTHER


def _are_experts(info: TensorInfo) -> bool:
    return in_layer(info.name) and min(info.shape[1:]) >= _NARROWEST_EXPERT


def _role_of_matrix(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> Role:
    if _EMBEDDING.search(name):
        return Role.EMBEDDING
    if _ROUTER.search(name) or (_GATE.search(name) and number_of_experts(config) in shape):
        return Role.ROUTER
    if _NORM_MATRIX.search(name):
        return Role.NORM
    return Role.PROJECTION if _LINEAR.search(name) else Role.OTHER


def _is_of_head(name: str) -> bool:
    """Whether a tensor outside of layers, or in a numbered list that is called a head, belongs to a head."""
    match = _LAYER.match(name)
    return bool(_HEAD.search(".".join(match["prefix"].split(".")[-2:]) if match else name))


def layers_of(name: str) -> str | None:
    """Return what the layers are called that a tensor lies in one of (`model.layers.`); None outside of layers."""
    match = _LAYER.match(name)
    return match["prefix"] if match else None


def layer_of(name: str) -> tuple[str, int, str] | None:
    """Return what comes before a tensor's layer number, the number, and what comes after; None outside of layers."""
    match = _LAYER.match(name)
    return (match["prefix"], int(match["index"]), name[match.end() :]) if match else None


def in_layer(name: str) -> bool:
    """Return whether a tensor lies in a layer of the model's body, which base and fine-tune share."""
    return bool(_LAYER.match(name)) and not _is_of_head(name.lower())


def number_of_experts(config: Mapping[str, Any]) -> int | None:
    """Return how many experts each layer has, by the configuration or one of its parts; None for a dense model."""
    for key in _EXPERT_KEYS:
        if isinstance(config.get(key), int):
            return int(config[key])
    parts = (value for value in config.values() if isinstance(value, Mapping))
    return next((found for part in parts if (found := number_of_experts(part)) is not None), None)


def group_blocks(tensors: Iterable[str]) -> list[Block]:
    """Group tensor names into blocks: layers in their order, then everything outside them."""
    groups: dict[tuple[bool, str, int], list[str]] = {}
    for name in tensors:
        match = _LAYER.match(name)
        key = (False, match["prefix"], int(match["index"])) if match else (True, "", 0)
        groups.setdefault(key, []).append(name)
    return [
        Block(OUTSIDE if outside else f"{prefix}{index}", tuple(sorted(names)))
        for (outside, prefix, index), names in sorted(groups.items())
    ]
