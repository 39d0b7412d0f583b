"""Pictures that explain: LoRA as boxes, DoRA in two dimensions, and the graph of lesson 1.

``python examples/pictures.py`` writes ``lora.svg`` and ``dora.svg`` into ``examples/figures``, or into
another folder if it is given one.  An SVG is text, so it only takes a few functions that write a line of
it each.  Lengths are in pixels, and y points down.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import terminal

from loradora import by_hand

# Okabe and Ito's colours, which the colour-blind can tell apart.
INK, GREY, BLUE, ORANGE, GREEN = "#222222", "#777777", "#0072B2", "#D55E00", "#009E73"

#: White, so that it is legible on a dark page, too.  The tips have names that no other picture has.
PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-size="15"
 font-family="sans-serif" fill="{ink}"><rect width="100%" height="100%" fill="#fff"/>
{tips}
{body}
</svg>
"""
TIP = (
    '<marker id="minigrad-tip-{name}" refX="8" refY="5" markerWidth="10" markerHeight="10" '
    'markerUnits="userSpaceOnUse" orient="auto"><path fill="{colour}" d="M0,0 10,5 0,10z"/></marker>'
)


def page(width: float, height: float, parts: Sequence[str]) -> str:
    """Return a whole picture."""
    body = "\n".join(parts)
    colours = [c for c in (INK, GREY, BLUE, ORANGE, GREEN) if f"tip-{c[1:]})" in body]
    tips = "\n".join(TIP.format(name=colour[1:], colour=colour) for colour in colours)
    return PAGE.format(width=width, height=height, ink=INK, tips=tips, body=body)


def text(x: float, y: float, words: str, look: str = "") -> str:
    """Return words on the baseline y; what stands between two asterisks is set as mathematics."""
    parts = html.escape(words).replace("-", "−").split("*")
    parts[1::2] = [
        f'<tspan font-family="serif" font-style="italic">{p}</tspan>' for p in parts[1::2]
    ]
    return f'<text x="{x:g}" y="{y:g}" {look}>{"".join(parts)}</text>'


def arrow(path: str, colour: str = INK, look: str = 'stroke-width="2"') -> str:
    """Return a line along a path of SVG, with a tip at its end."""
    tip = f'marker-end="url(#minigrad-tip-{colour[1:]})"'
    return f'<path fill="none" stroke="{colour}" {look} {tip} d="{path}"/>'


