"""Lesson 1: a derivative three times: by hand, by differences, by minigrad.

What you will see: a function of two numbers, its derivative computed in three ways that agree, and the
graph that minigrad recorded on the way to the value, as text and, with ``--svg FILE``, as a picture.

Why it matters: everything that follows, from the MLP to DoRA, is this: record a graph, walk it back,
multiply along each path, add where paths meet.

Read next: minigrad/ops.py (one rule per argument), minigrad/engine.py (the walk); then 02_gradcheck.py.
"""

import argparse
from pathlib import Path

import numpy as np

import minigrad as mg
from minigrad.engine import ancestry


def f(a, b):
    """L = tanh(ab) + a²: three paths lead from L back to a, one to b."""
    return mg.tanh(a * b) + a * a


def by_hand(a, b):
    """Read off dL = (1 − tanh²(ab)) (b da + a db) + 2a da the factors of da, db."""
    slope = 1 - np.tanh(a * b) ** 2
    return slope * b + 2 * a, slope * a


def by_differences(a, b, h=6e-6):
    """(f(x + h) − f(x − h)) / 2h: two values of f for each of the two derivatives."""
    along_a = f(a + h, b) - f(a - h, b)
    along_b = f(a, b + h) - f(a, b - h)
    return along_a.item() / (2 * h), along_b.item() / (2 * h)


def parents_of(node):
    """Return the nodes that a node was made from; a leaf has none (minigrad/engine.py)."""
    return node._parents


def draw(node, label, before="  ", branch=""):
    """Print the graph from the result down to the leaves; a node with two uses appears twice."""
    print(before + branch + "{:4} = {:+.4f}   gradient {:+.4f}".format(*label(node)))
    before += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
    for i, parent in enumerate(parents_of(node), start=1):
        draw(parent, label, before, "└─ " if i == len(parents_of(node)) else "├─ ")


def svg(order, label):
    """Return the graph as a picture: one column per distance from the leaves, one box per node."""
    column = {}
    for node in order:
        column[node] = 1 + max((column[p] for p in parents_of(node)), default=-1)
    row = {n: [m for m in order if column[m] == column[n]].index(n) for n in order}
    arrows, boxes = "", ""
    for node in order:
        x, y = 20 + 240 * column[node], 20 + 100 * row[node]
        name, value, gradient = label(node)
        boxes += (
            f'<rect x="{x}" y="{y}" width="160" height="72" rx="8"/><text x="{x + 14}" y="{y}">'
        )
        for line in (
            f"<tspan class='b'>{name}</tspan>",
            f"value {value:+.4f}",
            f"gradient {gradient:+.4f}",
        ):
            boxes += f'<tspan x="{x + 14}" dy="1.35em">{line}</tspan>'
        boxes += "</text>"
        for i, parent in enumerate(parents_of(node)):
            px, py = 180 + 240 * column[parent], 56 + 100 * row[parent]
            end = y + 36 + 16 * (2 * i + 1 - len(parents_of(node)))
            arrows += f'<path d="M{px},{py} C{x - 30},{py} {x - 60},{end} {x - 5},{end}"/>'
    size = f"{200 + 240 * max(column.values())} {112 + 100 * max(row.values())}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}">'
        '<marker id="tip" refX="6" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 8,4 0,8z" style="fill:#0072b2;stroke:none"/></marker><style>.b{font-weight:bold}'
        "text{font:14px sans-serif}"
        "rect{fill:#fff;stroke:#333}path{fill:none;stroke:#0072b2;stroke-width:2;marker-end:url(#tip)}"
        f'</style><rect width="100%" height="100%" style="stroke:none"/>{arrows}{boxes}</svg>\n'
    )


def main():
    """Run the lesson."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the graph into FILE, too")
    file = parser.parse_args().svg

    a, b = mg.Tensor(0.5, requires_grad=True), mg.Tensor(-2.0, requires_grad=True)
    L = f(a, b)
    L.backward(retain_graph=True)
    print("L = tanh(ab) + a²  at a = 0.5, b = −2\n")
    print(f"  {'':16}{'∂L/∂a':>18}{'∂L/∂b':>18}")
    for name, (da, db) in {
        "by hand": by_hand(0.5, -2.0),
        "by differences": by_differences(0.5, -2.0),
        "by minigrad": (a.grad, b.grad),
    }.items():
        print(f"  {name:16}{da:18.14f}{db:18.14f}")

    order = ancestry(L)  # every node, oldest first; the engine walks it from the other end
    gradient = dict(zip(order, mg.grad(L, order), strict=True))
    names = {a: "a", b: "b", L: "L"}

    def label(node):
        return names.get(node) or node._op.name, node.item(), gradient[node].item()

    print("\nThe recorded graph, from L down; 'gradient' is ∂L/∂(that node):\n")
    draw(L, label)
    t = np.tanh(-1.0)
    print(f"\na is used three times, and its gradient is the sum over the three paths:\n  "
          f"{(1 - t * t) * -2:+.4f} through tanh(ab),  {0.5:+.4f} and {0.5:+.4f} through a·a,  "
          f"together {a.grad:+.4f}")  # fmt: skip
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(svg(order, label), encoding="utf-8")
        print(f"\nThe picture is in {file}")


if __name__ == "__main__":
    main()
