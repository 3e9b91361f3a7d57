"""The child process that executes answers cannot be made to hang, to grow, or to reach outside."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from impart_core.tinyzoo.sandbox import Sandbox, evaluate_expression

# What a hostile answer would do to get at the os module without any built-in.
_OS = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='_wrap_close'][0].__init__.__globals__"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seconds=0.5) as running:
        yield running


def test_an_expression_is_evaluated_on_each_input(sandbox: Sandbox) -> None:
    assert sandbox.run("(x+3)*2", [1, 2, -3]) == {"values": [8, 10, 0]}
    assert sandbox.run("sorted(x)[-2:]", [[3, 1, 2]]) == {"values": [[2, 3]]}


def test_requests_do_not_see_each_other(sandbox: Sandbox) -> None:
    sandbox.run("[y := 5, x]", [1])
    assert "values" not in sandbox.run("y", [1])


@pytest.mark.parametrize("source", ["sum(range(10**12))", "10**10**10", "[0 for i in iter(int,1)]"])
def test_what_does_not_end_is_killed(sandbox: Sandbox, source: str) -> None:
    assert "error" in sandbox.run(source, [1])
    assert sandbox.run("x", [1]) == {"values": [1]}


@pytest.mark.parametrize("source", ["'a'*10**10", "[0]*10**9", "list(range(10**9))"])
def test_memory_is_limited(sandbox: Sandbox, source: str) -> None:
    assert "error" in sandbox.run(source, [1])


@pytest.mark.parametrize("source", ["open('/etc/hostname')", "__import__('os')", "eval('1')", "exec('1')", "input()"])
def test_builtins_that_reach_outside_do_not_exist(sandbox: Sandbox, source: str) -> None:
    assert sandbox.run(source, [1]) == {"error": "NameError"}


@pytest.mark.parametrize(
    "call",
    [
        "['open']('/etc/hostname',0)",
        "['__builtins__']['open']('/etc/hostname')",
        "['__builtins__']['__import__']('socket')",
        "['__builtins__']['__import__']('subprocess')",
        "['fork']()",
        "['system']('true')",
        "['posix_spawn']('/bin/true',['true'],{})",
        "['listdir']('/')",
        "['kill'](1,0)",
        "['mkdir']('made')",
    ],
)
def test_the_operating_system_is_out_of_reach(sandbox: Sandbox, call: str) -> None:
    """These get past the missing built-ins; the audit hook and the limits must stop them."""
    assert "error" in sandbox.run(_OS + call, [1])


def test_the_environment_is_empty(sandbox: Sandbox) -> None:
    os.environ["IMPART_TEST_SECRET"] = "1"
    try:
        with Sandbox() as fresh:
            inside = fresh.run(f"sorted(str(k) for k in {_OS}['environ'])", [1])["values"][0]
    finally:
        del os.environ["IMPART_TEST_SECRET"]
    assert [name for name in inside if "LC_CTYPE" not in name] == []


def test_a_flood_of_output_is_an_error(sandbox: Sandbox) -> None:
    assert "error" in sandbox.run("'a'*10**6", [1])


def test_a_dead_child_is_replaced() -> None:
    with Sandbox() as sandbox:
        assert sandbox.run("x", [1]) == {"values": [1]}
        process = sandbox._process
        assert process is not None
        process.kill()
        process.wait()
        assert sandbox.run("x", [2]) == {"values": [2]}


def test_closing_leaves_no_process_and_no_folder() -> None:
    sandbox = Sandbox()
    sandbox.run("x", [1])
    assert sandbox._process is not None
    assert sandbox._folder is not None
    pid, folder = sandbox._process.pid, Path(sandbox._folder.name)
    sandbox.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_unacceptable_answer_gives_no_values() -> None:
    assert evaluate_expression("x+1", [1]) == [2]
    assert evaluate_expression("x+", [1]) is None
    assert evaluate_expression("().__class__", [1]) is None
    assert evaluate_expression("1/0", [1]) is None
