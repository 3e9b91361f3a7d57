"""What is printed: whatever a store or a checkpoint holds, it cannot steer the terminal."""

import json
import re
from pathlib import Path

import pytest

import impart_flows.cli
from impart_core.base.errors import MismatchError, StoreError
from impart_flows.cli.failure import report
from impart_flows.cli.output import Reporter, print_json, print_lines, print_table, say, warn_of_faults

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
