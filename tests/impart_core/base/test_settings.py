"""Settings: frozen, unknown keys refused, every fault in one message."""

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from impart_core.base.errors import ConfigError, UnknownNameError
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.engine.requests import CompressRequest
from impart_core.methods.impart import ImpartOptions


def test_settings_left_out_have_defaults() -> None:
    config = CompressConfig(cr=32)
    assert (config.method, config.seed, config.accounting) == ("impart", 0, "bytes")
    assert config.options == ImpartOptions(beta=None, c=1.0)


def test_settings_cannot_be_changed_after_they_are_made() -> None:
    config = CompressConfig(cr=32)
    with pytest.raises(ValidationError, match="frozen"):
        config.cr = 8.0  # type: ignore[misc]


def test_every_wrong_setting_is_named_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        CompressConfig(cr=0.5, sed=1, accounting="byte", options={"bta": 0.5, "c": -1})
    message = str(caught.value)
    for part in (
        "cr is 0.5",
        "'sed'",
        "accounting is 'byte'",
        "'bytes' or 'paper'",
        "no option 'bta'",
        "options.c is -1",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("settings", "nearest"),
    [({"sede": 1}, "'seed'"), ({"options": {"bta": 0.5}}, "'beta'"), ({"method_": "x"}, "'method'")],
)
def test_an_unknown_setting_is_answered_with_the_nearest_one(settings: dict[str, object], nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {nearest}"):
        CompressConfig(cr=4, **settings)


def test_an_option_is_looked_up_in_its_own_method() -> None:
    with pytest.raises(ConfigError, match=r"Method 'lowrank' has no option 'rescale'; it has: distil, .*_rate[.]$"):
        CompressConfig(cr=4, method="lowrank", options={"rescale": False})
    assert CompressConfig(cr=4, method="lowrank").model_dump()["options"] == {}


def test_a_choice_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"must be 'bytes' or 'paper'\. Did you mean 'bytes'\?"):
        CompressConfig(cr=4, accounting="byts")


def test_an_unknown_method_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'impart'"):
        CompressConfig(cr=4, method="imprt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.999, -4, "many"])
def test_a_ratio_that_is_no_number_of_at_least_one_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="cr is"):
        CompressConfig(cr=value)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5])
def test_a_seed_outside_63_bits_is_refused(seed: float) -> None:
    with pytest.raises(ConfigError, match="seed is"):
        CompressConfig(cr=4, seed=seed)


