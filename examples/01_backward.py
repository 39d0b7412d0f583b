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
import plots

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
    """(f(x + h) − f(x − h)) / 2h for each x; lesson 2 says why this h."""
    along_a = f(a + h, b) - f(a - h, b)
    along_b = f(a, b + h) - f(a, b - h)
    return along_a.item() / (2 * h), along_b.item() / (2 * h)


def edges(node):
    """Return (parent, ∂node/∂parent) for what a node was made from: its rules, each asked for ȳ = 1."""
    if node.op is None:
        return []
    local = [float(rule(1.0, node.data, *node.inputs)) for rule in node.op.vjps]
    return list(zip(node.parents, local, strict=True))


def draw(node, label, before="  ", branch="", local=""):
    """Print the graph from the result down to the leaves; a node with two uses appears twice."""
    print(
        f"{before + branch + local + '{:9} = {:+.4f}'.format(*label(node)):46}{label(node)[2]:+.4f}"
    )
    before += {"": "", "|- ": "|  ", "`- ": "   "}[branch]
    for i, (parent, slope) in enumerate(edges(node), start=1):
        last = "`- " if i == len(edges(node)) else "|- "
        draw(parent, label, before, last, f"({slope:+.4f}) ")


def main():
    """Run the lesson."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the graph into FILE, too")
    file = parser.parse_args().svg
    if file and file.is_dir():
        parser.error(f"argument --svg: {file} is a directory")

    a, b = mg.Tensor(0.5, requires_grad=True), mg.Tensor(-2.0, requires_grad=True)
    L = f(a, b)
    L.backward(retain_graph=True)
    print("L = tanh(ab) + a^2  at a = 0.5, b = -2\n")
    print(f"  {'':16}{'dL/da':>18}{'dL/db':>18}")
    for name, (da, db) in {
        "by hand": by_hand(0.5, -2.0),
        "by differences": by_differences(0.5, -2.0),
        "by minigrad": (a.grad, b.grad),
    }.items():
        print(f"  {name:16}{da:18.14f}{db:18.14f}")

    order = ancestry(L)  # every node, oldest first; the engine walks it from the other end
    gradient = dict(zip(order, mg.grad(L, order), strict=True))
    names = {a: "a", b: "b", L: "L (add)"}

    def label(node):
        return names.get(node) or node.op.name, node.item(), gradient[node].item()

    print("\nThe recorded graph, from L down; in brackets the derivative along each edge:\n")
    print(f"  {'node = value':44}gradient dL/dnode")
    draw(L, label)
    t = np.tanh(-1.0)
    print("\nA gradient is the sum over all paths of the products along them.  For a:\n  "
          f"{(1 - t * t) * -2:+.4f} through tanh(ab),  {0.5:+.4f} and {0.5:+.4f} through a*a,  "
          f"together {a.grad:+.4f}")  # fmt: skip
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(plots.graph(order, label, edges), encoding="utf-8")
        print(f"\nThe picture is in {file}")


if __name__ == "__main__":
    main()
