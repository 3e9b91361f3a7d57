"""Where each tensor of a merged model comes from: which layers of which models, and how deep in the model it lies."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from impart_core.base.errors import ConfigError
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role, layer_of, role_of
from impart_core.merging.file import InputModel, InputSlice, MergeFile, ModelReference, Module, OutputSlice

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Place:
    """A tensor of the merged model.

    Attributes:
        name: its name.
        sources: the models that it is merged from, each with the donor's name for the tensor that it gives.
        base: the base that the file names for it, if any, and the donor's name for its tensor.
        slice: the output slice that it lies in.
        module: the module that it lies in.
        depth: 0 in the first layer of a slice or model, 1 in the last, 0 outside of layers, as in mergekit.
    """

    name: str
    sources: tuple[tuple[InputModel, str], ...]
    base: tuple[ModelReference, str] | None
    slice: OutputSlice | None
    module: Module | None
    depth: float


def places_of(file: MergeFile, donor: Checkpoint, names: Iterable[str]) -> list[Place]:
    """Return the tensors of the merged model.

    Args:
        file: what is merged how.
        donor: the model that gives names.
        names: the donor's tensors, and heads that it has not.

    Raises:
        ConfigError: a slice names layers that there are not, or a module that is no part of the model.
    """
    names = list(names)
    if file.modules:
        return list(_of_modules(file, donor, names))
    return list(_of_part(file, None, donor, names))


def layers_in(names: Iterable[str]) -> Counter[str]:
    """Return the number of layers of each stack, by what the names of its tensors begin with."""
    layers = {found[:2] for found in map(layer_of, names) if found}
    return Counter(prefix for prefix, _ in layers)


def _of_modules(file: MergeFile, donor: Checkpoint, names: list[str]) -> Iterator[Place]:
    if len(file.modules) == 1:
        yield from _of_part(file, next(iter(file.modules.values())), donor, names)
        return
    left = list(names)
    for called, module in file.modules.items():
        word = "language" if called.startswith("text") and not any(called in name for name in names) else called
        own = [name for name in left if word in name]
        if not own:
            parts = sorted({name.split(".")[0] for name in names} | {".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(
                f"The module {called!r} is no part of the model: no tensor's name has it. Its parts are "
                f"{', '.join(parts)}."
            )
        left = [name for name in left if name not in set(own)]
        yield from _of_part(file, module, donor, own)
    for name in left:  # as in the donor
        yield Place(name, (), None, None, None, 0.0)


def _of_part(file: MergeFile, module: Module | None, donor: Checkpoint, names: list[str]) -> Iterator[Place]:
    slices = module.slices if module else file.slices
    if slices:
        yield from _of_slices(file, module, slices, donor, names)
        return
    counts = layers_in(names)
    for name in names:
        found = layer_of(name)
        depth = _depth(found[1], counts[found[0]]) if found else 0.0
        sources = tuple((one, name) for one in (module.models if module else file.models))
        yield Place(name, sources, _base(file.base_model, name), None, module, depth)


def _of_slices(
    file: MergeFile, module: Module | None, slices: tuple[OutputSlice, ...], donor: Checkpoint, names: list[str]
) -> Iterator[Place]:
    counts = layers_in(names)
    if len(counts) != 1:
        raise ConfigError(
            f"The model has {len(counts)} stacks of layers ({', '.join(sorted(counts)) or 'none'}), so that slices do "
            "not say which is meant. Put them under modules."
        )
    ((prefix, number),) = counts.items()
    known = set(names)
    layer = 0
    for one in slices:
        for source in one.sources:
            if source.layer_range[1] > number:
                raise ConfigError(
                    f"A slice takes layers {source.layer_range[0]} to {source.layer_range[1]} of {source.model}, whose "
                    f"layers are 0 to {number}."
                )
        start, stop = one.sources[0].layer_range
        for offset in range(stop - start):
            for name in names:
                found = layer_of(name)
                if not found or found[1] != start + offset:
                    continue
                rest = found[2]
                taken = tuple(
                    (source, own)
                    for source in one.sources
                    if (own := f"{prefix}{source.layer_range[0] + offset}.{rest}") in known
                )
                base = one.base_model or file.base_model
                depth = _depth(offset, stop - start)
                yield Place(
                    f"{prefix}{layer}.{rest}", taken, _base(base, _base_name(base, taken, name)), one, module, depth
                )
            layer += 1
    for name in names:
        if layer_of(name) is None:
            one = slices[0 if role_of(donor.tensors[name], donor.config) is Role.EMBEDDING else -1]
            outside = tuple((source, name) for source in one.sources)
            yield Place(name, outside, _base(one.base_model or file.base_model, name), one, module, 0.0)


def _base(base: ModelReference | None, name: str) -> tuple[ModelReference, str] | None:
    return (base, name) if base else None


def _base_name(base: ModelReference | None, sources: tuple[tuple[InputSlice, str], ...], name: str) -> str:
    """Return the tensor of the base: that of the layers which a slice takes of it, else those of its first source."""
    return next((own for source, own in sources if source.model == base), name)


def _depth(layer: int, layers: int) -> float:
    return layer / (layers - 1) if layers > 1 else 1.0


def layer_settings(config: Mapping[str, Any], file: MergeFile) -> dict[str, Any]:
    """Return the settings of the configuration that tell of layers, where the file makes the model of slices."""
    slices = file.slices or next((module.slices for module in file.modules.values() if module.slices), ())
    if not slices:
        return {}
    taken = [layer for one in slices for layer in range(*one.sources[0].layer_range)]
    text = config.get("text_config")
    known = {**config, **(text if isinstance(text, Mapping) else {})}
    before = next((known[key] for key in _LAYER_COUNTS if isinstance(known.get(key), int)), None)
    counts = {key: len(taken) for key in _LAYER_COUNTS if isinstance(known.get(key), int)}
    lists = {
        key: [value[layer] for layer in taken]
        for key, value in known.items()
        if isinstance(value, list) and "layer" in key and len(value) == before and before > max(taken)
    }
    return {**counts, **lists}
