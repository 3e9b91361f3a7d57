"""Which tensor of the base each fine-tuned tensor is a delta against."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role, in_layer, layers_of, role_of
from impart_core.checkpoint.model import UnknownModelError, empty_model, renaming

VOCABULARY = (Role.EMBEDDING, Role.HEAD)
_NO_TOKENS = re.compile(r"pos|wpe|relative|type|segment")  # embeddings of places, and of kinds of input


@dataclass(frozen=True)
class Pair:
    """A fine-tuned tensor, its role, and what it is a delta against; no base where only the fine-tune has it."""

    finetuned: TensorInfo
    base: TensorInfo | None
    role: Role

    @property
    def name(self) -> str:
        """The fine-tuned tensor's name."""
        return self.finetuned.name

    @property
    def is_stack(self) -> bool:
        """Whether it is a stack of matrices, (experts, m, n), each coded on its own."""
        return self.role is Role.PROJECTION and len(self.finetuned.shape) == 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the delta: the base's, which has fewer rows where the vocabulary has grown."""
        return (self.base or self.finetuned).shape

    @property
    def fits(self) -> bool:
        """Whether its base has its shape, or its first rows: a vocabulary grows, and the bias of a head with it."""
        ours, theirs = self.shape, self.finetuned.shape
        grows = self.role in VOCABULARY or (self.role is Role.BIAS and not in_layer(self.name))
        return ours == theirs or (grows and len(theirs) > 0 and ours[1:] == theirs[1:] and ours[:1] < theirs[:1])

    def matrices(self) -> "tuple[Pair, ...]":
        """Return the matrices of a stack, or the tensor itself."""
        if not self.is_stack:
            return (self,)
        return tuple(
            Pair(self.finetuned.part(index), self.base.part(index) if self.base else None, self.role)
            for index in range(self.finetuned.shape[0])
        )


Pairs = Mapping[str, Pair]


def pair_tensors(base: Checkpoint, finetuned: Checkpoint) -> dict[str, Pair]:
    """Return the pair of every fine-tuned tensor, by its name.

    The names of one side may have the prefix that a model with a head puts before its body (`bert.`), and those of
    the other lack it; they may be those of a part of the base (`model.language_model.`), or those of another version
    of transformers. The head of a fine-tune whose base ties it to the embedding is a delta against that embedding.
    A matrix outside of layers that the base lacks is new, and no projection that could be compressed. So is a head
    that the base's does not fit, as it has other labels.
    """
    renamed = _renaming(base, finetuned)
    pairs = {}
    for name, info in finetuned.tensors.items():
        role = role_of(info, finetuned.config)
        ours = base.tensors.get(name) or base.tensors.get(renamed(name))
        if ours is None and role is Role.HEAD:
            ours = _tied_embedding(base, finetuned, info)
        if ours is None and role is Role.PROJECTION and not in_layer(name):
            role = Role.OTHER
        pair = Pair(info, ours, role)
        of_head = role is Role.HEAD or (role is Role.BIAS and not in_layer(name))
        pairs[name] = pair if pair.fits or not of_head else Pair(info, None, role)
    return pairs


def _renaming(base: Checkpoint, finetuned: Checkpoint) -> Callable[[str], str]:
    """Return what a fine-tuned tensor is called in the base: the same where any layer's tensor is.

    Else all names of one side have a prefix more; or the layers lie elsewhere in the base, which is a larger model; or
    transformers has other names for one side's, as it had before.
    """
    theirs, ours = ({name for name in side.tensors if in_layer(name)} for side in (finetuned, base))
    if not ours & theirs:
        for prefix in _prefixes(theirs):
            if all(name.removeprefix(prefix) in ours for name in theirs):
                return lambda name: name.removeprefix(prefix)
        for prefix in _prefixes(ours):
            if all(prefix + name in ours for name in theirs):
                return lambda name: prefix + name
        return _moved(base, finetuned) or _known_to_transformers(base, finetuned) or (lambda name: name)
    return lambda name: name


def _moved(base: Checkpoint, finetuned: Checkpoint) -> Callable[[str], str] | None:
    """Return the renaming that moves the fine-tune's layers to where the base has such ones, if only one does."""
    theirs = {name: info.shape for name, info in finetuned.tensors.items() if in_layer(name)}
    found = []
    for source, target in product(_parents(finetuned), _parents(base)):

        def renamed(name: str, source: str = source, target: str = target) -> str:
            return target + name.removeprefix(source) if name.startswith(source) else name

        places = {name: base.tensors.get(renamed(name)) for name in theirs}
        if theirs and all(info is not None and info.shape == theirs[name] for name, info in places.items()):
            found.append(renamed)
    return found[0] if len(found) == 1 else None


def _parents(checkpoint: Checkpoint) -> list[str]:
    """Return what the names of modules with layers begin with: `model.` for `model.layers.`."""
    stacks = {stack for name in checkpoint.tensors if (stack := layers_of(name))}
    return sorted({stack[: stack.rstrip(".").rfind(".") + 1] for stack in stacks})


def _known_to_transformers(base: Checkpoint, finetuned: Checkpoint) -> Callable[[str], str] | None:
    """Return the renaming by what transformers calls the tensors of both in the model, if it knows both."""
    try:
        ours, theirs = (renaming(empty_model(side), convert=False) for side in (base, finetuned))
    except UnknownModelError:
        return None
    names: dict[str, list[str]] = {}
    for name in base.tensors:
        names.setdefault(ours(name), []).append(name)
    single = {renamed: found[0] for renamed, found in names.items() if len(found) == 1}
    return lambda name: single.get(theirs(name), name)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return what names begin with, to their first dot."""
    return sorted({name[: name.index(".") + 1] for name in names})


def _tied_embedding(base: Checkpoint, finetuned: Checkpoint, head: TensorInfo) -> TensorInfo | None:
    """Return the base's embedding that a head of the vocabulary's shape was tied to; None where there is none."""
    ours, theirs = (embedding_of_tokens(side, head.shape[1]) for side in (base, finetuned))
    if ours is None or ours.shape[0] > head.shape[0] or (theirs and theirs.shape != head.shape):
        return None
    untied = any(info.shape == ours.shape and role_of(info, base.config) is Role.HEAD for info in base.tensors.values())
    return None if untied else ours


def embedding_of_tokens(checkpoint: Checkpoint, width: int | None = None) -> TensorInfo | None:
    """Return a checkpoint's largest embedding, by rows, of this width that is one of tokens; None: of any width."""
    fitting = [
        info
        for name, info in checkpoint.tensors.items()
        if role_of(info, checkpoint.config) is Role.EMBEDDING
        and width in (None, info.shape[1])
        and not names_no_tokens(name)
    ]
    return max(fitting, key=lambda info: info.shape[0], default=None)


def names_no_tokens(name: str) -> bool:
    """Return whether an embedding of this name is one of places, or of kinds of input."""
    return bool(_NO_TOKENS.search(name))
