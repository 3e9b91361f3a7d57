"""What stands beside a node, in words that may come from anyone's manifest."""

from impart_core.base.units import human_bytes
from impart_core.lineage.graph import CHECKPOINT, Node
from impart_core.store.manifest import kind_of

CHECKPOINT_COLOUR = "#e3e8ef"
FAULT = "#f8d0cc"  # what is missing, damaged or of no known kind


def plain(text: str) -> str:
    """Return a text on one line without control characters: it can neither steer a terminal nor break a file."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def heading(node: Node) -> str:
    """Return what a node is: a checkpoint's roles, the count of collapsed parts, else its kind."""
    if node.kind == CHECKPOINT:
        return plain(" and ".join(node.roles)) or CHECKPOINT
    return plain(node.summary if node.of else node.kind)


def what(node: Node) -> str:
    """Return what tells a node from others of its kind: its settings, or where a checkpoint lay."""
    if node.kind == CHECKPOINT:
        return plain(node.location)
    return plain(node.summary) if heading(node) != plain(node.summary) else ""


def short_id(node: Node) -> str:
    """Return the beginning of a node's id; collapsed parts have none."""
    return "" if node.of else plain(node.id[:12])


def size(node: Node) -> str:
    """Return a node's bytes for people, empty where they are not known."""
    return human_bytes(node.bytes) if node.bytes else ""


def maker(node: Node) -> str:
    """Return who made a node, empty where that is not recorded."""
    return f"by {plain(node.by)}" if node.by else ""


def lines(node: Node) -> list[str]:
    """Return a node's label as one to three lines: what it is called, what it holds, id and bytes."""
    top = " ".join([heading(node), *map(plain, node.names)])
    return [
        line for line in (top, what(node), " ".join(filter(None, (short_id(node), size(node), maker(node))))) if line
    ]


def colour(node: Node) -> str:
    """Return a node's fill, on which black text is legible."""
    if node.kind == CHECKPOINT:
        return CHECKPOINT_COLOUR
    kind = kind_of(node.kind)
    return kind.colour if kind else FAULT
