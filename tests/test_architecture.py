"""The floors: flows → tasks → impart_core. Imports go down only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABOVE = {"impart_core": {"tasks", "flows", "prefect", "typer"}, "tasks": {"flows", "typer"}, "flows": set()}


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("floor", sorted(ABOVE))
def test_imports_go_down_only(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    offenders = {str(path.relative_to(ROOT)): bad for path in files if (bad := imported_packages(path) & ABOVE[floor])}
    assert offenders == {}


def test_flows_hold_no_tensors() -> None:
    offenders = [str(path) for path in (ROOT / "flows").rglob("*.py") if "torch" in imported_packages(path)]
    assert offenders == []


def test_the_library_needs_no_prefect_to_be_imported() -> None:
    import subprocess
    import sys

    code = "import impart_core.apply.dense, impart_core.artifacts.delta, sys; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
