"""The method's flags: what is typed becomes settings, and what is wrong a sentence."""

import json
from typing import Any

import pytest

from impart_core.base.errors import ConfigError, UnknownNameError
from impart_core.methods.impart import ImpartOptions
from impart_flows.cli.method import read_config


def options(*typed: str, method: str = "impart", **flags: Any) -> dict[str, Any]:
    return read_config(method, 4.0, 0, "bytes", flags, typed).model_dump()["options"]


def refusal(*typed: str, method: str = "impart", **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        options(*typed, method=method, **flags)
    return str(caught.value)


def test_flags_that_are_not_given_leave_the_methods_defaults() -> None:
    assert options(beta=None, c=None) == ImpartOptions().model_dump()
    assert options(beta=None, c=None, method="dare") == {}


def test_a_flag_of_its_own_is_short_for_the_option() -> None:
    assert options(beta=0.5, c=None) == options("beta=0.5") == {**ImpartOptions().model_dump(), "beta": 0.5}


def test_values_are_json_or_else_text() -> None:
    found = options("rescale=false", "allocation=uniform", "c=5e-1", "preprune=true")
    assert found == {"beta": 0.6, "c": 0.5, "preprune": True, "allocation": "uniform", "rescale": False}
    assert options('allocation="uniform"')["allocation"] == "uniform"


def test_an_option_that_the_method_does_not_have_is_answered_with_those_it_has() -> None:
    assert refusal("beta=0.5", method="dare") == "Method 'dare' has no option 'beta'; it has: none."
    assert refusal(beta=0.5, method="dare") == "Method 'dare' has no option 'beta'; it has: none."
    assert refusal("rescal=false") == (
        "Method 'impart' has no option 'rescal'; it has: beta, c, preprune, allocation, rescale. "
        "Did you mean 'rescale'?"
    )


def test_a_wrong_value_is_answered_with_what_it_must_be_and_the_nearest() -> None:
    assert refusal("allocation=unifrm") == (
        "options.allocation is 'unifrm'; it must be 'importance' or 'uniform'. Did you mean 'uniform'?"
    )
    assert "options.rescale is 'perhaps': input should be a valid boolean" in refusal("rescale=perhaps")
    assert "options.c is None" in refusal("c=null")
    assert "options.beta is nan" in refusal("beta=NaN")
    assert "options.c is" in refusal("c=" + "[" * 100_000)


@pytest.mark.parametrize("typed", ["rescale", "=false", ""])
def test_what_is_no_key_and_value_is_shown_how_to_type_it(typed: str) -> None:
    assert refusal(typed) == f"--option {typed!r} is not KEY=VALUE, such as rescale=false."


def test_an_option_given_twice_is_refused() -> None:
    assert refusal("beta=0.5", beta=0.4) == "Option 'beta' is given twice; give it once."
    assert refusal("c=1", "c=1") == "Option 'c' is given twice; give it once."


def test_an_unknown_method_is_answered_with_the_nearest_even_with_options() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lowrank'"):
        options("beta=1", method="lowrnk")


def test_the_settings_read_back_from_the_recipe_are_the_same() -> None:
    config = read_config("impart", 4.0, 0, "bytes", {}, ["rescale=false"])
    assert json.loads(config.model_dump_json())["options"]["rescale"] is False
    assert type(config).model_validate_json(config.model_dump_json()) == config
