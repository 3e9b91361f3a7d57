"""`--help` of every verb: it exits with 0 and names what the verb takes."""

import pytest

from tests.support import run_impart

pytestmark = pytest.mark.e2e

VERBS = {
    "": [
        *["compress", "reconstruct", "evaluate", "inspect", "verify", "ls", "plan", "tinyzoo", "demo"],
        *["lineage", "why", "diff", "tag", "history", "rollback", "gc", "export", "import", "push-hub"],
    ],
    "compress": [
        *["--cr", "--method", "--beta", "--c ", "--seed", "--accounting", "--store", "--name", "--workers"],
        *["--embeddings", "--embeddings-cr", "--factors-for", "--no-keep-factors"],
        *["--calibration", "--calibration-sequences", "--calibration-length", "hub:org/name"],
        *["impart:", "dare:", "lowrank:", "magnitude:", "--option", "KEY=VALUE", "impart rescale=true"],
    ],
    "quantize": [
        *["--cr", "--method", "--option", "--seed", "--calibration", "--calibration-sequences", "--calibration-length"],
        *["--base", "--finetuned", "moved", "impart-qt:", "delta-come:", "dare-qt:", "tinyzoo:math", "reused"],
    ],
    "reconstruct": ["--base", "--out", "--overwrite", "--store"],
    "evaluate": ["--tasks", "--base", "--split", "--limit", "--refresh", "--store"],
    "inspect": ["--store"],
    "verify": ["--store", "--all", "Exit code 1"],
    "export": ["--to", "--factors", "--no-evaluations", "--move-names", "--verify-cache", "--store"],
    "import": ["--from", "--factors", "--no-evaluations", "--move-names", "--verify-cache", "--store"],
    "push-hub": ["--repo", "--out", "--upload", "--private", "--store", "HF_TOKEN"],
    "ls": ["--store"],
    "gc": ["--grace", "--history", "--delete", "running flow", "--store"],
    "lineage": ["--blocks", "--format", "mermaid", "svg", "--out", "--store"],
    "why": ["seeds", "--store"],
    "diff": ["equal", "--store"],
    "tag": ["math@prod", "history", "--store"],
    "history": ["by whom", "--store"],
    "rollback": ["--to", "undoes", "--store"],
    "plan": ["--cr", "--workers", "--embeddings", "--factors-for", "magnitude:", "impart beta=0.6"],
    "demo": ["--out", "--limit"],
    "tinyzoo": ["build", "path"],
    "tinyzoo build": ["--out", "--train"],
    "tinyzoo path": ["base, math, code or chat"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str) -> None:
    done = run_impart(*verb.split(), "--help", environment={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    is_group = verb in ("", "tinyzoo")
    for word in [*VERBS[verb], *([] if is_group else ["--json"])]:
        assert word in done.stdout


def test_help_of_quantize_leaves_out_what_it_refuses() -> None:
    shown = run_impart("quantize", "--help", environment={"COLUMNS": "200"}).stdout
    assert "dare-qt bits=" in shown
    assert not [method for method in ("bitdelta", "impart:", "lowrank:") if method in shown]
