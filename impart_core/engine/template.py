"""What a search asks of its template: candidates known before they are made, and made into models to be scored."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.references import Run
from impart_core.store.store import Store


@dataclass(frozen=True)
class Model:
    """A candidate's model, ready to be scored; attributes as in `TrialJob`, whose fields these are.

    Attributes:
        checkpoint: the model where it is a checkpoint.
        delta: the id of its artifact where it is a delta.
        base: the base of a delta.
        inputs: what stands for a merged model in recipes.
        parents: ids of artifacts that it was made from.
    """

    checkpoint: Checkpoint | None = None
    delta: str | None = None
    base: Checkpoint | None = None
    inputs: Mapping[str, object] | None = None
    parents: tuple[str, ...] = ()


class Template(Protocol):
    """What a search fills; small, and the same in any process."""

    @property
    def base(self) -> Checkpoint:
        """The base."""

    @property
    def experts(self) -> Mapping[str, Model]:
        """The fine-tunes that candidates are made of by their names, which the winner is held against."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What is filled, without places: those are in no recipe."""

    @property
    def contents(self) -> dict[str, object]:
        """What stands for the models and texts at these places in the recipe of a study, by role."""

    def check(self, filled: Mapping[str, Any], run: Run) -> None:
        """Raise an `ImpartError` where a candidate cannot be made, without making it."""

    def inputs(self, filled: Mapping[str, Any]) -> dict[str, object]:
        """Return what stands for a candidate's model in the recipe of a trial, without making it.

        Raises:
            ImpartError: the candidate cannot be made.
        """

    def bytes_of(self, filled: Mapping[str, Any], made: Sequence[str], store: Store) -> int | None:
        """Return how many bytes a candidate takes up in the store; None: it is not there.

        Args:
            filled: the candidate.
            made: ids of the artifacts that its model was made from, as its trials tell: its own delta first.
            store: the store.
        """

    def model_of(self, filled: Mapping[str, Any], run: Run) -> AbstractContextManager[Model]:
        """Give a candidate's model, made or found in the store, to be scored inside the block.

        Raises:
            ImpartError: it cannot be made.
        """

    def publish(self, filled: Mapping[str, Any], run: Run) -> str:
        """Return the id of the artifact that a candidate's model is published as, made where it is not there."""
