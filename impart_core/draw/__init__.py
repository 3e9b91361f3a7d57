"""Lineages as text: a tree for people, two graph languages, JSON, and a picture."""

import json
from collections.abc import Callable

from impart_core.artifacts.lineage import Lineage
from impart_core.draw.markup import to_dot, to_mermaid
from impart_core.draw.svg import to_svg
from impart_core.draw.tree import to_text
from impart_core.registry import Registry

FORMATS: Registry[Callable[[Lineage], str]] = Registry("format")


def to_json(lineage: Lineage) -> str:
    """Return a lineage as one JSON object: its focus, nodes and edges."""
    return json.dumps(lineage.model_dump(mode="json"), ensure_ascii=False) + "\n"


FORMATS.register("text", to_text)
FORMATS.register("mermaid", to_mermaid)
FORMATS.register("dot", to_dot)
FORMATS.register("json", to_json)
FORMATS.register("svg", to_svg)
