"""A recipe of the zoo: the ways to compress a model that are tried, and what the result has to keep."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, field_validator, model_validator

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen
from impart_core.blocks.coding import needs_text
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.zoo.gate import Gate


class Step(CompressConfig):
    """One way to compress a model: as `CompressConfig`, and the text that its method is calibrated on.

    Attributes:
        calibration: text, for methods that need some.
    """

    calibration: CalibrationText | None = None

    @model_validator(mode="after")
    def _has_its_text(self) -> Self:
        needed = needs_text(self.config)
        if needed and self.calibration is None:
            raise ConfigError(f"The method {self.method!r} needs calibration text: calibration: {{source: …}}.")
        if self.calibration is not None and not needed:
            raise ConfigError(f"Calibration text has no effect on the method {self.method!r}. Leave it out.")
        return self

    @property
    def config(self) -> CompressConfig:
        """What the compression is asked to do."""
        return CompressConfig.model_construct(**{name: getattr(self, name) for name in CompressConfig.model_fields})


def worth_foretelling(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps that a forecast may pass over: neither text nor training decides what they keep.

    The last is none of them: where all before it are passed over, it is what is left to measure.
    """
    return tuple(step for step in steps[:-1] if not needs_text(step.config))


class ZooRecipe(Frozen):
    """How models are compressed.

    Attributes:
        steps: what is tried, one after the other, until the gate is passed: the smallest result first.
        gate: what the result has to keep.
        foretold_at_least: the share of the gap in answer loss that a step must be foretold to keep to be worth trying:
            one that falls short of it by more than twice the forecast's mean error is passed over, unless it is the
            last. What is promoted is measured all the same. None: nothing is foretold.

    A lossless step is the last: nothing is lost by it, so that none after it would be tried.
    """

    steps: tuple[Step, ...] = Field(min_length=1)
    gate: Gate = Gate()
    foretold_at_least: float | None = Field(default=None, gt=0, le=1, exclude_if=lambda share: share is None)

    @field_validator("steps")
    @classmethod
    def _ends_without_loss(cls, value: tuple[Step, ...]) -> tuple[Step, ...]:
        if any(step.is_lossless for step in value[:-1]):
            raise ConfigError("A step follows one that is lossless, and would never be tried. Make lossless the last.")
        return value

    @model_validator(mode="after")
    def _can_be_foretold(self) -> Self:
        if self.foretold_at_least is not None and not worth_foretelling(self.steps):
            raise ConfigError(
                "foretold_at_least has no effect: the last step is always tried, and what calibration text decides "
                "cannot be foretold. Leave it out, or begin with a step that takes no text, such as {method: ecsq, "
                "cr: 128}."
            )
        return self

    def require_measured(self, tasks: Mapping[str, str | None]) -> None:
        """Check that a model with tasks of its own, or none, is measured where steps are passed over.

        Raises:
            ConfigError: it has no gate, so that a forecast alone would decide.
        """
        if self.foretold_at_least is not None and not self.gate.with_tasks(tasks).tasks:
            raise ConfigError(
                "foretold_at_least only says which steps are worth measuring, and without tasks nothing is measured. "
                "Give the gate tasks, or leave foretold_at_least out."
            )
