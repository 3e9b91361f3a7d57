"""What docs/results.md shows of the study is what its figures give."""

import json
from pathlib import Path

from tests.bench.study.report import FIGURES, with_tables

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tables_of_the_study_are_those_of_its_figures() -> None:
    page = (DOCS / "results.md").read_text()
    assert with_tables(page, json.loads((DOCS / FIGURES).read_text())) == page
