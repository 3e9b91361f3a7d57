"""PEFT adapters (LoRA and what belongs to it): read from their folder, and told apart from what cannot be merged.

The names of files, settings and tensors are those of the `peft` library, up to version 0.21.
"""

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.header import TensorInfo, read_header
from impart_core.checkpoint.location import open_subfolder
from impart_core.checkpoint.source import Folder, read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_MOST_FOLDERS = 16  # to look into

# Settings that a merge does not depend on, or that the names and shapes of the tensors tell as well.
_NEUTRAL = """
    auto_mapping base_model_name_or_path bias eva_config exclude_modules inference_mode layers_pattern
    layers_to_transform lora_dropout megatron_core modules_to_save peft_type peft_version qalora_group_size revision
    runtime_config target_modules task_type
"""
_USED = """
    alpha_pattern ensure_weight_tying fan_in_fan_out init_lora_weights lora_alpha lora_bias r rank_pattern
    target_parameters trainable_token_indices use_dora use_rslora
"""
_KNOWN = frozenset((_NEUTRAL + _USED).split())
# Other ways to initialise change the base as well, so that the adapter is none to the base as it was.
_INITIALISED = (True, False, None, "gaussian", "eva", "orthogonal")

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "target_parameters": list,
    "trainable_token_indices": (dict, list),
}
_NESTED = re.compile(r"[+*}]\)+[+*{]")
_PREFIX = re.compile(r"^(?:base_model\.model\.|_orig_mod\.|module\.)+")
_LORA = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.default)?"
    r"(?:\.(?P<leaf>weight|bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?")


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies in its folder.

    Attributes:
        location: its folder.
        settings: the parsed adapter_config.json.
        lora: of each module by its name, the LoRA tensors by part (`lora_A`, `lora_B`, `lora_B.bias`, …).
        tokens: of each embedding by its name, the rows that were trained.
        whole: tensors that were trained or saved whole, by name.
    """

    location: str
    settings: Mapping[str, Any]
    lora: Mapping[str, Mapping[str, TensorInfo]]
    tokens: Mapping[str, TensorInfo]
    whole: Mapping[str, TensorInfo]

    @property
    def base_name(self) -> str:
        """What it calls its base; empty where it does not."""
        return str(self.settings.get("base_model_name_or_path") or "")

    def rank(self, module: str) -> int:
        """Return r of a module."""
        return int(self._by_pattern("rank_pattern", module, self.settings.get("r", 8)))

    def scale(self, module: str) -> float:
        """Return alpha/r of a module, alpha/√r where it is rank-stabilised (arXiv 2312.03732)."""
        alpha = float(self._by_pattern("alpha_pattern", module, self.settings.get("lora_alpha", 8)))
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def token_indices(self, module: str) -> tuple[int, ...]:
        """Return which rows of an embedding were trained."""
        given = self.settings.get("trainable_token_indices")
        if isinstance(given, Mapping):
            given = next((rows for name, rows in given.items() if f".{module}".endswith(f".{name}")), None)
        return tuple(map(int, given or ()))

    def _by_pattern(self, setting: str, module: str, default: Any) -> Any:
        """Return what the first pattern that fits the end of a module's name sets, as `peft` matches them."""
        patterns = self.settings.get(setting) or {}
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_adapter(folder: Folder) -> Adapter | None:
    """Return the adapter in a folder; None where there is none.

    Raises:
        CheckpointError: it is of a kind that cannot be merged, or its files do not hold together.
    """
    file = folder.file(ADAPTER_CONFIG)
    if file is None:
        return None
    settings = read_json(file)
    _require_mergeable(folder.location, settings)
    weights = folder.file(ADAPTER_WEIGHTS)
    if weights is None:
        pickled = f" ({_PICKLE} is a pickle, and pickles are not read)" if folder.file(_PICKLE) else ""
        raise CheckpointError(
            f"{folder.location} holds an {ADAPTER_CONFIG} without {ADAPTER_WEIGHTS}{pickled}. Save the adapter with "
            f"`save_pretrained(..., safe_serialization=True)`, or remove {ADAPTER_CONFIG} if it is no longer meant."
        )
    tensors, _ = read_header(weights)
    return _sorted_out(folder.location, settings, tensors)


