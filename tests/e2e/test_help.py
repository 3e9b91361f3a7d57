"""Help teaches each verb in one screen, and what only lists verbs imports none of them."""

import json
import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest

from impart_core.blocks.request import LOSSLESS, LOSSLESS_SUMMARY
from impart_core.methods import METHODS, QUANTIZING
from impart_flows import cli
from impart_flows.cli.verbs import VERBS, load
from tests.e2e.here import impart, printed, told

pytestmark = pytest.mark.e2e

# What each verb's help has to name.
NAMES: dict[tuple[str, str], list[str]] = {
    ("impart", "compress"): [
        *["--cr", "--method", "--seed", "--accounting", "--store", "--name", "--workers", "--option", "KEY=VALUE"],
        *[
            "--over",
            "--embeddings",
            "--embeddings-cr",
            "--factors-for",
            "--no-keep-factors",
            "--verify-cache",
            "--trust-imported",
            "--refresh-from",
        ],
        *["--calibration", "--calibration-sequences", "--calibration-length", "hub:org/name", "impart methods"],
    ],
    ("impart", "quantize"): [
        *["--cr", "--method", "--option", "--seed", "--calibration", "--calibration-sequences", "--calibration-length"],
        *["--base", "--finetuned", "moved", "impart methods", "tinyzoo:math", "reused"],
    ],
    ("impart", "reconstruct"): ["--base", "--out", "--overwrite", "--max-shard-bytes", "--store"],
    ("impart", "evaluate"): [
        "--tasks",
        "--base",
        "--split",
        "--limit",
        "--verify-cache",
        "--trust-imported",
        "--refresh",
        "--store",
    ],
    ("impart", "inspect"): ["--store"],
    ("impart", "methods"): ["--option", "KEY=VALUE"],
    ("impart", "verify"): ["--store", "--all", "Exit code 1"],
    ("impart", "export"): ["--to", "--factors", "--no-evaluations", "--move-names", "--verify-cache", "--store"],
    ("impart", "import"): ["--from", "--factors", "--no-evaluations", "--move-names", "--verify-cache", "--store"],
    ("impart", "push-hub"): ["--repo", "--out", "--upload", "--private", "--store", "HF_TOKEN"],
    ("impart", "ls"): ["--store"],
    ("impart", "gc"): [
        "--grace",
        "--history",
        "--history-age",
        "--keep",
        "--zoo",
        "--delete",
        "running flow",
        "--store",
    ],
    ("impart", "du"): ["--by", "owner", "--store"],
    ("impart", "lineage"): ["--blocks", "--format", "mermaid", "svg", "--out", "--store"],
    ("impart", "why"): ["seeds", "--store"],
    ("impart", "diff"): ["equal", "--store"],
    ("impart", "tag"): ["math@prod", "history", "--store"],
    ("impart", "history"): ["by whom", "--store"],
    ("impart", "rollback"): ["--to", "further back", "--store"],
    ("impart", "untag"): ["history", "gc", "--store"],
    ("impart", "plan"): [
        "--cr",
        "--workers",
        "--quality",
        "--over",
        "--store",
        "--embeddings",
        "--factors-for",
        "--option",
        "impart methods",
    ],
    ("impart", "demo"): ["--out", "--limit", "--device", "--store"],
    ("impart", "selftest"): ["--device", "--size", "--quick", "Exit code 1"],
    ("impart", "merge"): ["--out", "--dry-run", "--workers", "--overwrite", "--store"],
    ("search", "run"): ["--dry-run", "--store", "--workers", "--run-code", "--verify-cache", "winner"],
    ("search", "show"): ["--out", "Pareto", "--store"],
    ("zoo", "init"): ["--base", "--out", "hf://org"],
    ("zoo", "plan"): ["--only", "--again", "--store", "memory"],
    ("zoo", "run"): ["--only", "tag:WORD", "--again", "--store", "exit code 2"],
    ("zoo", "setup"): ["--gpus", "limit"],
    ("zoo", "deploy"): ["--pool", "--queue", "--store", "schedule"],
    ("zoo", "status"): ["--store", "last run"],
    ("zoo", "report"): ["--out", ".html", "--store"],
    ("zoo", "schema"): ["JSON schema"],
    ("mlflow", "push"): ["--experiment", "MLFLOW_TRACKING_URI", "--store"],
    ("tinyzoo", "build"): ["--out", "--train", "--seed", "--zoo"],
    ("tinyzoo", "path"): ["base, math, code or chat", "--zoo"],
}
LEAVES = [(group, name) for group, verbs in VERBS.items() for name in verbs if name not in VERBS]
MODULES = {f"impart_flows.cli.{VERBS[group][name].module}" for group, name in LEAVES}
PANELS = ["Make", "Look", "Names", "Share", "Keep tidy", "Try"]
LIGHT = {"impart_core", *(f"impart_core.base{module}" for module in ("", ".errors", ".text", ".units"))}

