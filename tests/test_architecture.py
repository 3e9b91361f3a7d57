"""The house: floors (flows → tasks → impart_core), rooms with one direction, no circles, nothing loose."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"impart_core": "impart_core", "impart_tasks": "tasks", "impart_flows": "flows"}  # package → folder, upwards
# Rooms from the ground up: each may use those before it.
ROOMS = (
    "base",
    "storage",
    "checkpoint",
    "delta",
    "codec",
    "quantization",
    "methods",
    "tinyzoo",
    "calibrate",
    "blocks",
    "evaluation",
    "searching",
    "store",
    "zoo",
    "artifacts",
    "lineage",
    "share",
    "apply",
    "merging",
    "engine",
    "selftest",
)
# Imports inside of functions that may go up: the recipe that trained the zoo measures what it trained.
ALLOWED = {("tinyzoo", "evaluation")}
Sources = Mapping[str, str]  # module → its text


def module_of(path: Path, package: str, folder: Path) -> str:
    """Return the name that a file is imported by."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


def read_sources() -> dict[str, str]:
    """Return the text of every module of the three floors."""
    return {
        module_of(path, package, ROOT / folder): path.read_text()
        for package, folder in FLOORS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def imports_of(module: str, sources: Sources) -> set[str]:
    """Return the modules of the floors that a module imports, anywhere in it."""
    found: set[str] = set()
    tree = ast.parse(sources[module])
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(sources)) or {node.module}
    return {name for name in found if name in sources and name != module}


def floor_of(module: str) -> int:
    """Return how high a module's floor is."""
    return list(FLOORS).index(module.partition(".")[0])


def room_of(module: str) -> str | None:
    """Return the room of the library that a module is in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "impart_core" and len(parts) > 1 else None


def room_goes_up(room: str | None, other: str | None) -> bool:
    """Return whether a room may not use another one."""
    if room not in ROOMS or other not in ROOMS or (room, other) in ALLOWED:
        return False
    return ROOMS.index(other) > ROOMS.index(room)


def violations(sources: Sources) -> Iterator[str]:
    """Say what is wrong with the house: imports that go up, circles, and modules in no room."""
    graph = {module: imports_of(module, sources) for module in sources}
    for module, imported in graph.items():
        room = room_of(module)
        if room is not None and (room not in ROOMS or f"impart_core.{room}" not in sources):
            yield f"{module} is in no room"
        for other in sorted(imported):
            theirs = room_of(other)
            if floor_of(other) > floor_of(module):
                yield f"{module} imports {other}, a floor up"
            elif room_goes_up(room, theirs):
                yield f"{module} imports {other}, a room up"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle: {' → '.join(reversed(error.args[1]))}"


def external_imports(text: str) -> set[str]:
    """Return the top-level packages that a source imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_house_stands() -> None:
    assert list(violations(read_sources())) == []


@pytest.mark.parametrize(
    ("module", "text", "what"),
    [
        ("impart_core.loose", "", "impart_core.loose is in no room"),
        ("impart_core.attic.box", "", "impart_core.attic.box is in no room"),
        ("impart_core.store.up", "import impart_core.engine.jobs", "impart_core.engine.jobs, a room up"),
        ("impart_core.base.up", "def f():\n    from impart_flows import demo", "impart_flows.demo, a floor up"),
        ("impart_tasks.up", "from impart_flows.demo import flow_of", "impart_flows.demo, a floor up"),
    ],
)
def test_what_breaks_the_house_is_seen(module: str, text: str, what: str) -> None:
    assert any(what in found for found in violations({**read_sources(), module: text}))


def test_a_circle_is_seen() -> None:
    sources = {
        **read_sources(),
        "impart_core.base.one": "from impart_core.base import two",
        "impart_core.base.two": "from impart_core.base.one import x",
    }
    assert any(found.startswith("a circle: ") and "base.one" in found for found in violations(sources))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("impart_core", {"prefect", "typer", "rich", "flows", "tasks"}),
        ("impart_tasks", {"typer", "rich", "torch", "flows", "tasks"}),
        ("impart_flows", {"torch", "flows", "tasks"}),
    ],
)
def test_a_floor_needs_no_library_of_another(package: str, forbidden: set[str]) -> None:
    found = {
        module: wrong
        for module, text in read_sources().items()
        if module.partition(".")[0] == package and (wrong := external_imports(text) & forbidden)
    }
    assert found == {}


def test_the_store_knows_no_delta() -> None:
    """Nor methods, codecs or checkpoints: what it needs to know of a kind, the kind says."""
    sources = read_sources()
    used = {room_of(other) for module in sources if room_of(module) == "store" for other in imports_of(module, sources)}
    assert used <= {"base", "storage", "store", None}


def test_a_stage_of_tasks_is_a_short_file() -> None:
    machinery = {"receiver", "openlineage_client", "stage", "executor", "cluster", "remote"}
    long = {path.name for path in (ROOT / "tasks").glob("*.py") if path.read_text().count("\n") > 40}
    assert {name.removesuffix(".py") for name in long} <= machinery


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import impart_core", ["torch", "pydantic", "prefect"]),
        ("import impart_core.engine.library", ["prefect", "transformers", "lm_eval"]),
        ("import impart_flows.cli.app", ["torch", "prefect", "transformers"]),
        ("import impart_flows.cli.names, impart_flows.cli.stored, impart_flows.cli.upkeep", ["torch", "prefect"]),
    ],
)
def test_what_is_not_needed_is_not_imported(code: str, absent: list[str]) -> None:
    program = f"import sys\n{code}\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
