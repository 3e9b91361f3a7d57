"""Whatever a model writes: it is refused, or its work and its value are small, and it reaches nothing else."""

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impart_core.tinyzoo.interpreter import ExpressionError, evaluate_expression, interpret
from impart_core.tinyzoo.interpreter.bounds import MAX_BITS, MAX_SIZE, MAX_STEPS, size_of

FRAMES = [
    "[g.gi_frame.f_back.f_globals for g in [(g.gi_frame for g in x)]]",
    "[f for g in [(g.gi_frame.f_back.f_back for g in g)] for f in g]",
    "(i for i in x).gi_frame.f_globals",
    "(i for i in x).gi_code.co_consts",
    "(i for i in x).throw(1)",
    "(i for i in x).send(1)",
    "(i for i in x).close()",
    "map(abs,x).gi_frame",
    "enumerate(x).gi_yieldfrom",
    "x.f_back",
    "x.tb_frame",
    "x.cr_frame",
    "x.ag_frame",
]
CLASSES = [
    "().__class__.__base__.__subclasses__()",
    "''.__class__.__mro__[1]",
    "x.__class__",
    "x.mro()",
    "type(x)",
    "object",
    "str.mro()",
    "abs.__self__",
    "abs._body",
    "len.__globals__",
    "sorted.__wrapped__",
    "vars(x)",
    "dir(x)",
    "getattr(x,'real')",
    "super()",
    "[c for c in int.__subclasses__()]",
]
FORMATS = [
    "'{0.__class__}'.format(x)",
    "'{x.__class__}'.format_map(dict(x=x))",
    "f'{x.__class__}'",
    "f'{x:>999999999}'",
    "format(x,'999999999d')",
    "'%999999999d'%x",
    "'%s'%x",
    "'%*d'%(999999999,x)",
    "str.format('{0.real}',x)",
    "'a'.translate(x)",
    "'a'.encode()",
    "(1).to_bytes(9**9,'big')",
    "'\t'.expandtabs(10**9)",
]
SYNTAX = [
    "lambda: 0",
    "(lambda f=abs: f(x))()",
    "sorted([x],key=lambda v: v)",
    "(y := 1)",
    "[y := i for i in [x]]",
    "max(*[x])",
    "[*[x]]",
    "dict(**dict())",
    "abs(**dict(x=1))",
    "{x}",
    "{x: x}",
    "{i for i in [x]}",
    "{i: i for i in [x]}",
    "await x",
    "[i async for i in x]",
    "yield x",
    "x = 1",
    "del x",
    "import os",
    "@abs",
    "@abs\ndef f(): 0",
    "def f(): 0",
    "class A: 0",
    "x; x",
    "x\nx",
    "try: x",
    "raise x",
    "b'a'",
    "1j",
    "...",
    "[0 for x[0] in [[1]]]",
    "[0 for abs.a in [1]]",
    "[0 for *a, in [[1]]]",
    "x[1:2,3]",
    "x@x",
    "`x`",
    "x\x00",
    "'\ud800'",
    "_x",
    "_",
    "__builtins__",
    "[_ for _ in [x]]",
]
NAMES = [
    "open('/etc/hostname')",
    "__import__('os')",
    "eval('1')",
    "exec('1')",
    "compile('1','','eval')",
    "input()",
    "print(x)",
    "breakpoint()",
    "globals()",
    "locals()",
    "exit()",
    "quit()",
    "help()",
    "id(x)",
    "hash(x)",
    "iter(x)",
    "next(x)",
    "callable(x)",
    "memoryview(x)",
    "bytearray(9)",
    "bytes(9)",
    "setattr(x,'a',1)",
    "ExpressionError",
    "Budget",
    "budget",
    "ｏｐｅｎ('/etc/hostname')",
    "𝓮𝓿𝓪𝓵('1')",
    "x.__ｃlass__",
    "x.＿＿class＿＿",
    "_＿import__('os')",
]
LARGE = [
    "10**10**10",
    "x**9**9",
    "2**MAX".replace("MAX", str(MAX_BITS + 1)),
    "(2**4000)**2",
    "pow(9,9**9)",
    "pow(2**4000,2**4000,3**2500)",
    "1<<9**9",
    "2**4000*2**4000",
    "'a'*10**10",
    "10**10*'a'",
    "[0]*10**9",
    "(0,)*10**9",
    "[x]*9999*9999",
    "[[[[[x]*99]*99]*99]*99]*99",
    "[[0]*999 for i in range(9999)]",
    "list(range(10**9))",
    "sum(range(10**12))",
    "9 in range(10**30)",
    "len(range(10**30))",
    "[0 for i in range(9999) for j in range(9999)]",
    "sum(1 for i in range(9999) for j in range(9999))",
    "any(i<0 for i in range(9999) for j in range(9999))",
    "sum([[0]*99 for i in range(9999)],[])",
    "sum((['a'*9999] for i in range(9999)),[])",
    "''.join('a'*9999 for i in range(9999))",
    "('a'*9999).join(['b']*9999)",
    "('a'*9999).replace('a','b'*9999)",
    "('a'*99).replace('','b'*9999)",
    "'a'.center(10**9)",
    "'a'.zfill(10**9)",
    "'a'.ljust(10**9)",
    "round(5,-10**9)",
    "set(i*(2**61-1) for i in range(9999))",
    "dict((i,i) for i in range(9999))",
    "str([[x]*99]*99)*9",
    "int('9'*9999)",
    "int('f'*9999,16)",
    "[sorted(range(9999)) for i in range(9999)]",
    "[str(2**4000) for i in range(9999)]",
    "max(zip(range(9999),range(9999)),key=str)*9999",
]


