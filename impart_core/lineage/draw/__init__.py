"""Lineages as text: a tree for people, two graph languages, JSON, and a picture."""

import json
from collections.abc import Callable

from impart_core.base.registry import Registry
from impart_core.lineage.draw.markup import to_dot, to_mermaid
from impart_core.lineage.draw.svg import to_svg
from impart_core.lineage.draw.tree import to_text
from impart_core.lineage.graph import Lineage

FORMATS: Registry[Callable[[Lineage], str]] = Registry("format")


def to_json(lineage: Lineage) -> str:
    """Return a lineage as one JSON object: its focus, nodes and edges."""
    return json.dumps(lineage.model_dump(mode="json"), ensure_ascii=False) + "\n"


FORMATS.register("text", to_text)
FORMATS.register("mermaid", to_mermaid)
FORMATS.register("dot", to_dot)
FORMATS.register("json", to_json)
FORMATS.register("svg", to_svg)
