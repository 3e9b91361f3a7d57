"""Measures cells of the study by the pipeline's own engine; what the store holds already is not made again."""

import logging
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from impart_core.artifacts.delta import Delta, file_bytes, open_delta
from impart_core.artifacts.trial import read_scores
from impart_core.base.errors import InfeasibleBudgetError
from impart_core.blocks.coding import needs_text
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.engine.compress import compress
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.references import Run, TrialJob, TrialResult
from impart_core.engine.requests import CompressRequest
from impart_core.engine.trial import score_model
from impart_core.evaluation.result import Measure, Split
from impart_core.store.store import Store
from tests.bench.study.figures import Figures, Losses, figures_of
from tests.bench.study.grid import ROWS, ZOOS, Cell, Options


@dataclass(frozen=True)
class Asked:
    """How much is measured.

    Attributes:
        store: URL of the store that keeps all that is made.
        items: how many test items of a task.
        validation_items: how many items settings are chosen by.
        seeds: how many seeds of the masks.
        settings: how many settings of a row are tried; where none takes the ratio, more until one does.
        exact_match: whether answers are generated as well.
    """

    store: str
    items: int = 300
    validation_items: int = 100
    seeds: int = 3
    settings: int = 3
    exact_match: bool = False


def measure_cell(cell: Cell, asked: Asked) -> Figures | None:
    """Compress, rebuild and score a cell's models; None where the ratio is impossible.

    Everything is published in the store, and taken from there when it is asked for again.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with ThreadExecutor(1) as executor:
        return _Measuring(cell, asked, executor).figures()


class _Measuring:
    """One cell at work."""

    def __init__(self, cell: Cell, asked: Asked, executor: ThreadExecutor) -> None:
        self._cell, self._asked, self._executor = cell, asked, executor
        self._places = {side: str(ZOOS[cell.zoo].path(name)) for side, name in (("base", "base"), ("tuned", cell.task))}
        self._sides = {side: open_checkpoint(place) for side, place in self._places.items()}

    def figures(self) -> Figures | None:
        """Choose settings on the validation split, and measure these on the test split."""
        try:
            options = self._chosen()
            deltas = [self._compressed(options, seed) for seed in self._cell.seeds(self._asked.seeds)]
        except InfeasibleBudgetError:
            return None
        losses = np.array([self._losses("test", delta=delta) for delta in deltas])
        whole = {side: self._losses("test", model=self._sides[side]) for side in ("base", "tuned")}
        matches = [self._matches(delta) for delta in deltas] if self._asked.exact_match else None
        made = [self._bytes(delta) for delta in deltas]
        bytes_of = {name: round(float(np.mean([one[name] for one in made])), 3) for name in made[0]}
        return figures_of(Losses(losses, **whole), bytes_of, options, np.array(matches) if matches else None)

    def _chosen(self) -> Options:
        """Return the settings with the least loss on validation items; those that are impossible are left out."""
        possible: list[tuple[Options, Delta]] = []
        for number, options in enumerate(ROWS[self._cell.row].settings):
            if possible and number >= self._asked.settings:
                break
            with suppress(InfeasibleBudgetError):
                possible.append((options, self._compressed(options, 0)))
        if not possible:
            raise InfeasibleBudgetError("No setting takes this ratio.")
        if len(possible) == 1:
            return possible[0][0]
        return min(possible, key=lambda one: float(np.mean(self._losses("validation", delta=one[1]))))[0]

    def _compressed(self, options: Options, seed: int) -> Delta:
        config = self._cell.config(options, seed)
        zoo, source = ZOOS[self._cell.zoo], f"tinyzoo:{self._cell.task}"
        text = CalibrationText(source=source, sequences=zoo.sequences, length=zoo.length)
        request = CompressRequest(
            base=self._places["base"],
            finetuned=self._places["tuned"],
            config=config,
            store=self._asked.store,
            device="cpu",
            workers=1,
            calibration=text if needs_text(config) else None,
        )
        made = compress(request, self._executor).report.artifact
        return open_delta(Store(self._asked.store), made)

    def _losses(self, split: Split, *, delta: Delta | None = None, model: Checkpoint | None = None) -> np.ndarray:
        """Return the answer loss of each item."""
        count = self._asked.items if split == "test" else self._asked.validation_items
        return self._scores(split, count, "answer_loss", delta, model)

    def _matches(self, delta: Delta) -> np.ndarray:
        return self._scores("test", self._asked.items, "metrics", delta, None)

    def _scores(
        self, split: Split, count: int, measure: Measure, delta: Delta | None, model: Checkpoint | None
    ) -> np.ndarray:
        job = TrialJob(
            run=Run(self._asked.store, "cpu"),
            label=self._cell.key,
            tasks=(f"tinyzoo_{self._cell.task}",),
            items=(0, count),
            checkpoint=model,
            delta=delta.id if delta else None,
            base=self._sides["base"] if delta else None,
            split=split,
            measure=measure,
        )
        result: TrialResult = self._executor.run(score_model, job)
        if result.failure is not None:
            raise SystemExit(f"{self._cell.key} cannot be measured: {result.failure}")
        found = read_scores(Store(self._asked.store), result.scores[0].trials)
        return np.array(found.scores["answer_loss" if measure == "answer_loss" else "exact_match"])

    @staticmethod
    def _bytes(delta: Delta) -> dict[str, float]:
        """Return what a delta takes: all on disk, manifests included; its files; and codes of its projections."""
        files, codes = file_bytes(delta.store, delta.id), delta.content.projection_bytes
        assert files is not None, "a delta that was just opened is in the store"
        return {
            "bytes": delta.bytes,
            "file_bytes": files,
            "projection_bytes": codes,
            "cr_projection": delta.content.projection_dense_bytes / codes,
            "cr_model": delta.cr_model,
        }