@pytest.mark.parametrize("source", [*FRAMES, *CLASSES, *FORMATS, *SYNTAX, *NAMES])
@pytest.mark.parametrize("value", [7, [1, 2], "text"], ids=["int", "list", "str"])
def test_it_is_refused(source: str, value: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExpressionError):
        interpret(source, [value])
    assert capfd.readouterr() == ("", "")


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Count the calls of functions, Python's own included."""
    count = [0]

    def see(frame: FrameType, event: str, argument: object) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        yield count
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("source", LARGE)
def test_large_work_is_refused_after_little_work(source: str) -> None:
    with counted_calls() as calls:
        assert evaluate_expression(source, [5]) is None
    assert calls[0] < 12 * MAX_STEPS


def test_the_bounds_let_through_what_is_below_them() -> None:
    (power,) = interpret(f"2**{MAX_BITS - 1}", [0])
    assert power.bit_length() == MAX_BITS
    (text,) = interpret(f"'a'*{MAX_SIZE - 1}", [0])
    assert len(text) == MAX_SIZE - 1
    assert interpret("sum(i for i in range(9000))", [0]) == [sum(range(9000))]


@pytest.mark.parametrize(
    "source",
    [
        "[" * 150,
        "(" * 99 + "x" + ")" * 99,
        "-" * 190 + "x",
        "[" * 90 + "]" * 90,
        "x" + "[0]" * 60,
        "not " * 45 + "x",
        "+".join("x" * 90),
        "abs(" * 45 + "x" + ")" * 45,
        "x if " * 30 + "x" + " else x" * 30,
    ],
)
def test_deep_nesting_is_no_recursion_error(source: str) -> None:
    evaluate_expression(source, [1])


def test_the_deepest_tree_needs_little_of_the_stack() -> None:
    """So that a verdict does not depend on how deep the caller stands."""
    before, depth = sys.getrecursionlimit(), len(_stack())
    sys.setrecursionlimit(depth + 500)
    try:
        assert evaluate_expression("sum(i for i in [" * 9 + "x" + "])" * 9, [1]) == [1]
    finally:
        sys.setrecursionlimit(before)


def _stack() -> list[FrameType]:
    frames, frame = [], sys._getframe()
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return frames


def test_an_order_that_changes_from_process_to_process_is_not_seen() -> None:
    words = ["pear", "fig", "plum", "apple", "lime"]
    assert interpret("list(set(x))", [words]) == [sorted(words)]
    assert interpret("''.join(set(x))", [words]) == ["".join(sorted(words))]
    for source in ("str(set(x))", "repr(set(x))", "str([set(x)])", "str(abs)", "str(map(abs,x))"):
        assert evaluate_expression(source, [words]) is None


def test_a_name_in_another_alphabet_is_the_name_that_python_reads() -> None:
    assert interpret("ｓｕｍ(ｘ)", [[1, 2]]) == [3]


def test_exceptions_cannot_be_caught_to_decide() -> None:
    assert evaluate_expression("[1/i for i in x] or 5", [[0]]) is None
    assert evaluate_expression("any(1/i for i in x)", [[1, 0]]) == [
        True
    ]  # as in Python, what is not reached is not run


def test_a_subclass_of_a_plain_type_is_no_plain_value() -> None:
    class Text(str):
        def upper(self) -> str:
            raise AssertionError("ran")

    for source in ("x.upper()", "x+'a'", "[x]", "len(x)"):
        assert evaluate_expression(source, [Text("a")]) is None


