"""An expression has the value that Python gives it, within the language that answers are written in."""

import builtins
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.tinyzoo.interpreter import ExpressionError, evaluate_expression, interpret
from impart_core.tinyzoo.interpreter.functions import FUNCTIONS

LIST, TEXT = [3, 1, 2, 9, 4], "a pair of Shoes"


def by_python(source: str, value: Any) -> Any:
    """Return what Python makes of an expression of this test's own grammar, as JSON holds it; None if it fails."""
    names = {name: getattr(builtins, name) for name in FUNCTIONS}
    try:
        return json.loads(json.dumps(eval(source, {"__builtins__": names, "x": value})))
    except (TypeError, ValueError, ArithmeticError, LookupError):
        return None


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("(x+3)*2", 5),
        ("x//7-x%7", -20),
        ("-x**2 if x>3 else ~x", 5),
        ("x<<3|5^x&6", 9),
        ("round(x/3,2)", 10),
        ("pow(x,10**3,97)", 5),
        ("divmod(x,4)", 11),
        ("1<x<=5!=6 and not x==2", 5),
        ("x is None or x", 0),
        ("0.5+True+int('7')+float(' 2.5 ')", 0),
        ("int('ff',base=16)", 0),
        ("[i*2 for i in x if i>2 if i<9]", LIST),
        ("[[i,j] for i in x for j in range(i) if i!=j]", LIST),
        ("[a+b for a,(b,c) in zip(x,enumerate(x,start=5))]", LIST),
        ("[x for x in x][::-1]", LIST),
        ("sum(i for i in x if i%2)+max(x)-min(x)+len(x)", LIST),
        ("sum([[i] for i in x],[])", LIST),
        ("sorted(x,reverse=True)[1:-1]", LIST),
        ("sorted(map(str,x),key=int)", LIST),
        ("max(x,key=abs,default=0)", [-9, 2]),
        ("min((),default=7)", 0),
        ("list(filter(None,x))", [0, 1, "", 2]),
        ("list(reversed(x))+list(tuple(x))*2", LIST),
        ("any(i>8 for i in x),all(x)", LIST),
        ("sorted(set(x))==list(set(x))", LIST),
        ("dict(zip(x,x)).get(9,0)", LIST),
        ("4 in (i for i in x)", LIST),
        ("2 in range(1,9,2),3 not in x", LIST),
        ("x.count(3)+x.index(9)", LIST),
        ("x[:5].upper()+x[-3:].title()", TEXT),
        ("x.replace('a','b')+'!'*3", TEXT),
        ("' '.join(w.capitalize() for w in x.split(' '))", TEXT),
        ("x.split(sep=' ',maxsplit=1)", TEXT),
        ("x.center(30,'*').strip('*').startswith('a')", TEXT),
        ("'pair' in x and x.find('pair')", TEXT),
        ("str([1,'a',None,2.5])+repr((1,))", 0),
        ("''.join(sorted(x)).strip()[::2]", TEXT),
        ("x.partition(' ')[2].zfill(20)", TEXT),
    ],
)
def test_it_is_evaluated_as_python_does(source: str, value: Any) -> None:
    expected = by_python(source, value)
    assert expected is not None
    assert interpret(source, [value]) == [expected]


@pytest.mark.parametrize(
    "source",
    ["1/0", "x+", "x[9]", "y", "int('a')", "len(3)", "x(1)", "abs(x,x)", "abs(values=x)", "sorted(budget=x)", "x<'a'"],
)
def test_what_fails_has_no_value(source: str) -> None:
    assert evaluate_expression(source, [1]) is None


@pytest.mark.parametrize("source", ["(i for i in x)", "map(abs,x)", "zip(x)", "set(x)", "range(3)", "abs", "[abs]"])
def test_what_json_cannot_hold_is_no_value(source: str) -> None:
    assert evaluate_expression(source, [LIST]) is None


def test_inputs_do_not_see_each_other_and_stay_as_they_are() -> None:
    given_ = [[3, 1], [2, 2]]
    assert interpret("[x for x in sorted(x)]", given_) == [[1, 3], [2, 2]]
    assert given_ == [[3, 1], [2, 2]]


def test_one_failing_input_fails_the_expression() -> None:
    assert evaluate_expression("6//x", [1, 2, 0]) is None


def test_a_comprehension_keeps_its_names_to_itself() -> None:
    assert interpret("[i for i in x]+[x]", [[1]]) == [[1, [1]]]
    with pytest.raises(ExpressionError, match="There is no i"):
        interpret("[i for i in x]+[i]", [[1]])


@pytest.mark.parametrize(
    "lazy",
    [
        "enumerate(x)",
        "enumerate([1], 'a')",
        "zip(x, x)",
        "reversed(x)",
        "map(len, x)",
        "filter(len, x)",
        "(i for i in x)",
    ],
)
def test_what_has_no_items_fails_at_once_though_none_is_drawn(lazy: str) -> None:
    assert by_python(f"1 if {lazy} else 0", 7) is None
    assert evaluate_expression(f"1 if {lazy} else 0", [7]) is None


_ATOMS = st.sampled_from(["x", "i", "0", "1", "2", "-3", "2.5", "'ab'", "True", "None", "len", "[]", "range(3)"])


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two, three = st.tuples(inner, inner), st.tuples(inner, inner, inner)
    calls = st.sampled_from(["len", "sum", "sorted", "list", "str", "int", "abs", "tuple", "any", "max", "enumerate"])
    methods = st.sampled_from(["upper()", "split()", "count('a')", "index(1)", "join(x)", "append(1)", "format(1)"])
    signs = st.sampled_from(["+", "-", "*", "//", "%", "<", "==", " and ", " or ", " in ", "|", "/", "&"])
    return st.one_of(
        st.tuples(two, signs).map(lambda t: f"({t[0][0]}{t[1]}{t[0][1]})"),
        st.tuples(calls, inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(inner, methods).map(lambda t: f"({t[0]}).{t[1]}"),
        two.map(lambda t: f"({t[0]})[{t[1]}]"),
        three.map(lambda t: f"({t[0]})[{t[1]}:{t[2]}]"),
        three.map(lambda t: f"[{t[0]} for i in {t[1]} if {t[2]}]"),
        two.map(lambda t: f"list({t[0]} for i in {t[1]})"),
        three.map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
        two.map(lambda t: f"[{t[0]},({t[1]},)]"),
        inner.map(lambda t: f"-{t}"),
    )


@settings(max_examples=400, deadline=None)
@given(st.recursive(_ATOMS, _larger, max_leaves=8), st.sampled_from([7, -2, LIST, TEXT, [TEXT, "b"]]))
def test_random_expressions_have_no_other_value_than_python_gives_them(source: str, value: Any) -> None:
    """Python's is missing where it fails; ours also where an expression leaves the language."""
    ours = evaluate_expression(source, [value])
    if ours is not None:
        assert json.dumps(ours) == json.dumps([by_python(source, value)])
