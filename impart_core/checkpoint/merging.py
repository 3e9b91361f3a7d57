"""Which tensor of the base each part of an adapter is merged into."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.adapter import Adapter
from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.layout import Role, role_of
from impart_core.checkpoint.location import model_name
from impart_core.checkpoint.merge import AddedBias, ExpertsLowRank, LowRank, Rows, Update, Whole, merged_tensor
from impart_core.checkpoint.reader import tensor_digest

_HEAD = "lm_head.weight"
_WITH_HEAD = ("ForCausalLM", "ForConditionalGeneration")


@dataclass(frozen=True)
class Merged:
    """A base with an adapter merged into it: all tensors by name, and the model's configuration."""

    tensors: dict[str, TensorInfo]
    config: Mapping[str, Any]


def merge(adapter: Adapter, base: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Merged:
    """Merge an adapter into a base: the model is the one that `peft` computes with, before any merging there.

    Args:
        adapter: the adapter.
        base: the base's tensors by name.
        config: the base's configuration.

    Raises:
        CheckpointError: a part of the adapter fits no tensor of the base, or cannot be merged; the message names it.
    """
    return _Merging(adapter, dict(base), config).run()


def notes_on(adapter: Adapter, base: str) -> list[str]:
    """Return what whoever gives an adapter and the place of a base should know."""
    if adapter.location == base:
        return [f"{base} holds a whole model and an adapter: they are merged, as transformers loads them."]
    notes = [f"The adapter {adapter.location} is merged into {base}."]
    if adapter.base_name and model_name(adapter.base_name) != model_name(base):
        notes.append(f"The adapter calls its base {adapter.base_name!r}, and {base} is given.")
    return notes


@dataclass
class _Merging:
    adapter: Adapter
    base: dict[str, TensorInfo]
    config: Mapping[str, Any]
    done: dict[str, TensorInfo] = field(default_factory=dict)

    def run(self) -> Merged:
        embedding = None if _HEAD in self.base else self._tied_embedding()
        if embedding:  # for the time being the head is a tensor of its own
            self.base[_HEAD] = replace(embedding, name=_HEAD)
        names = self._renamed()
        for name, value in self.adapter.whole.items():
            self._put_whole(names(name), value)
        for module, value in self.adapter.tokens.items():
            self._put_rows(names(f"{module}.weight"), module, value)
        for module, parts in self.adapter.lora.items():
            self._put_lora(names, module, parts)
        settings = self._vocabulary()
        if embedding:
            settings |= self._tie(embedding)
        return Merged(self.base | self.done, with_settings(self.config, settings))

    def _put(self, name: str, update: Update, shape: tuple[int, ...] | None = None) -> None:
        before = self.done.get(name) or self.base.get(name)
        dtype = before.torch_dtype if before else update.value.torch_dtype
        if before and not before.is_floating:
            raise self._unfit(name, f"the base stores it as {before.dtype}")
        base = None if isinstance(update, Whole) else before
        wanted = shape or (before or update.value).shape
        self.done[name] = merged_tensor(name, base, update, wanted, dtype)

    def _put_whole(self, name: str, value: TensorInfo) -> None:
        self._put(name, Whole(value), value.shape)

    def _put_rows(self, name: str, module: str, value: TensorInfo) -> None:
        base, indices = self._base(name), self.adapter.token_indices(module)
        fits = len(base.shape) == 2 and value.shape == (len(indices), base.shape[1])
        if not fits or not all(0 <= index < base.shape[0] for index in indices):
            raise self._unfit(name, f"trainable_token_indices name {len(indices)} rows, and {value.shape} are stored")
        self._put(name, Rows(value, indices))

    def _put_lora(self, names: Callable[[str], str], module: str, parts: Mapping[str, TensorInfo]) -> None:
        name = names(f"{module}.weight")
        a, b = (parts.get(f"lora_{side}") for side in "AB")
        if embedded := "lora_embedding_A" in parts:
            a, b = parts["lora_embedding_A"], parts.get("lora_embedding_B")
        if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
            raise self._unfit(name, "its LoRA has not two matrices, as convolutions have not or as one is missing")
        if name not in self.base and name not in self.done and self.adapter.settings.get("target_parameters"):
            self._put_experts(names, module, a, b)
            return
        base, rank, magnitude = self._base(name), self.adapter.rank(module), parts.get("lora_magnitude_vector")
        out, into = b.shape[0], a.shape[1]
        transposed = self._is_transposed(base, out, into) or embedded
        wanted = (into, out) if transposed else (out, into)
        if (a.shape[0], b.shape[1], base.shape) != (rank, rank, wanted):
            found = f"A {list(a.shape)} and B {list(b.shape)} of rank {rank}, and the base {list(base.shape)}"
            raise self._unfit(name, f"the adapter has {found}")
        if (magnitude is None) == bool(self.adapter.settings.get("use_dora")) or (magnitude and magnitude.numel != out):
            raise self._unfit(name, "use_dora and its magnitudes do not agree")
        self._put(name, LowRank(a, b, self.adapter.scale(module), transposed, magnitude))
        if bias := parts.get("lora_B.bias"):
            bias_name = names(f"{module}.bias")
            if self._base(bias_name).shape != bias.shape:
                raise self._unfit(bias_name, f"the adapter's has the shape {list(bias.shape)}")
            self._put(bias_name, AddedBias(bias, self.adapter.scale(module)))

    def _put_experts(self, names: Callable[[str], str], module: str, a: TensorInfo, b: TensorInfo) -> None:
        """Merge LoRA on a stack: `base_layer` in its name counts parameters; shapes say which of them it is for."""
        owner = module.replace(".base_layer", "")
        targets = self.adapter.settings["target_parameters"]
        found = []
        for name, info in self.base.items():
            place, _, own = name.rpartition(".")
            ours = f"{owner}.{own}"
            if len(info.shape) == 3 and names(ours) == name and place == name.removesuffix(f".{own}"):
                experts, sides = info.shape[0], info.shape[1:]
                fits = sorted(sides) == sorted((b.shape[0], a.shape[1]))
                whole = a.shape[0] == b.shape[1] == experts * self.adapter.rank(ours)
                if fits and whole and any(f".{ours}".endswith(f".{target}") for target in targets):
                    found.append((name, ours, info))
        if len(found) != 1 or found[0][2].shape[1] == found[0][2].shape[2]:
            raise self._unfit(
                f"{owner}.*", f"{len(found)} stacks of the base fit its target_parameters, one that is not square must"
            )
        name, ours, info = found[0]
        transposed = info.shape[1:] == (a.shape[1], b.shape[0])
        self._put(name, ExpertsLowRank(a, b, self.adapter.scale(ours), transposed, info.shape[0]))

    def _is_transposed(self, base: TensorInfo, out: int, into: int) -> bool:
        """Whether a weight is stored as (in, out): as its sides say, and where these are equal, as the setting does."""
        if out != into:
            return base.shape == (into, out)
        return bool(self.adapter.settings.get("fan_in_fan_out"))

    def _base(self, name: str) -> TensorInfo:
        info = self.done.get(name) or self.base.get(name)
        if info is None:
            raise self._unfit(name, "the base has no such tensor")
        return info

    def _unfit(self, name: str, why: str) -> CheckpointError:
        called = f", {self.adapter.base_name!r}" if self.adapter.base_name else ""
        return CheckpointError(
            f"The adapter {self.adapter.location} cannot be merged at {name!r}: {why}. Give the base that it was "
            f"trained on{called}, or merge it with peft's `merge_and_unload()` and give that folder."
        )

    def _renamed(self) -> Callable[[str], str]:
        """Return what the base calls a tensor: the names of one side may all have a prefix more (`model.`)."""
        modules = [*self.adapter.lora, *self.adapter.tokens]
        wanted = {f"{module}.weight" for module in modules if f"{module}.weight" not in self.adapter.whole}
        wanted = {name for name in wanted if ".base_layer" not in name} or set(self.adapter.whole)
        if wanted and not wanted & self.base.keys():
            for prefix in _prefixes(self.base):
                if all(prefix + name in self.base for name in wanted):
                    return lambda name: prefix + name if prefix + name in self.base else name
            for prefix in _prefixes(wanted):
                if all(name.removeprefix(prefix) in self.base for name in wanted):
                    return lambda name: name.removeprefix(prefix)
        return lambda name: name

    def _tied_embedding(self) -> TensorInfo | None:
        """Return the embedding that the base's head is tied to; None where it has no head."""
        architecture = str(next(iter(self.config.get("architectures") or ()), ""))
        heads = [name for name, info in self.base.items() if role_of(info, self.config) is Role.HEAD]
        if heads or not architecture.endswith(_WITH_HEAD):
            return None
        found = [info for info in self.base.values() if role_of(info, self.config) is Role.EMBEDDING]
        return max(found, key=lambda info: info.shape[0], default=None)

    def _tie(self, embedding: TensorInfo) -> dict[str, Any]:
        """Tie the head to the embedding again where they are the same still, and say where they are not.

        As `peft` computes: what changes the embedding's values leaves a head that was tied to it as it was, unless
        the adapter says otherwise; rows of tokens are trained for both.
        """
        ours, head = self.done.get(embedding.name), self.done.get(_HEAD)
        follows = bool(self.adapter.tokens or self.adapter.settings.get("ensure_weight_tying"))
        grown = ours is not None and ours.shape != embedding.shape
        same = ours is None if head is None else ours is not None and _equal(ours, head)
        if same or (head is None and (follows or grown)):
            del self.base[_HEAD]
            self.done.pop(_HEAD, None)
            return {}
        return {"tie_word_embeddings": False}

    def _vocabulary(self) -> dict[str, Any]:
        """Return the size of the vocabulary where the adapter brings embeddings of another one."""
        for name, info in self.done.items():
            before = self.base.get(name)
            if before and role_of(info, self.config) is Role.EMBEDDING and info.shape[0] != before.shape[0]:
                return {"vocab_size": info.shape[0]}
        return {}


def _equal(one: TensorInfo, other: TensorInfo) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and tensor_digest(one) == tensor_digest(other)


def _prefixes(names: Iterable[str]) -> list[str]:
    return sorted({name[: name.index(".") + 1] for name in names if "." in name})


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with other settings, in its part for text too where they stand there."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return {**config, **settings}
    inner = {key: value for key, value in settings.items() if key in text}
    outer = {key: value for key, value in settings.items() if key in config or key not in text}
    return {**config, **outer, "text_config": {**text, **inner}}