def test_warnings_of_the_parser_are_not_shown(recwarn: pytest.WarningsRecorder) -> None:
    assert evaluate_expression(r"'\d'", [1]) == ["\\d"]
    assert evaluate_expression("1if x else 2", [1]) == [1]
    assert list(recwarn) == []


_CHARACTERS = st.text("x0129()[]+-*/%<>=!,.:'\"ij _{}@&|^~\\\n#λ", max_size=40)
_PIECES = st.lists(
    st.sampled_from(
        ("x", "i", "9", "99", "**", "<<", "*", "+", "-", "//", "%", "(", ")", "[", "]", ",", ":", ".", "for i in x",
         "if", "else", "not", "and", "or", "is", "lambda", ":=", "'a'", "sum(", "range(", "str(", "set(",
         "sorted(", "map(", "zip(", ".join(", ".replace(", ".gi_frame", ".__class__",
         "pow(", "round(", "[0]", "range(9999)", "key=")
    ),
    max_size=25,
).map(" ".join)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.one_of(_CHARACTERS, _PIECES, st.text(max_size=60)), st.sampled_from([5, [1, 2], "ab"]))
@example("x[1:2,3]", 5)
def test_any_text_has_small_plain_values_or_is_refused(source: str, value: Any) -> None:
    try:
        (given_,) = interpret(source, [value])
    except ExpressionError:
        return
    assert size_of(given_) <= MAX_SIZE


@st.composite
def _trees(draw: st.DrawFn, depth: int = 3) -> ast.expr:
    """Draw a tree of any of Python's expressions, each field filled with what its kind asks for."""
    inner = (lambda: draw(_trees(depth - 1))) if depth else (lambda: ast.Name(draw(st.sampled_from("xij")), ast.Load()))
    name = draw(st.sampled_from(["x", "i", "sum", "sorted", "range", "map", "gi_frame", "upper", "join", "count"]))

    def clause() -> ast.comprehension:
        return ast.comprehension(ast.Name("i", ast.Store()), inner(), [inner()], 0)

    kinds = {
        ast.Constant: lambda: ast.Constant(draw(st.sampled_from([0, 3, 9999, 2.5, "ab", None, True, b"a", 1j]))),
        ast.Name: lambda: ast.Name(name, ast.Load()),
        ast.BinOp: lambda: ast.BinOp(inner(), draw(st.sampled_from(ast.operator.__subclasses__()))(), inner()),
        ast.UnaryOp: lambda: ast.UnaryOp(draw(st.sampled_from(ast.unaryop.__subclasses__()))(), inner()),
        ast.BoolOp: lambda: ast.BoolOp(draw(st.sampled_from(ast.boolop.__subclasses__()))(), [inner(), inner()]),
        ast.Compare: lambda: ast.Compare(inner(), [draw(st.sampled_from(ast.cmpop.__subclasses__()))()], [inner()]),
        ast.IfExp: lambda: ast.IfExp(inner(), inner(), inner()),
        ast.Call: lambda: ast.Call(inner(), [inner()], [ast.keyword(draw(st.sampled_from(["key", None])), inner())]),
        ast.Attribute: lambda: ast.Call(ast.Attribute(inner(), name, ast.Load()), [inner()], []),
        ast.Subscript: lambda: ast.Subscript(inner(), ast.Slice(inner(), inner()), ast.Load()),
        ast.List: lambda: ast.List([inner(), inner()], ast.Load()),
        ast.Tuple: lambda: ast.Tuple([inner()], ast.Load()),
        ast.ListComp: lambda: ast.ListComp(inner(), [clause()]),
        ast.GeneratorExp: lambda: ast.GeneratorExp(inner(), [clause()]),
        ast.SetComp: lambda: ast.SetComp(inner(), [clause()]),
        ast.Lambda: lambda: ast.Lambda(ast.arguments([], [], None, [], [], None, []), inner()),
        ast.Starred: lambda: ast.Call(inner(), [ast.Starred(inner(), ast.Load())], []),
        ast.NamedExpr: lambda: ast.NamedExpr(ast.Name("x", ast.Store()), inner()),
    }
    return draw(st.sampled_from(list(kinds.values())))() if depth else inner()


@settings(max_examples=150, deadline=None)
@given(_trees(), st.sampled_from([5, [1, 2], "ab"]))
def test_random_trees_raise_no_other_error_and_stay_in_their_budget(tree: ast.expr, value: Any) -> None:
    source = ast.unparse(tree)
    with counted_calls() as calls:
        evaluate_expression(source, [value])
    assert calls[0] < 12 * MAX_STEPS
