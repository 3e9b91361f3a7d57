"""A compression's method on the command line: its flags turned into settings, its help written from the registry."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from impart_core.blocks.request import CompressConfig


class MethodCommand(TyperCommand):
    """A verb with `--method` and `--option`, whose help lists the methods and all that can be set of each."""

    @property
    def methods(self) -> Sequence[str]:
        """The methods that the verb takes."""
        from impart_core.methods import METHODS

        return tuple(METHODS)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Complete the two flags' help and write it; the registry is read only now, since it loads torch."""
        texts = {"method": _methods, "option": _options}
        for parameter in self.params:
            if parameter.name in texts:
                listed = texts[parameter.name](self.methods)
                parameter.help = f"{parameter.help}\n\n{listed}"  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


class QuantizeCommand(MethodCommand):
    """The same for the methods that quantise."""

    @property
    def methods(self) -> Sequence[str]:
        """The methods that the verb takes."""
        from impart_core.methods import QUANTIZING

        return QUANTIZING


def read_config(
    method: str,
    cr: float,
    seed: int,
    accounting: str,
    flags: dict[str, Any],
    options: Sequence[str] = (),
    **others: Any,
) -> "CompressConfig":
    """Build the compression's settings from flags.

    Args:
        method: the method's name.
        cr: requested ratio.
        seed: the masks' seed.
        accounting: `bytes` or `paper`.
        flags: method options that have flags of their own, by name; None where the flag was not given.
        options: the others, as KEY=VALUE.
        others: further settings of the compression by name.

    Raises:
        ConfigError: a value is wrong, or the method has no such option.
        UnknownNameError: a name is wrong; the message gives the nearest valid one.
    """
    from impart_core.base.errors import unknown_name
    from impart_core.base.settings import build_config
    from impart_core.blocks.request import CompressConfig

    if accounting not in ("bytes", "paper"):
        raise unknown_name("accounting", accounting, ("bytes", "paper"))
    given = read_options(flags, options)
    settings = {"method": method, "cr": cr, "seed": seed, "accounting": accounting, "options": given, **others}
    return build_config(CompressConfig, **settings)


def read_options(flags: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Return a method's options by name; arguments and errors as for `read_config`."""
    from impart_core.base.errors import ConfigError

    given = {key: value for key, value in flags.items() if value is not None}
    for text in options:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--option {text!r} is not KEY=VALUE, such as rescale=false.")
        if key in given:
            raise ConfigError(f"Option {key!r} is given twice; give it once.")
        given[key] = _value(value)
    return given


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _methods(names: Sequence[str]) -> str:
    from impart_core.methods import METHODS

    return "\n".join(f"- {name}: {METHODS.get(name).summary}" for name in names)


def _options(names: Sequence[str]) -> str:
    from impart_core.methods import METHODS

    fields = {name: METHODS.get(name).options_model.model_fields for name in names}
    lines = [
        f"- {name} {key}={json.dumps(field.default, default=str)}: {field.description}"
        for name, own in fields.items()
        for key, field in own.items()
    ]
    none = [name for name, own in fields.items() if not own]
    return "\n".join([*lines, f"- {', '.join(none)}: none"] if none else lines)
