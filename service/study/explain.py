"""One search as a picture: its tree, with the way to the best chain, and that chain as layers visited. Plain SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from models.chain import Chain

_WIDTH, _MARGIN, _TOP = 1000.0, 40.0, 60.0
_ROW = 90.0
_CELL = 26.0
_BLUE, _GREY, _PALE, _ORANGE = "#2b6cb0", "#718096", "#cbd5e0", "#c05621"


def write_picture(file: Path, result: Mapping[str, Any]) -> None:
    """Draw the result of a search that reports its tree, as POST /cola/search answers, into an SVG file.

    A node is one chain, below a chain that it is one edit away from: filled as far as its visits were rewarded, larger
    the more visits it had. The way to the best chain is drawn bold where the tree has it.
    """
    tree: Sequence[Mapping[str, Any]] = result["tree"]
    best = tuple(result["best"]["chain"])
    places = _places(tree)
    bold = _way_to(best, tree)
    lowest = max(y for _, y in places)
    shapes = [*_edges(tree, places, bold), *_nodes(tree, places, bold)]
    shapes += _chain(best, len(result["full"]["chain"]), lowest + _ROW)
    height = lowest + _ROW + _CELL * (len(result["full"]["chain"]) + 3)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="12">'
    )
    background = f'<rect width="{_WIDTH:.0f}" height="{height:.0f}" fill="white"/>'
    file.write_text("\n".join([head, background, *_titles(result, lowest), *shapes, "</svg>"]) + "\n")


def _titles(result: Mapping[str, Any], lowest: float) -> list[str]:
    best, stats = result["best"], result["stats"]
    state = "certified" if best["certified"] else "not certified"
    return [
        _text(_MARGIN, 24, f"{stats['simulations']} chains tried, {len(result['tree'])} drawn", size=15),
        _text(_MARGIN, 42, "below a chain: those one edit away; filled: share of visits rewarded", _GREY),
        _text(_MARGIN, lowest + _ROW - 22, f"best: {best['length']} visits, {best['text']!r}, {state}", size=15),
    ]


def _places(tree: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Where each node goes: a row per depth, siblings side by side, in the order of their parents."""
    rows: dict[int, list[int]] = {}
    for node in _in_order(tree):
        rows.setdefault(tree[node]["depth"], []).append(node)
    places = [(0.0, 0.0)] * len(tree)
    for row, nodes in enumerate(rows[depth] for depth in sorted(rows)):
        for place, node in enumerate(nodes):
            x = _MARGIN + (_WIDTH - 2 * _MARGIN) * (place + 0.5) / len(nodes)
            places[node] = x, _TOP + _ROW * (row + 0.5)
    return places


def _in_order(tree: Sequence[Mapping[str, Any]]) -> list[int]:
    """Every node once, parents before children."""
    order, waiting = dict.fromkeys([0]), [0]
    while waiting:
        new = [child for node in waiting for child in tree[node]["children"] if child not in order]
        order.update(dict.fromkeys(new))
        waiting = list(dict.fromkeys(new))
    return list(order)


def _way_to(best: tuple[int, ...], tree: Sequence[Mapping[str, Any]]) -> set[int]:
    """The nodes from the root to the best chain; none if it is not drawn."""
    chains = [tuple(node["chain"]) for node in tree]
    if best not in chains:
        return set()
    way = [chains.index(best)]
    while way[-1]:
        way.append(next(place for place, node in enumerate(tree) if way[-1] in node["children"]))
    return set(way)


def _edges(tree: Sequence[Mapping[str, Any]], places: list[tuple[float, float]], bold: set[int]) -> list[str]:
    edges = [(node, child) for node in range(len(tree)) for child in tree[node]["children"]]
    edges.sort(key=lambda edge: bold.issuperset(edge))
    return [_line(places[a], places[b], bold.issuperset((a, b))) for a, b in edges]


def _nodes(tree: Sequence[Mapping[str, Any]], places: list[tuple[float, float]], bold: set[int]) -> list[str]:
    most = tree[0]["visit_count"]
    shapes = []
    for place, node in enumerate(tree):
        (x, y), radius = places[place], 3 + 9 * (node["visit_count"] / most) ** 0.5
        stroke = _ORANGE if place in bold else _GREY
        told = f"{_runs(node['chain'])}: {len(node['chain'])} visits, tried {node['visit_count']} times, "
        told += f"mean reward {node['mean_reward']:.2f}"
        shapes.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_BLUE}" '
            f'fill-opacity="{min(max(node["mean_reward"], 0), 1):.2f}" '
            f'stroke="{stroke}" stroke-width="{2.5 if place in bold else 1}">'
            f"<title>{escape(told)}</title></circle>"
        )
        if place in bold or node["depth"] == 0:
            shapes.append(_text(x, y + radius + 13, str(len(node["chain"])), _ORANGE, anchor="middle"))
    return shapes


def _chain(chain: tuple[int, ...], num_layers: int, top: float) -> list[str]:
    """Layers upwards, visits to the right: skipped layers stay empty rows, repeated ones step back down."""
    width = min(_CELL, (_WIDTH - 2 * _MARGIN - 60) / max(len(chain), 1))
    shapes = []
    for layer in range(num_layers):
        y = top + _CELL * (num_layers - 1 - layer)
        colour = "black" if layer in chain else _PALE
        shapes.append(_text(_MARGIN, y + 17, f"layer {layer}", colour))
        shapes.append(f'<path d="M{_MARGIN + 60} {y + _CELL}h{width * len(chain):.1f}" stroke="{_PALE}"/>')
    for visit, layer in enumerate(chain):
        x, y = _MARGIN + 60 + width * visit, top + _CELL * (num_layers - 1 - layer)
        again = layer in chain[:visit]
        shapes.append(
            f'<rect x="{x + 1:.1f}" y="{y + 3:.1f}" width="{width - 2:.1f}" height="{_CELL - 6}" rx="3" '
            f'fill="{_ORANGE if again else _BLUE}"><title>visit {visit}: layer {layer}</title></rect>'
        )
    shapes.append(_text(_MARGIN + 60, top + _CELL * (num_layers + 1), f"{_runs(chain)} (orange: visited again)", _GREY))
    return shapes


def _runs(chain: Sequence[int]) -> str:
    return Chain(tuple(chain)).format()


def _line(start: tuple[float, float], end: tuple[float, float], is_bold: bool) -> str:
    (x, y), (to_x, to_y) = start, end
    middle = (y + to_y) / 2
    style = f'stroke="{_ORANGE}" stroke-width="2.5"' if is_bold else f'stroke="{_PALE}"'
    return (
        f'<path d="M{x:.1f} {y:.1f}C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}" '
        f'fill="none" {style}/>'
    )


def _text(x: float, y: float, text: str, colour: str = "black", size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
    )
