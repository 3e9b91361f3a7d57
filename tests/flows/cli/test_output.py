"""What is printed: whatever a store or a checkpoint holds, it cannot steer the terminal."""

import json
import logging
import re
from pathlib import Path

import pytest

import impart_flows.cli
from impart_core.base.errors import MismatchError, StoreError
from impart_flows.cli.failure import report
from impart_flows.cli.output import (
    Reporter,
    print_json,
    print_lines,
    print_table,
    printed_warnings,
    say,
    warn_of_faults,
)

HOSTILE = "\x1b]0;owned\x07\x1b[2J\nerror: fake\r\u202eevil\x9b[/red]"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_hostile_text_is_seen_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    print_table([HOSTILE], [[HOSTILE]], title=HOSTILE)
    print_lines({HOSTILE: HOSTILE})
    warn_of_faults([HOSTILE], [HOSTILE])
    report(StoreError(HOSTILE), [])
    for bars in (False, True):
        reporter = Reporter(bars=bars, quiet=False)
        with reporter.display:
            reporter("stage", 1, 1, HOSTILE)
    printed = "".join(capsys.readouterr())
    assert not CONTROLS.search(printed), printed
    assert not re.search("^error: fake", printed, re.MULTILINE)
    assert r"\x1b[2J\nerror: fake\r\u202eevil\x9b[/red]" in printed


@pytest.mark.parametrize("columns", ["40", "300"])
def test_a_table_cuts_no_text_short(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    row = [character * 70 for character in "abcd"]
    print_table(["first", "second", "third", "fourth"], [row], title="title")
    title, head, line = capsys.readouterr().out.splitlines()
    assert (title.split(), head.split(), line.split()) == (["title"], ["first", "second", "third", "fourth"], row)


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": HOSTILE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": HOSTILE}
    assert not CONTROLS.search(printed)


def test_errors_keep_our_lines_and_tell_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    report(MismatchError("one:\n  - two\nthree"), [])
    report(StoreError("ftp://me:hunter2@host/a is gone"), [])
    assert capsys.readouterr().err == "error: one:\n  - two\nthree\nerror: ftp://host/a is gone\n"


def test_all_verbs_print_through_one_boundary() -> None:
    folder = Path(impart_flows.cli.__file__).parent
    printing = re.compile(r"(?<!errors\.)\b(typer\.(echo|secho)|click\.echo|print|sys\.std(out|err)\.write)\(")
    own = {"output.py", "failure.py", "app.py"}  # the boundary, how a command fails, and the version's own line
    found = {path.name for path in folder.glob("*.py") if printing.search(path.read_text())}
    assert found <= own


def test_warnings_of_the_library_are_printed_the_first_few_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("impart_core.somewhere")
    with printed_warnings("impart_core"):
        for number in range(5):
            logger.warning("layer %d is odd", number)
            logger.warning("%s", f"sentence {number}.")
        logger.info("nothing to see")
    logger.warning("too late")
    told = [f"layer {number} is odd" for number in range(3)] + [f"sentence {number}." for number in range(5)]
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines[:-1]) == sorted(f"warning: {line}" for line in told)
    assert lines[-1] == "warning: 2 more like these; the log of the run has all."