def adapters_in(folder: Folder) -> list[str]:
    """Return the folders in a folder that hold an adapter each, as `peft` saves those that have names."""
    found = []
    for name in [name for name, file in folder.entries.items() if file is None][:_MOST_FOLDERS]:
        with contextlib.suppress(CheckpointError):
            if open_subfolder(folder, name).file(ADAPTER_CONFIG):
                found.append(name)
    return found


def _sorted_out(location: str, settings: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Adapter:
    lora: dict[str, dict[str, TensorInfo]] = {}
    tokens: dict[str, TensorInfo] = {}
    whole: dict[str, TensorInfo] = {}
    for key, info in tensors.items():
        name = _PREFIX.sub("", key)
        if not info.numel or not info.is_floating:
            raise CheckpointError(
                f"The adapter {location} holds {key!r} as {info.dtype} {list(info.shape)}; expected floating values. "
                "Empty tensors are what ZeRO-3 leaves where they were not gathered: save the adapter again."
            )
        if found := _LORA.fullmatch(name):
            part = found["part"] + (".bias" if found["leaf"] == "bias" else "")
            lora.setdefault(found["module"], {})[part] = info
        elif found := _TOKENS.fullmatch(name):
            tokens[found["module"]] = info
        elif re.search(r"lora_|token_adapter|prompt_|adapter\.", name):
            raise CheckpointError(f"The adapter {location} holds {key!r}, which is no part of LoRA that can be merged.")
        else:
            whole[name.replace(".base_layer.", ".").replace("modules_to_save.", "")] = info
    if not (lora or tokens or whole):
        raise CheckpointError(f"The adapter {location} holds no tensors. Save it again.")
    return Adapter(location, settings, lora, tokens, whole)


def _require_mergeable(location: str, settings: Mapping[str, Any]) -> None:
    """Refuse, by name, whatever changes a model in another way than by tensors that can be added to it."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{location} is a PEFT adapter of the type {kind!r}, and only LORA (with rsLoRA and DoRA) is merged. Merge "
            "it with `merge_and_unload()` where peft can, and give the folder that is saved then."
        )
    odd = sorted(key for key, value in settings.items() if key not in _KNOWN and value)
    if odd:
        raise CheckpointError(
            f"The LoRA adapter {location} sets {', '.join(map(repr, odd))}, which cannot be merged here. Merge it with "
            "`merge_and_unload()` where peft can, and give the folder that is saved then."
        )
    start = settings.get("init_lora_weights", True)
    if start not in _INITIALISED:
        raise CheckpointError(
            f"The LoRA adapter {location} was initialised by {start!r}, which changes the base too. Save it with "
            "`path_initial_model_for_weight_conversion`, which makes an ordinary adapter of it, or merge it with peft."
        )
    _require_sound(location, settings)


def _require_sound(location: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings of the wrong type: an adapter may come from a stranger."""
    for setting, kinds in _TYPES.items():
        value = settings.get(setting)
        if value is not None and not isinstance(value, kinds):
            raise CheckpointError(f"{setting} of the LoRA adapter {location} is {value!r:.100}. Save it again.")
    tokens = settings.get("trainable_token_indices") or []
    rows = list(tokens.values()) if isinstance(tokens, dict) else [tokens]
    if not all(isinstance(some, list) and all(type(row) is int for row in some) for some in rows):
        raise CheckpointError(f"trainable_token_indices of {location} are no rows: {tokens!r:.100}. Save it again.")
    ranks = [settings.get("r", 8), *(settings.get("rank_pattern") or {}).values()]
    alphas = [settings.get("lora_alpha", 8), *(settings.get("alpha_pattern") or {}).values()]
    sound = all(type(rank) is int and rank > 0 for rank in ranks) and all(
        type(alpha) in (int, float) and math.isfinite(alpha) for alpha in alphas
    )
    if not sound:
        raise CheckpointError(f"The LoRA adapter {location} has ranks {ranks} and alphas {alphas}. Save it again.")
    for setting in ("rank_pattern", "alpha_pattern"):
        for pattern in settings.get(setting) or {}:
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"{setting} of {location} has {pattern!r}: {error}. Save it again.") from error
            if _NESTED.search(pattern):  # it could take for ever to match
                raise CheckpointError(
                    f"{setting} of {location} repeats a repetition: {pattern!r:.200}. Write it simpler."
                )