def box(x: float, y: float, width: float, height: float, look: str) -> str:
    """Return a rectangle with this upper left corner."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {look}/>'


# ----------------------------------------------------------------------------- lesson 1


@dataclass(frozen=True)
class Graph:
    """A recorded graph: a column per distance from the leaves, a box per node.

    The derivative along each arrow stands above its end.

    Parameters
    ----------
    order
        The nodes, each after what it was made from.
    label
        Gives the name of a node, its value and its gradient.
    edges
        Gives what a node was made from, as (parent, derivative along the edge).
    """

    order: Any
    label: Any
    edges: Any

    def write(self, file: Path) -> None:
        """Write the picture as SVG."""
        file.write_text(self._repr_svg_(), encoding="utf-8")

    def __repr__(self) -> str:
        return f"Graph of {len(self.order)} nodes"

    def _repr_svg_(self) -> str:
        column: dict[Any, int] = {}
        for node in self.order:
            column[node] = 1 + max((column[parent] for parent, _ in self.edges(node)), default=-1)
        row = {n: [m for m in self.order if column[m] == column[n]].index(n) for n in self.order}
        arrows, boxes, slopes = [], [], []
        for node in self.order:
            x, y = 16 + 230 * column[node], 20 + 130 * row[node]
            name, value, gradient = self.label(node)
            boxes += [
                box(x, y, 150, 72, f'rx="8" fill="#fff" stroke="{INK}"'),
                text(x + 12, y + 20, name, 'font-weight="bold"'),
                text(x + 12, y + 40, f"value {value:+.4f}"),
                text(x + 12, y + 60, f"gradient {gradient:+.4f}"),
            ]
            parents = self.edges(node)
            for i, (parent, slope) in enumerate(parents):
                px, py = 166 + 230 * column[parent], 56 + 130 * row[parent]
                end = y + 36 + 24 * (2 * i + 1 - len(parents))
                bend = (
                    px + (x - px) // 2 - 14
                )  # late for a long arrow, which thus stays off the boxes
                path = f"M{px},{py} C{bend},{py} {x - 76},{end} {x - 54},{end} H{x - 2}"
                arrows.append(arrow(path, BLUE))
                # twice, for a long arrow may pass here: the first, broad and white, clears it away
                for look in ('stroke="#fff" stroke-width="5"', f'fill="{BLUE}"'):
                    slopes.append(text(x - 54, end - 7, f"{slope:+.2f}", look))
        width, height = 182 + 230 * max(column.values()), 112 + 130 * max(row.values())
        return page(width, height, arrows + boxes + slopes)


# ----------------------------------------------------------------------------- LoRA


def lora(inputs: int = 60, outputs: int = 40, r: int = 4, unit: float = 3) -> str:
    """Return LoRA as boxes: W0, and A and B beside it, in proportion."""
    wide, high, thin = unit * inputs, unit * outputs, unit * r
    frozen = f'fill="#EEEEEE" stroke="{INK}" stroke-dasharray="6 4"'
    trained = f'fill="{ORANGE}" stroke="{INK}"'
    middle = 'text-anchor="middle"'
    above, below, centre = 20 + high / 2, 180 + high / 2, 100 + high / 2
    W0, A, B, plus, end = 200, 200, 480, 600, 700  # from where each begins
    return page(
        740,
        330,
        [
            # x, to both sides
            text(28, centre + 5, "*x*", 'font-size="20"'),
            arrow(f"M50,{centre:g} H110 V{above:g} H{W0 - 4}"),
            arrow(f"M110,{centre:g} V{below:g} H{A - 4}"),
            text(120, above - 8, "*in*"),
            text(120, below - 8, "*in*"),
            # W0
            box(W0, above - high / 2, wide, high, frozen),
            text(W0 + wide / 2, above - 4, "*W*₀", f'font-size="20" {middle}'),
            text(W0 + wide / 2, above + 18, "frozen, (*out*, *in*)", middle),
            arrow(f"M{W0 + wide},{above:g} H{plus} V{centre - 15:g}"),
            text(W0 + wide + 12, above - 8, "*out*"),
            # A, B
            box(A, below - thin / 2, wide, thin, trained),
            text(A + wide / 2, below - 14, "*A*  trained, (*r*, *in*)", middle),
            arrow(f"M{A + wide},{below:g} H{B - 4}"),
            text((A + wide + B) / 2, below - 8, "*r*", middle),
            box(B, below - high / 2, thin, high, trained),
            text(B + thin / 2, below + high / 2 + 18, "*B*  trained, (*out*, *r*)", middle),
            arrow(f"M{B + thin},{below:g} H{plus} V{centre + 15:g}"),
            text(B + thin + 10, below - 8, "*out*"),
            text(plus + 10, below - 34, "times *s*"),
            # the sum
            f'<circle cx="{plus}" cy="{centre:g}" r="13" fill="#fff" stroke="{INK}" stroke-width="2"/>',
            text(plus, centre + 6, "+", f'font-size="20" {middle}'),
            arrow(f"M{plus + 13},{centre:g} H{end}"),
            text(plus + 50, centre - 8, "*out*", middle),
            text(end + 10, centre + 5, "*y*", 'font-size="20"'),
        ],
    )


# ----------------------------------------------------------------------------- DoRA

Vector = npt.NDArray[np.float64]
Panel = tuple[float, float, float]  # where its origin is, and the length of 1


@dataclass(frozen=True)
class Row:
    """A row of a weight under DoRA in two dimensions, and the gradients there.

    ``q`` is the cotangent of w = m v/‖v‖.  The two gradients of v are those of
    :func:`loradora.by_hand.dora_gradients`.
    """

    w0: Vector
    sBA: Vector
    m: float
    q: Vector

    @property
    def v(self) -> Vector:
        """The changed row w0 + s b A."""
        return self.w0 + self.sBA

    @property
    def w(self) -> Vector:
        """The row that the layer acts with: in the direction of v, m long."""
        return self.m * self.v / np.linalg.norm(self.v)

    def gradients(self, detach_norm: bool) -> by_hand.DoRAGradients:
        """Return them for an input and a ȳ such that Q = ȳᵀx is q."""
        W0, A, B, x = self.w0[None], np.eye(2), self.sBA[None], self.q[None]
        m, G = np.array([self.m]), np.ones((1, 1))
        return by_hand.dora_gradients(G, x, W0, A, B, m, 1.0, detach_norm=detach_norm)


ROW = Row(np.array([2.7, 0.3]), np.array([-0.7, 3.3]), 3.3, np.array([1.9, 0.35]))


def dora(row: Row = ROW) -> str:
    """Return DoRA's geometry: how B A and m move a row, and how its gradient is divided."""
    exact, held = row.gradients(detach_norm=False), row.gradients(detach_norm=True)
    origin, v, w, q = np.zeros(2), row.v, row.w, row.q
    unit_v = v / np.linalg.norm(v)
    along = exact.m[0] * unit_v
    across = q - along
    a, b = (0.15 * u / np.linalg.norm(u) for u in (along, across))  # the mark of a right angle
    bold, dashed = 'stroke-width="3"', 'stroke-width="2" stroke-dasharray="5 4"'

    def at(panel: Panel, point: Vector) -> str:
        x0, y0, unit = panel
        return f"{x0 + unit * point[0]:.1f},{y0 - unit * point[1]:.1f}"

    def vector(panel: Panel, start: Vector, change: Vector, colour: str, look: str = bold) -> str:
        return arrow(f"M{at(panel, start)} L{at(panel, start + change)}", colour, look)

    def beside(panel: Panel, point: Vector, dx: float, dy: float, words: str, colour: str) -> str:
        x0, y0, unit = panel
        x, y = x0 + unit * point[0] + dx, y0 - unit * point[1] + dy
        return text(round(x, 1), round(y, 1), words, f'fill="{colour}"')

    def circle(panel: Panel, start: float, end: float) -> str:
        """Return the part of the circle of radius m between two angles in degrees."""
        ends = (row.m * np.array([np.cos(t), np.sin(t)]) for t in np.radians([start, end]))
        first, last = (at(panel, point) for point in ends)
        path = f"M{first} A{panel[2] * row.m:g},{panel[2] * row.m:g} 0 0 0 {last}"
        return f'<path fill="none" stroke="{GREY}" stroke-dasharray="6 5" d="{path}"/>'

    one, two, three = (24, 305, 62), (201, 390, 78), (462, 406, 78)
    return page(
        800,
        410,
        [
            text(16, 28, "1  The row", 'font-weight="bold"'),
            circle(one, 0, 90),
            vector(one, origin, row.w0, GREY),
            vector(one, row.w0, row.sBA, ORANGE),
            vector(one, origin, v, INK, 'stroke-width="1.5"'),
            vector(one, origin, w, INK, 'stroke-width="4"'),
            beside(one, row.w0, -55, 32, "*w*₀", GREY),
            beside(one, row.w0 + row.sBA / 2, -48, 14, "*s b A*", ORANGE),
            beside(one, v, -20, 4, "*v*", INK),
            beside(one, w, -26, 2, "*w*", INK),
            beside(one, row.m * np.array([0, 1]), 2, -10, "radius *m*", GREY),
            text(16, 346, "*v* = *w*₀ + *s b A*: *b*, *A* turn it."),
            text(16, 370, "*w* = *m v*/‖*v*‖: *m* is its length."),
            text(276, 28, "2  The gradient *q* by *w*", 'font-weight="bold"'),
            circle(two, 35, 61),
            f'<path stroke="{INK}" stroke-width="4" d="M{at(two, 0.6 * w)} L{at(two, w)}"/>',
            vector(two, w, along, BLUE),
            vector(two, w, across, GREEN),
            vector(two, w, q, INK),
            f'<path fill="none" stroke="{INK}" '
            f'd="M{at(two, w + a)} L{at(two, w + a + b)} L{at(two, w + b)}"/>',
            beside(two, w, -22, 2, "*w*", INK),
            beside(two, w + q, 0, -8, "*q*", INK),
            beside(two, w + along, 10, 2, "along", BLUE),
            beside(two, w + across, 4, 18, "across", GREEN),
            text(276, 346, "Along: *m*'s gradient, with its sign."),
            text(276, 370, "Across: what can turn the row."),
            text(536, 28, "3  The gradient of *v*", 'font-weight="bold"'),
            circle(three, 35, 61),
            f'<path stroke="{INK}" stroke-width="1.5" d="M{at(three, 0.6 * w)} L{at(three, v)}"/>',
            vector(three, v, exact.V[0], GREEN),
            vector(three, v, held.V[0], INK),
            vector(three, v + held.V[0], exact.V[0] - held.V[0], BLUE, dashed),
            beside(three, v, -18, 2, "*v*", INK),
            beside(three, v + held.V[0], -60, -14, "held: *c q*", INK),
            beside(three, v + exact.V[0], -34, 20, "exact", GREEN),
            beside(three, v + (held.V[0] + exact.V[0]) / 2, 10, 22, "dropped", BLUE),
            text(536, 346, "Exact: *c* = *m*/‖*v*‖ times across."),
            text(536, 370, "‖*v*‖ held constant: along, too."),
            text(
                400,
                398,
                "The arrows in 2 and 3 are gradients. A training step goes against them.",
                f'fill="{GREY}" text-anchor="middle"',
            ),
        ],
    )


if __name__ == "__main__":
    parser = terminal.begin(__doc__)
    here = Path(__file__).parent / "figures"
    parser.add_argument("folder", nargs="?", type=Path, default=here, help=f"({here})")
    folder = parser.parse_args().folder
    parser.expect_directory("folder", folder)
    for name, picture in {"lora.svg": lora(), "dora.svg": dora()}.items():
        (folder / name).write_text(picture, encoding="utf-8")
        print(folder / name)
