"""What no sentence was written for: still a sentence and exit code 2, and the traceback in a file that it names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from impart_flows.cli.output import progress
from tests.e2e.here import impart
from tests.support import Environment, run_impart

pytestmark = pytest.mark.e2e


class Panic(BaseException):
    """As extensions in Rust raise it."""


FAILURES = [ValueError("odd\n  value"), Panic("called `Option::unwrap()`"), SystemExit(1), MemoryError(), KeyError("k")]


@pytest.fixture(autouse=True)
def _logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `impart ls` meet an error of a library in the midst of its work."""

    def list_entries(_store: object) -> None:
        with progress(quiet=True) as reporter:
            reporter("list", 3, 7, "deltas")
            raise error

    monkeypatch.setattr("impart_flows.cli.stored.list_entries", list_entries)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_an_error_of_a_library_is_a_sentence_that_names_its_traceback(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(error, monkeypatch)
    code, out, err = impart("ls", "--json")
    assert code == 2
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert err.startswith("error: `impart ls` failed")
    assert type(error).__name__ in err
    assert json.loads(out)["error"]["type"] == type(error).__name__
    (kept,) = re.findall(r"traceback is in (\S+\.log)\.", err)
    assert "Traceback (most recent call last)" in Path(kept).read_text()
    assert Path(kept).stat().st_mode & 0o077 == 0
    if isinstance(error, Exception):
        assert "last step: list, 3 of 7 done deltas" in err


def test_the_traceback_goes_elsewhere_where_the_home_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(ValueError("odd"), monkeypatch)
    assert str(tmp_path / "impart-") in impart("ls")[2]


def test_a_reader_that_has_gone_is_no_failure_to_tell_of(tmp_path: Path) -> None:
    command = f"{sys.executable} -m impart_flows.cli ls --store {tmp_path}/none; echo code $? >&2"
    done = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"code [02]\n", done.stderr), done.stderr


_WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""


def run_without(absent: set[str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = f"{_WITHOUT.format(absent=absent)}\nfrom impart_flows.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ("typer", ["--help"], "flows"),
        ("rich", ["ls"], "flows"),
        ("prefect", ["compress", "a", "b", "--cr", "4"], "flows"),
        ("matplotlib", ["demo", "--out", "/nowhere"], "flows"),
    ],
)
def test_a_missing_extra_is_named(absent: str, arguments: list[str], extra: str) -> None:
    done = run_without({absent}, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"needs the package '{absent}', which is not installed" in done.stderr
    assert f"pip install 'impart-zoo[{extra}]'" in done.stderr


def test_verbs_that_run_no_flow_need_no_prefect(pair: tuple[Path, Path], environment: Environment) -> None:
    base, finetuned = map(str, pair)
    assert (
        run_impart("compress", base, finetuned, "--cr", "4", "--name", "pair", environment=environment).returncode == 0
    )
    out = str(pair[0].parent / "rebuilt-without-prefect")
    typed = [
        f"reconstruct pair --base {base} --out {out}",
        f"plan {base} {finetuned} --cr 4",
        *("ls", "verify --all", "verify pair", "inspect pair", "lineage pair", "why pair", "diff pair pair"),
        *("tag pair pair@prod", "history pair@prod", "gc", f"export pair --to {out}-store", "methods", "tinyzoo path"),
    ]
    program = f"""{_WITHOUT.format(absent={"prefect"})}
from impart_flows.cli.app import run
print([typed for typed in {typed} if run(typed.split()) != 0])"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, ["socks", "ALL_PROXY"]),
        ({"SSL_CERT_FILE": "/nowhere/certificates.pem"}, ["SSL_CERT_FILE"]),
        ({"PREFECT_HOME": "/dev/null/prefect"}, ["PREFECT_HOME", "/dev/null/prefect"]),
    ],
    ids=lambda value: next(iter(value)),
)
def test_surroundings_without_a_server_are_named(
    variables: dict[str, str], said: list[str], pair: tuple[Path, Path]
) -> None:
    done = run_impart("compress", *map(str, pair), "--cr", "4", environment={"PREFECT_API_URL": None, **variables})
    assert done.returncode == 2
    assert all(word.lower() in done.stderr.lower() for word in said), done.stderr
    assert "no advice" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_proxy_does_not_come_between_a_command_and_its_own_server(pair: tuple[Path, Path], tmp_path: Path) -> None:
    dead = dict.fromkeys(["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"], "http://127.0.0.1:9")
    alone = {"PREFECT_API_URL": None, "HOME": "/dev/null", "PREFECT_HOME": None, "NO_PROXY": None, "no_proxy": None}
    here = {**dead, **alone, "TMPDIR": str(tmp_path)}
    done = run_impart("compress", *map(str, pair), "--cr", "4", environment=here)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("impart-prefect-*"))  # its temporary home is gone
