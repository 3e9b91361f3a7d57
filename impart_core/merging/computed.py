"""A tensor that is computed when it is read, as if it were stored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from impart_core.checkpoint.source import CHUNK, ComputedFile


@dataclass(frozen=True)
class ComputedTensor(ComputedFile):
    """A computed tensor's bytes.

    Attributes:
        key: tells it from all other tensors, by what its bytes follow from.
        compute: returns its bytes.
    """

    key: str
    compute: Callable[[], bytes | memoryview] = field(compare=False, repr=False)

    @property
    def address(self) -> str:
        """The key: it lies at no place."""
        return self.key

    def chunks(self, start: int, end: int) -> Iterator[memoryview]:
        """Give the bytes from `start` to before `end`, computed once."""
        data = memoryview(self.compute())
        for at in range(start, end, CHUNK):
            yield data[at : min(at + CHUNK, end)]
