import json
import re
from html.parser import HTMLParser

import pytest

from impart_core.delta.quality import Quality
from impart_core.zoo.forecast import Forecast
from impart_core.zoo.gate import Comparison
from impart_core.zoo.record import Attempt, Counts, Outcome, ZooRun
from impart_core.zoo.report import headline, html_report, markdown_report, saved

HOSTILE = "a | b <script>alert(1)</script>\n# `x`"


@pytest.fixture
def run() -> ZooRun:
    """A run with a promoted model, a refused one and one that failed in a hostile way."""
    passed = Comparison(
        task="math", metric="acc", before=(0.5, 0.01), after=(0.49, 0.01), lost=0.01, allowed=0.02, passed=True
    )
    made = {"step": "impart at CR 64", "artifact": "0" * 64, "bytes": 100, "cr_model": 30.0, "cached": False}
    attempt = Attempt(**made, gate=(passed,), passed=True)
    kept = {"kind": "model", "bytes_before": 3000, "bytes_after": 100, "attempts": (attempt,), "seconds": 2.0}
    short, enough = (
        Forecast.of(f"ecsq | CR {cr}", Quality(kept=kept, error=0.07), 0.9, None) for cr, kept in ((512, 0.4), (64, 1))
    )
    outcomes = (
        Outcome(name="math", status="promoted", ref="math@prod", artifact="0" * 64, forecasts=(short, enough), **kept),
        Outcome(name="code", status="refused", ref="code@prod", why="It loses too much.", **{**kept, "bytes_after": 0}),
        Outcome(name="bad", kind="model", status="failed", ref="bad@prod", why=HOSTILE, owner=HOSTILE),
    )
    return ZooRun(
        zoo="team",
        run="r",
        started="2026-01-01T00:00:00+00:00",
        seconds=3,
        store="s3://b",
        outcomes=outcomes,
        trouble=(HOSTILE,),
    )


def test_a_run_in_a_sentence(run: ZooRun) -> None:
    assert headline(run) == "team: 1 failed, 1 promoted, 1 refused, in 3.0 s."
    assert saved(run) == "3.0 kB of fine-tuned models are kept in 100 B (30.0 times smaller)."
    assert Counts.of(run).entries == {"failed": 1, "promoted": 1, "refused": 1}


def test_markdown_has_a_row_for_each_entry_whatever_stands_in_it(run: ZooRun) -> None:
    text = markdown_report(run)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(run.outcomes)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}
    assert "math 0.5 → 0.49 (may lose 0.02)" in text
    assert "<script>" not in text
    assert "It loses too much." in text
    assert "**math** promoted: Not tried, foretold to keep clearly less than 0.9" in text
    assert "in answer loss: ecsq \\| CR 512 (0.40 ± 0.07).\n" in text


def test_a_record_of_json_is_the_same_run_and_says_nothing_of_forecasts_where_there_are_none(run: ZooRun) -> None:
    assert ZooRun.model_validate(json.loads(run.model_dump_json())) == run
    assert [("forecasts" in one) for one in run.model_dump()["outcomes"]] == [True, False, False]


def test_html_has_the_same_and_runs_nothing(run: ZooRun) -> None:
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    Reader().feed(html_report(run))
    assert tags.count("tr") == 1 + len(run.outcomes)
    assert "in answer loss: ecsq | CR 512 (0.40 ± 0.07).</p>" in html_report(run)
    assert "script" not in tags