class Sample(Frozen):
    """A setting of each type."""

    number: float = 0.5
    whole: int = 1
    switch: bool = True
    text: str = ""
    several: tuple[str, ...] = ()
    named: dict[str, int] = Field(default_factory=dict)
    nested: ImpartOptions = ImpartOptions()
    share: float = Field(0.5, gt=0, lt=1)
    part: float = Field(0.5, le=1)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("number", "many", "a number"),
        ("number", [], "a number"),
        ("number", float("inf"), "a finite number"),
        ("whole", "many", "a whole number"),
        ("whole", 0.5, "a whole number"),
        ("switch", "perhaps", "true or false"),
        ("switch", [], "true or false"),
        ("text", 5, "text"),
        ("several", "*@prod", "a list, as [first, second]"),
        ("named", [], "a mapping, as {key: value}"),
        ("nested", 5, "a mapping, as {key: value}"),
        ("share", 0, "more than 0"),
        ("share", 1, "less than 1"),
        ("part", 2, "at most 1"),
    ],
)
def test_a_wrong_value_is_answered_with_what_it_must_be(name: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sample(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}; it must be {wanted}."


@pytest.mark.parametrize("options", [5, [("beta", 0.5)], "beta"])
def test_options_that_are_no_mapping_are_refused(options: object) -> None:
    with pytest.raises(ConfigError, match="options is"):
        CompressConfig(cr=4, options=options)


def test_settings_come_back_from_json_with_the_methods_own_options() -> None:
    config = CompressConfig(cr=4, seed=3, options={"beta": 0.25, "rescale": False})
    read = CompressConfig.model_validate_json(config.model_dump_json())
    assert read == config
    assert isinstance(read.options, ImpartOptions)
    assert config.model_dump()["options"] == {
        "beta": 0.25,
        "c": 1.0,
        "preprune": True,
        "allocation": "importance",
        "rescale": False,
    }


def models_of(base: type[Frozen]) -> set[type[Frozen]]:
    return {base}.union(*map(models_of, base.__subclasses__()))


@pytest.mark.parametrize("model", sorted(models_of(Frozen), key=lambda model: f"{model.__module__}.{model.__name__}"))
def test_every_settings_model_made_by_hand_answers_with_a_sentence(model: type[Frozen]) -> None:
    with pytest.raises(ConfigError, match="Unknown setting 'not_a_setting'"):
        model(not_a_setting=1)


def test_a_nested_model_that_is_wrong_is_told_with_its_place_beside_all_else() -> None:
    wrong = {"base": "b", "finetuned": "f", "config": {"cr": "x"}, "workers": 0, "calibration": {"source": 5}}
    with pytest.raises(ConfigError) as caught:
        CompressRequest(**wrong)
    for part in ("config.cr is 'x'", "workers is 0; it must be at least 1.", "calibration.source is 5"):
        assert part in str(caught.value)


def test_pydantic_itself_sees_its_own_errors() -> None:
    for read in (
        lambda: CompressConfig.model_validate({"cr": "x"}),
        lambda: CompressConfig.model_validate_json('{"cr": "x"}'),
        lambda: TypeAdapter(list[CompressConfig]).validate_python([{"cr": "x"}]),
    ):
        with pytest.raises(ValidationError, match="cr"):
            read()


@pytest.mark.parametrize("given", [{}, {"cr": None}])
def test_a_missing_ratio_is_named(given: dict[str, None]) -> None:
    with pytest.raises(
        ConfigError, match=r"^No compression ratio is given\. Give one \(cr, .*\), or method lossless\.$"
    ):
        CompressConfig(seed=1, **given)


def test_embeddings_are_kept_and_factors_serve_every_usual_request_unless_something_else_is_asked_for() -> None:
    config = CompressConfig(cr=4)
    assert (config.embeddings, config.embeddings_cr, config.factors_for) == ("keep", None, None)


@pytest.mark.parametrize("policy", ["keep", "auto", "impart", "dare", "lowrank", "magnitude"])
def test_embeddings_have_a_policy_or_any_method(policy: str) -> None:
    assert CompressConfig(cr=4, embeddings=policy).embeddings == policy


@pytest.mark.parametrize(("policy", "nearest"), [("kep", "keep"), ("atuo", "auto"), ("imprt", "impart")])
def test_an_unknown_policy_for_embeddings_is_answered_with_the_nearest_one(policy: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"policy for embeddings '{policy}'.*Did you mean '{nearest}'"):
        CompressConfig(cr=4, embeddings=policy)


def test_a_ratio_for_embeddings_that_are_kept_is_refused_with_what_to_set() -> None:
    for settings in ({}, {"embeddings": "keep"}):
        with pytest.raises(ConfigError, match=r"embeddings_cr is 8.*no effect.*set embeddings to auto or a method"):
            CompressConfig(cr=4, embeddings_cr=8, **settings)
    assert CompressConfig(cr=4, embeddings_cr=8, embeddings="auto").embeddings_cr == 8


@pytest.mark.parametrize("name", ["embeddings_cr", "factors_for"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.999, -4, "many"])
def test_the_other_ratios_are_numbers_of_at_least_one_too(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is"):
        CompressConfig(cr=4, embeddings="auto", **{name: value})


@pytest.mark.parametrize(
    "settings", [{"embeddings": "auto"}, {"embeddings": "impart", "embeddings_cr": 9}, {"factors_for": 2}]
)
def test_each_of_them_survives_being_written_and_read(settings: dict[str, object]) -> None:
    config = CompressConfig(cr=4, **settings)
    assert CompressConfig.model_validate_json(config.model_dump_json()) == config
    assert config != CompressConfig(cr=4)


class Numbers(Frozen):
    one: float = 1.0
    count: int | None = None
    many: dict[str, float] | float = 0.0
    either: bool | float = False
    inner: tuple[ImpartOptions, ...] = Field(default=(), min_length=1)


@pytest.mark.parametrize("wrong", [{"one": True}, {"count": False}, {"many": {"a": True}}, {"many": True}])
def test_true_and_false_are_no_numbers(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"must be a number\.$"):
        Numbers(**wrong)
    with pytest.raises(ValidationError):
        TypeAdapter(Numbers).validate_python(wrong)


def test_true_and_false_are_taken_where_they_are_meant() -> None:
    found = Numbers(either=True, inner=[{"preprune": False}])
    assert found.either is True
    assert found.inner[0].preprune is False


def test_a_list_is_not_called_too_short_for_what_is_wrong_in_it() -> None:
    with pytest.raises(ConfigError) as wrong:
        Numbers(inner=[{"c": -1}])
    assert str(wrong.value) == "inner.0.c is -1; it must be at least 0."
    with pytest.raises(ConfigError, match="at least 1 item"):
        Numbers(inner=[])
