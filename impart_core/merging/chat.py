"""The chat template of a merged model."""

import json
from collections import Counter
from collections.abc import Mapping

from impart_core.base.errors import ConfigError
from impart_core.base.settings import nearest
from impart_core.checkpoint.source import MemoryFile, SourceFile
from impart_core.checkpoint.tokenizer import SETTINGS, read_settings
from impart_core.merging.file import MergeFile, ModelReference
from impart_core.merging.sources import Source

TEMPLATE = "chat_template.jinja"  # what transformers reads first
_OF_PROCESSOR = "chat_template.json"  # where older versions of it have a processor's
_AUTO, _DEFAULT, _KEY = "auto", "default", "chat_template"


def chosen_template(file: MergeFile, sources: Mapping[ModelReference, Source]) -> str | None:
    """Return the chat template that a merge asks for; None where the tokenizer's stays as it is.

    `auto` is the template of most models, of those that are equally many the one that the file names first, the base
    last.

    Raises:
        ConfigError: it is neither `auto`, nor a template, nor one of the models; or that model has none.
    """
    asked = file.chat_template
    if not asked:
        return None
    by_name = {str(reference): source for reference, source in sources.items()}
    if asked == _AUTO:
        order = [*file.references(), *sources]
        templates = {ref: template_of(sources[ref].checkpoint.carried) for ref in dict.fromkeys(order)}
        found = Counter(template.strip() for template in templates.values() if template)
        return found.most_common(1)[0][0] if found else None
    if place_of(asked) in by_name:
        template = template_of(by_name[place_of(asked)].checkpoint.carried)
        if template is None:
            raise ConfigError(f"chat_template: {asked} has no chat template. Name another model, or give a template.")
        return template
    if "{" not in asked:
        raise ConfigError(
            f"chat_template is {asked!r:.80}, which is no template and none of the models."
            f"{nearest(asked, [_AUTO, *by_name])} Give auto (that of most models), one of the models, or the text of a "
            "template in Jinja; there are no named templates."
        )
    require_template(asked)
    return asked


def require_template(text: str) -> None:
    """Check that a text is a chat template: Jinja, as transformers reads it, over the messages; it is not carried out.

    Where Jinja is not installed nothing is checked.

    Raises:
        ConfigError: it is none; the message says where it is wrong.
    """
    try:
        from jinja2 import Environment, TemplateSyntaxError, meta, nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
    except ImportError:
        return

    class Generation(Extension):
        """transformers' mark of what an assistant said."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja has it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        tree = Environment(extensions=[Generation, "jinja2.ext.loopcontrols"]).parse(text)  # noqa: S701 - no HTML
        used = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"chat_template is no template in Jinja: line {error.lineno}: {error.message}. It begins {text!r:.60}."
        ) from error
    except RecursionError as error:
        raise ConfigError("chat_template is nested so deeply that no library reads it. Give a shorter one.") from error
    if "messages" not in used:
        raise ConfigError(
            f"chat_template says nothing of `messages`, so that every chat would be the same text. It is {text!r:.60}."
        )


def place_of(asked: str) -> str:
    """Return what may be a model's place as `ModelReference` writes it; a template as it is."""
    return asked if "{" in asked else str(ModelReference.model_validate(asked))


def template_of(files: Mapping[str, SourceFile]) -> str | None:
    """Return the chat template among a checkpoint's files, the default one of several; None where there is none."""
    if TEMPLATE in files:
        return bytes(files[TEMPLATE].read(0, files[TEMPLATE].size)).decode("utf-8", errors="replace")
    template = read_settings(files).get(_KEY)
    if isinstance(template, list):
        named = [one for one in template if isinstance(one, Mapping) and one.get("name") == _DEFAULT]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def with_template(files: Mapping[str, SourceFile], template: str) -> dict[str, SourceFile]:
    """Return a checkpoint's files with another chat template, and the old one taken out."""
    changed = {name: file for name, file in files.items() if name != _OF_PROCESSOR}
    settings = read_settings(files)
    if settings.pop(_KEY, None) is not None:
        changed[SETTINGS] = in_memory(SETTINGS, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    changed[TEMPLATE] = in_memory(TEMPLATE, template.encode())
    return dict(sorted(changed.items()))


def in_memory(name: str, data: bytes) -> MemoryFile:
    """Return bytes as a file of a merged model."""
    return MemoryFile(name, len(data), None, data)