_PROGRAM = """
import sys
from impart_flows.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def typed(group: str, name: str) -> list[str]:
    return [name] if group == "impart" else [group, name]


@pytest.mark.parametrize(("group", "name"), LEAVES)
def test_help_teaches_a_verb_and_imports_no_other(group: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:  # with its package's attribute, so that both are as before afterwards
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.delattr(cli, module.rpartition(".")[2], raising=False)
    shown = printed(*typed(group, name), "--help")
    assert set(sys.modules) & MODULES == {f"impart_flows.cli.{VERBS[group][name].module}"}
    lines = shown.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100
    assert shown.count("Example: impart") == 1
    for word in [*NAMES[group, name], "--json"]:
        assert word in shown


@pytest.mark.parametrize(("group", "name"), LEAVES)
def test_the_example_can_be_typed(group: str, name: str) -> None:
    command = load(group, name)
    example = shlex.split(command.help.partition("Example: impart ")[2])
    words = typed(group, name)
    assert example[: len(words)] == words
    assert command.make_context(name, example[len(words) :]).params


def test_help_lists_every_verb_in_its_panel() -> None:
    shown = printed("--help")
    panels = [line.rstrip(":") for line in shown.splitlines() if line.endswith(":") and line != "Options:"]
    assert panels == PANELS
    for name, verb in VERBS["impart"].items():
        assert f"  {name} " in shown
        assert verb.help in shown
    inner = printed("tinyzoo", "--help")
    assert all(f"  {name} " in inner and verb.help in inner for name, verb in VERBS["tinyzoo"].items())


def test_the_version() -> None:
    assert printed("--version") == "impart 0.1.0\n"


def test_methods_are_listed_with_all_that_can_be_set() -> None:
    shown, listed = printed("methods"), told("methods")
    assert listed["methods"] == {name: METHODS.get(name).summary for name in METHODS} | {LOSSLESS: LOSSLESS_SUMMARY}
    assert listed["quantize"] == list(QUANTIZING)
    assert all(f"{name} " in shown and summary in shown for name, summary in listed["methods"].items())
    for name in METHODS:
        one, options = printed("methods", name), told("methods", name)["options"]
        assert options.keys() == METHODS.get(name).options_model.model_fields.keys()
        for key, option in options.items():
            assert f"{key}={json.dumps(option['default'])}" in one
            assert option["description"] in one
    assert "no options" in printed("methods", "lossless")
    code, _, err = impart("methods", "impat")
    assert code == 2
    assert "Did you mean 'impart'?" in err


def run(*arguments: str, **environment: str) -> Any:
    """Run the command line; its modules stand last on standard error."""
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def imported(done: Any) -> set[str]:
    """What a command imported of what only verbs need."""
    heavy = {"torch", "prefect", "transformers", "fsspec", "matplotlib"}
    ours = {name for name in done.stderr.splitlines()[-1].split() if name.startswith(("impart_core", "impart_tasks"))}
    return (ours - LIGHT) | (heavy & set(done.stderr.splitlines()[-1].split()))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, ["compress", "Keep tidy"]),
        ([], 2, ["compress"]),
        (["--version"], 0, ["impart 0.1.0"]),
        (["comprss"], 2, ["comprss", "compress"]),
        (["tinyzoo", "--help"], 0, ["build"]),
    ],
)
def test_what_runs_no_verb_imports_none(arguments: list[str], code: int, words: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert all(word in done.stdout + done.stderr for word in words)
    assert imported(done) == set()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("line", "verbs"),
    [("impart re", {"reconstruct"}), ("impart ", {*VERBS["impart"]}), ("impart tinyzoo ", {*VERBS["tinyzoo"]})],
)
def test_a_shell_completes_verbs_without_importing_any(shell: str, line: str, verbs: set[str]) -> None:
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_TYPER_COMPLETE_ARGS": line}
    done = run(**asked, _IMPART_COMPLETE=f"complete_{shell}")
    offered = done.stdout.split() if shell == "bash" else re.findall(r'"([\w-]+)":"', done.stdout)
    assert set(offered) == verbs
    assert imported(done) == set()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_shown_for_a_shell(shell: str) -> None:
    done = run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert f"_IMPART_COMPLETE=complete_{shell}" in done.stdout
    assert imported(done) == set()
