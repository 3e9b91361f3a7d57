"""Flags made from request models: what is typed becomes settings, and what is wrong a sentence."""

import inspect
import json
from typing import Any

import pytest
from pydantic import Field

from impart_core.base.errors import ConfigError, UnknownNameError
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.engine.requests import CompressRequest, QuantizeRequest
from impart_core.methods.impart import ImpartOptions
from impart_flows.cli.compress import compress, quantize
from impart_flows.cli.evaluate import evaluate
from impart_flows.cli.flags import build_request, from_flags
from impart_flows.cli.plan import PlanRequest, plan

PLACES = {"base": "base", "finetuned": "finetuned", "cr": 4.0}


def config(*options: str, **typed: Any) -> CompressConfig:
    return build_request(PlanRequest, {**PLACES, "options": list(options), **typed}).config


def options(*typed: str, method: str = "impart") -> dict[str, Any]:
    return config(*typed, method=method).model_dump()["options"]


def refusal(*typed: str, method: str = "impart", **others: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(*typed, method=method, **others)
    return str(caught.value)


def test_flags_that_are_not_given_leave_the_methods_defaults() -> None:
    assert options() == ImpartOptions().model_dump()
    assert options(method="dare") == {}


def test_values_are_json_or_else_text() -> None:
    found = options("rescale=false", "allocation=uniform", "c=5e-1", "preprune=true")
    assert found == {"beta": None, "c": 0.5, "preprune": True, "allocation": "uniform", "rescale": False}
    assert options('allocation="uniform"')["allocation"] == "uniform"


def test_an_option_that_the_method_does_not_have_is_answered_with_those_it_has() -> None:
    own = "Method 'dare' has no option 'beta'; it has: distil, distil_norms, distil_steps, distil_rate."
    assert refusal("beta=0.5", method="dare") == own
    assert refusal("rescal=false") == (
        "Method 'impart' has no option 'rescal'; it has: beta, c, preprune, allocation, rescale, floor, distil, "
        "distil_norms, distil_steps, distil_rate. Did you mean 'rescale'?"
    )


def test_a_wrong_value_is_answered_with_what_it_must_be_and_the_nearest() -> None:
    assert refusal("allocation=unifrm") == (
        "options.allocation is 'unifrm'; it must be 'importance', 'uniform' or 'proportional'. Did you mean 'uniform'?"
    )
    assert "options.rescale is 'perhaps'; it must be true or false" in refusal("rescale=perhaps")
    assert "options.c is None" in refusal("c=null")
    assert "options.beta is nan" in refusal("beta=NaN")
    assert "options.c is" in refusal("c=" + "[" * 100_000)


def test_all_that_is_wrong_is_told_at_once() -> None:
    told = refusal("beta=1.5", seed=-3, accounting="byts")
    for sentence in ("seed is -3", "accounting is 'byts'; it must be 'bytes' or 'paper'. Did you mean 'bytes'?"):
        assert sentence in told
    assert "options.beta is 1.5" in told


@pytest.mark.parametrize("typed", ["rescale", "=false", ""])
def test_what_is_no_key_and_value_is_shown_how_to_type_it(typed: str) -> None:
    assert refusal(typed) == f"{typed!r} is not KEY=VALUE, such as rescale=false."


def test_an_option_given_twice_is_refused() -> None:
    assert refusal("c=1", "c=1") == "Option 'c' is given twice; give it once."


def test_an_unknown_method_is_answered_with_the_nearest_even_with_options() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lowrank'"):
        options("beta=1", method="lowrnk")


def test_the_settings_read_back_from_the_recipe_are_the_same() -> None:
    found = config("rescale=false")
    assert json.loads(found.model_dump_json())["options"]["rescale"] is False
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_calibration_text_is_there_where_it_is_named() -> None:
    def read(**typed: Any) -> Any:
        return build_request(CompressRequest, {**PLACES, "store": None, **typed}).calibration

    assert read() is None
    assert read(source="text", sequences=None, length=None).sequences == 128
    assert read(source="text", sequences=8, length=64).model_dump() == {"source": "text", "sequences": 8, "length": 64}
    with pytest.raises(ConfigError, match="--calibration-length is given, but no text"):
        read(length=64)


def test_where_no_store_is_named_it_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPART_STORE", "/somewhere")
    assert build_request(QuantizeRequest, {"ref": "math", "cr": 64.0, "store": None}).store == "/somewhere"
    assert build_request(QuantizeRequest, {"ref": "math", "cr": 64.0, "store": "/else"}).store == "/else"


@pytest.mark.parametrize("verb", [compress, quantize, plan, evaluate])
def test_every_flag_has_help(verb: Any) -> None:
    for parameter in inspect.signature(verb).parameters.values():
        (flag,) = parameter.annotation.__metadata__
        assert flag.help, parameter.name


def test_a_field_without_an_entry_is_a_flag_by_its_description() -> None:

    class Request(Frozen):
        colour: str = Field(default="red", description="Which colour.")

    @from_flags(Request)
    def paint(request: Request) -> None:
        painted.append(request.colour)

    painted: list[str] = []
    parameter = inspect.signature(paint).parameters["colour"]
    assert (parameter.default, parameter.annotation.__metadata__[0].help) == ("red", "Which colour.")
    paint(colour="blue")
    assert painted == ["blue"]
