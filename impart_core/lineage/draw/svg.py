"""A lineage as a picture: boxes in columns from parents to children, in one self-contained SVG file."""

import unicodedata
from collections.abc import Mapping
from html import escape

from impart_core.lineage.draw.labels import colour, lines
from impart_core.lineage.draw.layers import Item, layers_of
from impart_core.lineage.graph import Lineage, Node

_WIDTH, _HEIGHT, _BEND_HEIGHT = 272, 66, 12  # of a box; of the lane of an edge that passes by
_GAP_ACROSS, _GAP_DOWN, _MARGIN = 84, 14, 20
_COLUMNS = 34  # characters of a line: 7.2 pixels each in a monospaced font of 12, and room at both sides
_LINE, _BASELINE = 17, 20
_HEAD = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>'
)
Place = tuple[float, float]


def to_svg(lineage: Lineage) -> str:
    """Return a lineage as an SVG document."""
    layers = layers_of([node.id for node in lineage.nodes], lineage.edges)
    places, width, height = _places(layers)
    focus = next(node for node in lineage.nodes if node.id == lineage.focus)
    title = escape(f"Lineage of {' '.join(lines(focus))}")
    lanes: dict[int, list[Place]] = {}
    for layer in layers:
        for item in layer:
            if isinstance(item, tuple):
                lanes.setdefault(item[0], []).append(places[item])
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="monospace" font-size="12" role="img">',
        f"<title>{title}</title>",
        _HEAD,
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
        '<g fill="none" stroke="#555" stroke-width="1.2" marker-end="url(#tip)">',
        *(_edge(places[a], lanes.get(number, []), places[b]) for number, (a, b) in enumerate(lineage.edges)),
        "</g>",
        *(_box(node, places[node.id], node is focus) for node in lineage.nodes),
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def _places(layers: list[list[Item]]) -> tuple[Mapping[Item, Place], float, float]:
    """Return the left end of each item's middle line, and the picture's width and height; columns are centred."""
    heights = [
        sum(_BEND_HEIGHT if isinstance(item, tuple) else _HEIGHT for item in layer) + _GAP_DOWN * (len(layer) - 1)
        for layer in layers
    ]
    tallest = max(heights)
    places: dict[Item, Place] = {}
    for number, (layer, height) in enumerate(zip(layers, heights, strict=True)):
        x, y = _MARGIN + number * (_WIDTH + _GAP_ACROSS), _MARGIN + (tallest - height) / 2
        for item in layer:
            own = _BEND_HEIGHT if isinstance(item, tuple) else _HEIGHT
            places[item] = (x, y + own / 2)
            y += own + _GAP_DOWN
    width = 2 * _MARGIN + len(layers) * (_WIDTH + _GAP_ACROSS) - _GAP_ACROSS
    return places, width, 2 * _MARGIN + tallest


def _edge(start: Place, lanes: list[Place], end: Place) -> str:
    """Return an edge from the right side of one box to the left side of another, straight along its lanes."""
    x, y = start[0] + _WIDTH, start[1]
    path = f"M{x:g} {y:g}"
    for to_x, to_y in (*lanes, end):
        pull = _GAP_ACROSS / 2
        path += f"C{x + pull:g} {y:g} {to_x - pull:g} {to_y:g} {to_x:g} {to_y:g}"
        if (to_x, to_y) != end:
            path += f"H{to_x + _WIDTH:g}"
        x, y = to_x + _WIDTH, to_y
    backwards = ' stroke-dasharray="4 3"' if end[0] <= start[0] else ""
    return f'<path d="{path}"{backwards}/>'


def _box(node: Node, place: Place, is_focus: bool) -> str:
    """Return a box; it is an SVG of its own, so that nothing runs out of it, whatever the font."""
    x, y = place
    weight = 3 if is_focus else 1
    text = "".join(
        f'<text x="12" y="{_BASELINE + number * _LINE}" font-weight="{"normal" if number else "bold"}">'
        f"{escape(_shorten(line))}</text>"
        for number, line in enumerate(lines(node))
    )
    return (
        f'<svg x="{x:g}" y="{y - _HEIGHT / 2:g}" width="{_WIDTH}" height="{_HEIGHT}">'
        f"<title>{escape(' | '.join([*lines(node), node.id]))}</title>"
        f'<rect x="2" y="2" width="{_WIDTH - 4}" height="{_HEIGHT - 4}" rx="6" fill="{colour(node)}" '
        f'stroke="#444" stroke-width="{weight}"/>{text}</svg>'
    )


def _shorten(text: str) -> str:
    """Return a text that fits a box, its middle left out: both ends of a path tell more than its folders."""
    if sum(map(_columns, text)) <= _COLUMNS:
        return text
    head, tail, room = "", "", _COLUMNS - 1
    for first, last in zip(text, reversed(text), strict=True):
        room -= _columns(first) + _columns(last)
        if room < 0:
            break
        head, tail = head + first, last + tail
    return f"{head}…{tail}"


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
