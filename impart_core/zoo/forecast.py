"""What a step of a recipe is foretold to keep, kept with the run so that it is foretold once."""

from collections.abc import Iterable

from impart_core.base.canonical import digest_of
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.delta.quality import RULE, Quality


class Forecast(Frozen):
    """What a step is foretold to keep of a model.

    Attributes:
        step: what it is called.
        kept: the share of the gap in answer loss between base and fine-tuned.
        error: the mean absolute error of that.
        at_least: the share that the recipe asks for.
        passed_over: whether the step was not tried, since it falls clearly short of that.
        key: a digest of all that decides on the share; None: it cannot be told whether it still holds.
    """

    step: str
    kept: float
    error: float
    at_least: float
    passed_over: bool
    key: str | None = None

    @classmethod
    def of(cls, step: str, quality: Quality, at_least: float, key: str | None) -> "Forecast":
        """Return the forecast of a step, held against the share that a recipe asks for."""
        short = quality.falls_short_of(at_least)
        return cls(step=step, **quality.model_dump(), at_least=at_least, passed_over=short, key=key)

    def held_against(self, at_least: float) -> "Forecast":
        """Return the same forecast, held against another share."""
        return Forecast.of(self.step, Quality(kept=self.kept, error=self.error), at_least, self.key)


def key_of(sides: str | None, config: CompressConfig) -> str | None:
    """Return a digest of all that decides on a forecast.

    Args:
        sides: a digest of the files of base and fine-tune; None: they cannot be told from others.
        config: the request.
    """
    if sides is None:
        return None
    asked = {"settings": config.model_dump(mode="json"), "version": config.method_version}
    return digest_of({"sides": sides, "rule": RULE._asdict(), **asked})


def told(forecasts: Iterable[Forecast]) -> str:
    """Return in one sentence which steps were passed over, and why; nothing where none was."""
    over = [one for one in forecasts if one.passed_over]
    if not over:
        return ""
    steps = ", ".join(f"{one.step} ({one.kept:.2f} ± {one.error:.2f})" for one in over)
    return f"Not tried, foretold to keep clearly less than {over[0].at_least:g} of the gap in answer loss: {steps}."
