"""A lineage as a tree of text: the focus, what it was made from, what was made from it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from impart_core.lineage.draw.labels import heading, maker, plain, short_id, size, what
from impart_core.lineage.graph import Lineage, Node

_DEEPEST = 24  # levels that are indented: a chain of thousands would else be mostly spaces


def to_text(lineage: Lineage) -> str:
    """Return a lineage as text; what is reached in two ways is unfolded where it is reached first."""
    nodes = {node.id: node for node in lineage.nodes}
    parents, children = defaultdict(list), defaultdict(list)
    for parent, child in lineage.edges:
        parents[child].append(parent)
        children[parent].append(child)
    out = [_line(nodes[lineage.focus])]
    for title, step in (("made from", parents), ("led to", children)):
        out += ["", title, *_branches(lineage.focus, nodes, step)]
        if out[-1] == title:
            out.append("└─ nothing that the store knows of")
    return "\n".join(out) + "\n"


def _branches(focus: str, nodes: Mapping[str, Node], step: Mapping[str, Sequence[str]]) -> list[str]:
    out, unfolded = [], {focus}
    waiting = _below(focus, (), step)
    while waiting:
        node, stems, is_last = waiting.pop()
        again = node in unfolded and bool(step.get(node))
        indent = "".join(stems[-_DEEPEST:])
        deeper = "…  " if len(stems) > _DEEPEST else ""
        out.append(f"{deeper}{indent}{'└─' if is_last else '├─'} {_line(nodes[node])}{' (see above)' if again else ''}")
        if node not in unfolded:
            unfolded.add(node)
            waiting += _below(node, (*stems[-_DEEPEST:], "   " if is_last else "│  "), step)
    return out


def _below(
    node: str, stems: tuple[str, ...], step: Mapping[str, Sequence[str]]
) -> list[tuple[str, tuple[str, ...], bool]]:
    """Return the nodes one step further, the first one last, as it is taken from there."""
    found = step.get(node, ())
    return [(following, stems, number == 0) for number, following in enumerate(reversed(found))]


def _line(node: Node) -> str:
    names = f"({', '.join(map(plain, node.names))})" if node.names else ""
    called = " ".join(filter(None, (heading(node), short_id(node), names)))
    return "  ".join(filter(None, (called, what(node), size(node), maker(node))))
