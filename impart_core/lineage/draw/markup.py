"""A lineage in the languages of Mermaid (which many wikis and code hosts draw) and Graphviz."""

from impart_core.lineage.draw.labels import colour, lines
from impart_core.lineage.graph import Lineage

_FOCUS_WIDTH = 3


def to_mermaid(lineage: Lineage) -> str:
    """Return a lineage as a Mermaid flowchart, parents to the left."""
    keys = {node.id: f"n{number}" for number, node in enumerate(lineage.nodes)}
    out = ["flowchart LR"]
    for node in lineage.nodes:
        out.append(f'  {keys[node.id]}["{"<br/>".join(map(_mermaid_text, lines(node)))}"]')
        width = f",stroke-width:{_FOCUS_WIDTH}px" if node.id == lineage.focus else ""
        out.append(f"  style {keys[node.id]} fill:{colour(node)},stroke:#444,color:#000{width}")
    out += [f"  {keys[parent]} --> {keys[child]}" for parent, child in lineage.edges]
    return "\n".join(out) + "\n"


def to_dot(lineage: Lineage) -> str:
    """Return a lineage as a Graphviz digraph, parents to the left."""
    keys = {node.id: f"n{number}" for number, node in enumerate(lineage.nodes)}
    out = [
        "digraph lineage {",
        "  rankdir=LR;",
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11];',
    ]
    for node in lineage.nodes:
        label = "\\n".join(map(_dot_text, lines(node)))
        width = f", penwidth={_FOCUS_WIDTH}" if node.id == lineage.focus else ""
        out.append(f'  {keys[node.id]} [label="{label}", fillcolor="{colour(node)}"{width}];')
    out += [f"  {keys[parent]} -> {keys[child]};" for parent, child in lineage.edges]
    return "\n".join([*out, "}"]) + "\n"


def _mermaid_text(text: str) -> str:
    """Write all but letters, digits and harmless signs as Mermaid's entity codes, inside of quotes."""
    return "".join(c if c.isalnum() or c in " .,:@/-_+()…" else f"#{ord(c)};" for c in text)


def _dot_text(text: str) -> str:
    """Escape a text for a quoted string: backslashes too, which Graphviz would take for its own codes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
