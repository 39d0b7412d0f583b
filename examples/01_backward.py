# %% [markdown]
"""
# Lesson 1: a derivative three times: by hand, by differences, by minigrad.

What you will see: a function of two numbers, its derivative computed in three ways that agree, and the
graph that minigrad recorded on the way to the value, as text and as a picture.  (A notebook shows the
picture below the last cell; from a terminal, `--svg FILE` writes it.)

Why it matters: everything that follows, from the MLP to DoRA, works like this: record a graph, walk it
back, multiply along each path, add where paths meet.

Read next: minigrad/operation.py, what an operation is; minigrad/engine.py, the walk back; then
02_gradcheck.py.
"""

# %%
import terminal

parser = terminal.begin(__doc__)  # first, because the imports take a moment

from pathlib import Path

import numpy as np
import pictures

import minigrad as mg
from minigrad.engine import ancestry

parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the graph into FILE, too")
options = parser.parse_args()
if options.svg:
    parser.expect_file("--svg", options.svg)

# %% [markdown]
# ## A function of two numbers
#
# $L = \tanh(ab) + a^2$.  Follow it from L back: three paths lead to a, one leads to b.


# %%
def f(a, b):
    """L = tanh(ab) + a²."""
    return mg.tanh(a * b) + a * a


print("L = tanh(ab) + a^2  at a = 0.5, b = -2\n")

# %% [markdown]
# ## By hand
#
# The differential is $dL = (1 - \tanh^2(ab))\,(b\,da + a\,db) + 2a\,da$.  The factor of da is ∂L/∂a,
# and the factor of db is ∂L/∂b.


# %%
def by_hand(a, b):
    """Return (∂L/∂a, ∂L/∂b): the factors of da and db in dL."""
    slope = 1 - np.tanh(a * b) ** 2
    return slope * b + 2 * a, slope * a


# %% [markdown]
# ## By differences
#
# Move one number a little to either side, and see how much L changes.  This needs no calculus, only two
# values of L for each number.  Lesson 2 explains the size of the step.


# %%
def by_differences(a, b, h=6e-6):
    """Return (f(x + h) − f(x − h)) / 2h, once along a and once along b."""
    a, b = mg.Tensor(a), mg.Tensor(b)
    along_a = f(a + h, b) - f(a - h, b)
    along_b = f(a, b + h) - f(a, b - h)
    return along_a.item() / (2 * h), along_b.item() / (2 * h)


# %% [markdown]
# ## By minigrad
#
# A `Tensor` is a number, or an array, that remembers how it was made.  `backward` walks back from L and
# leaves ∂L/∂a in `a.grad`.  It frees the graph as it goes; `retain_graph` keeps it.

# %%
a, b = mg.Tensor(0.5, requires_grad=True), mg.Tensor(-2.0, requires_grad=True)
L = f(a, b)
L.backward(retain_graph=True)

# %% [markdown]
# The three agree.  Only the differences are off in the last digits, because of their step and of rounding
# (lesson 2).

# %%
print(f"  {'':16}{'dL/da':>18}{'dL/db':>18}")
for name, (da, db) in {
    "by hand": by_hand(0.5, -2.0),
    "by differences": by_differences(0.5, -2.0),
    "by minigrad": (a.grad, b.grad),
}.items():
    print(f"  {name:16}{da:18.14f}{db:18.14f}")

# %% [markdown]
# ## The graph
#
# `ancestry` lists what L was made from, oldest first: the leaves a and b, and a node for each result.  A
# node knows the operation and what it was given, but it keeps no number that the way back does not need.
# To show them all, we go forward once more.

# %%
order = ancestry(L)
inputs, value = {}, {}
for node in order:
    inputs[node] = [
        x if parent is None else value[parent] for x, parent in zip(node.inputs, node.parents)
    ]
    value[node] = np.asarray(node.op.forward(*inputs[node]) if node.op else node.data)


# %% [markdown]
# An operation has a rule for each argument.  A rule takes ȳ, the gradient of the result, and returns the
# gradient of the argument.  Given ȳ = 1, it returns the slope along its edge of the graph.  An argument
# that needs no gradient, such as the 3 in 3a, has no parent and no edge.


# %%
def edges(node):
    """Return (parent, ∂node/∂parent) for each parent of a node."""
    if node.op is None:
        return []
    one = np.ones_like(value[node])
    return [
        (parent, np.asarray(rule(one, value[node], *inputs[node])).item())
        for parent, rule in zip(node.parents, node.op.vjps)
        if parent is not None
    ]


# %% [markdown]
# Now back.  The engine walks the list from the other end, and so can we: each node hands its gradient to
# its parents, times the slope of the edge.  `backward` does the same with arrays in place of numbers.

# %%
gradient = dict.fromkeys(order, 0.0)
gradient[order[-1]] = 1.0
for node in reversed(order):
    for parent, slope in edges(node):
        gradient[parent] += gradient[node] * slope


# %% [markdown]
# Each line shows a name, a value and, on the right, the gradient.  The number in brackets belongs to the
# edge above it.  Where only one path leads to a node, its gradient is the one above times this number.


# %%
names = {a: "a", b: "b", order[-1]: f"L ({L.op.name})"}


def label(node):
    """Return the name of a node, its value and its gradient."""
    return names.get(node) or node.op.name, value[node].item(), gradient[node]


def draw(node, before="  ", branch="", local=""):
    """Print the graph from a node down to the leaves; a node with two uses appears twice."""
    name, number, slope = label(node)
    print(f"{before + branch + local + f'{name:9} = {number:+.4f}':46}{slope:+.4f}")
    before += {"": "", "|- ": "|  ", "`- ": "   "}[branch]
    for i, (parent, slope) in enumerate(edges(node), start=1):
        last = "`- " if i == len(edges(node)) else "|- "
        draw(parent, before, last, f"({slope:+.4f}) ")


print("\nThe recorded graph, from L down; in brackets the derivative along each edge:\n")
print(f"  {'node = value':44}gradient dL/dnode")
draw(order[-1])

# %% [markdown]
# ## Where paths meet
#
# Three paths end in a, and all three count.  This sum is the whole chain rule.

# %%
t = np.tanh(-1.0)
print("\nA gradient is the sum over all paths of the products along them.  For a:")
left, right = (1 - t * t) * -2, 0.5
print(f"  {left:+.4f} through tanh(ab),  {right:+.4f} and {right:+.4f} through a*a,", end="")
print(f"  together {a.grad:+.4f}")

# %% [markdown]
# ## The picture
#
# The same graph, from the leaves on the left to L on the right.

# %%
picture = pictures.Graph(order, label, edges)
if options.svg:
    picture.write(options.svg)
    print(f"\nThe picture is in {options.svg}")
picture
