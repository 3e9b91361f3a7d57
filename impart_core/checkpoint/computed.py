"""A tensor that is computed when it is read, as if it were stored: whoever reads or digests it needs not know."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from impart_core.checkpoint.source import CHUNK, ComputedFile


@dataclass(frozen=True)
class ComputedTensor(ComputedFile):
    """A computed tensor's bytes.

    Attributes:
        key: tells it from all other tensors, by what its bytes follow from.
        compute: returns the bytes of one of its pieces, by its number.
        pieces: how many pieces of one size it is computed in, such as the matrices of a stack.
    """

    key: str
    compute: Callable[[int], bytes | memoryview] = field(compare=False, repr=False)
    pieces: int = 1

    @property
    def address(self) -> str:
        """The key: it lies at no place."""
        return self.key

    def chunks(self, start: int, end: int) -> Iterator[memoryview]:
        """Give the bytes from `start` to before `end`, each piece computed once."""
        each = self.size // max(1, self.pieces)
        for number in range(start // each, -(-end // each)) if each else ():
            data = memoryview(self.compute(number))
            low, high = max(start - number * each, 0), min(end - number * each, each)
            for at in range(low, high, CHUNK):
                yield data[at : min(at + CHUNK, high)]
