"""What the study measures: rows (a method with its settings) × ratios × tasks of the zoos, and over which seeds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from impart_core import tinyzoo
from impart_core.blocks.request import CompressConfig

Options = dict[str, Any]
RATIOS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


@dataclass(frozen=True)
class Zoo:
    """A zoo of the study.

    Attributes:
        fine_tunes: names of its fine-tunes, each also that of its task (`tinyzoo_NAME`) and of its calibration text.
        path: gives the folder of a model by name; the base is called "base".
        sequences: how many sequences of calibration text the methods that need some get.
        length: tokens of each; None: as many as is usual.
    """

    fine_tunes: tuple[str, ...]
    path: Callable[[str], Path]
    sequences: int = 128
    length: int | None = None


GEMMA, MOVED = Path("gemma-zoo"), Path("gemma-moved-zoo")  # where the commands of that name put them
SHIPPED = {name: Zoo(tinyzoo.fine_tunes(name), partial(tinyzoo.path, zoo=name)) for name in tinyzoo.ZOOS}
_FEW = {"sequences": 32, "length": 512}  # of a large model: its layers are run on all of it
ZOOS = SHIPPED | {
    "gemma": Zoo(tinyzoo.FINE_TUNES, GEMMA.joinpath, **_FEW),
    "gemma-moved": Zoo(("math",), MOVED.joinpath, **_FEW),
}


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
        method: the method's name.
        settings: options; where there are several, those with the least answer loss on the validation split are taken
            for each task and ratio.
        embeddings: how embeddings and head are coded.
        masked: whether seeds change its result.
        ablation: whether it stands for a setting that the default was chosen over, and is left out of pictures.
    """

    method: str
    settings: tuple[Options, ...] = ({},)
    embeddings: str = "keep"
    masked: bool = False
    ablation: bool = False


def _each(**values: Sequence[Any]) -> tuple[Options, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


_LADDERS = ("2", "3x8,2", "8x2,3x32,2")
ROWS = {
    "ecsq": Row("ecsq"),
    "ecsq, all coded": Row("ecsq", embeddings="auto"),
    "impart": Row("impart", masked=True),
    "dare": Row("dare", masked=True),
    "lowrank": Row("lowrank"),
    "magnitude": Row("magnitude"),
    "impart-qt": Row("impart-qt", _each(ladder=_LADDERS, c=(0.25,), group_size=(512,)), masked=True),
    "delta-come": Row("delta-come", _each(ladder=_LADDERS, group_size=(512,))),
    "bitdelta": Row("bitdelta", masked=True),
    "bitdelta, distilled": Row("bitdelta", _each(distil=(True,)), masked=True),
    "dare-qt": Row("dare-qt", _each(bits=(2, 4), group_size=(512,)), masked=True),
    "ecsq, p 1": Row("ecsq", ({"p": 1.0},), ablation=True),
    "ecsq, p 2": Row("ecsq", ({"p": 2.0},), ablation=True),
    "ecsq, gain ½": Row("ecsq", ({"gain": 0.5},), ablation=True),
    "ecsq, gain 0": Row("ecsq", ({"gain": 0.0},), ablation=True),
    "ecsq, by entries": Row("ecsq", ({"share_by": "entries"},), ablation=True),
    "ecsq, factors": Row("ecsq", ({"domain": "factors"},), ablation=True),
}
REFERENCES = ("impart-qt", "delta-come", "bitdelta")  # what BD-rates are against


@dataclass(frozen=True)
class Cell:
    """One cell of the tables: a row at a ratio on a task."""

    zoo: str
    task: str
    row: str
    cr: float

    @property
    def key(self) -> str:
        """What the cell is called in the file of figures."""
        return f"{self.zoo}/{self.task}/{self.row}/{self.cr:g}"

    def config(self, options: Options, seed: int) -> CompressConfig:
        """Return the settings of a compression."""
        row = ROWS[self.row]
        return CompressConfig(cr=self.cr, method=row.method, seed=seed, options=options, embeddings=row.embeddings)

    def seeds(self, count: int) -> range:
        """Return the seeds of its masks; one of a row without masks."""
        return range(count if ROWS[self.row].masked else 1)


def cells(rows: Iterable[str], ratios: Iterable[float], zoos: Iterable[str]) -> Iterator[Cell]:
    """Yield cells, all tasks of one row and ratio after each other, so that what is finished early can be compared."""
    tasks = [(name, task) for name in zoos for task in ZOOS[name].fine_tunes]
    for row, cr, (name, task) in product(rows, ratios, tasks):
        yield Cell(name, task, row, cr)


def rows_of(names: Sequence[str]) -> list[str]:
    """Return the rows that are named, in the order of the tables."""
    return [name for name in ROWS if name in names]
