"""Models that are opened for evaluation by several threads of a process."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from impart_core import tinyzoo
from impart_core.evaluation.language_model import open_model
from impart_core.evaluation.options import MeasureOptions


def test_two_at_the_same_moment_are_both_opened() -> None:
    """Accelerate keeps one state for the process, which is made with its first model: two made halves of it."""
    from accelerate.state import AcceleratorState, PartialState

    together = Barrier(2)

    def opened(task: str) -> Any:
        together.wait()
        return open_model(tinyzoo.path(task), "cpu", MeasureOptions())

    for _ in range(4):
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        with ThreadPoolExecutor(2) as pool:
            models = list(pool.map(opened, ("math", "code")))
        assert not any(parameter.is_meta for model in models for parameter in model.model.parameters())
