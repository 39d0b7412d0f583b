"""The chain rule: one walk over the graph, newest result first.

A *leaf* is a Tensor that a user made.  Every other one is the result of an op.  If it needs a gradient,
it has a :class:`Node`, which :func:`minigrad.tensor.record` makes when it runs the forward.  The node
remembers how the result was made: the op, its *inputs* (what the forward was given), and its *parents*
(for each input the node or the leaf that it came from, or None where no gradient is needed).  These
memories form a directed acyclic graph, and the chain rule is one walk over it: start with the cotangent
of the result, and at every node hand each parent its vector-Jacobian product.  A node that was used k
times receives k cotangents, and they add up.

A node must have all of its cotangents before it passes them on.  Nodes are numbered at birth, and a node
is always younger than its parents.  So "newest first" is a safe order, and there is no need for recursion
or a topological sort.  The walk is

    cotangents = {L: 1}
    for node in newest_first:
        g = cotangents.pop(node)
        for parent, rule in zip(node.parents, node.op.vjps):
            cotangents[parent] += rule(g, y, *node.inputs)

where a sum begins at 0, and leaves, which have no op, are ignored.

For L = tanh(ab) + a², where a is number 1 and b number 2, it goes

    6  L = p + q     L̄ = 1      hands p̄ = 1 to p and q̄ = 1 to q
    5  q = a·a       q̄ = 1      hands a and a again to a
    4  p = tanh(u)   p̄ = 1      hands ū = 1 − p² to u
    3  u = a·b       ū          hands ū b to a, where it is added, and ū a to b
    2, 1  leaves     keep their sums: b̄ = ū a,  ā = a + a + ū b

A node keeps only what its rules read.  tanh keeps its result p but not u, and p + q keeps nothing, so the
value of u is gone as soon as nobody else holds it.

Everything that belongs to one pass lives in local variables of that pass, so threads can walk at the same
time, even over shared leaves.  The exception is the last step of :func:`backward`: if two threads add to
the ``.grad`` of one leaf at the same moment, one of the sums may be lost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from itertools import repeat
from numbers import Number
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy import ndarray

from minigrad.adding import Placed
from minigrad.scopes import at_once, quietly
from minigrad.sums import total

if TYPE_CHECKING:
    from minigrad.operation import Array, Op
    from minigrad.tensor import Tensor

#: Where a gradient flows to: the node of a result, or a leaf.
Source: TypeAlias = "Node | Tensor"

next_birth = itertools.count(1).__next__


class Outline:
    """The shape and the dtype of an array whose numbers are not kept.

    Raises
    ------
    TypeError
        If the numbers are asked for: a rule reads a parameter that it has marked as not read.
    """

    __slots__ = "dtype", "shape"

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        raise TypeError(
            f"the numbers of an array of shape {self.shape} were not kept: a rule reads a parameter that "
            "has an underscore in front, which says that it is not read"
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Number, ndarray)):
            self.__array__()
        return self is other

    __hash__ = object.__hash__


class Node(Outline):
    """How a result ``y`` was made, as far as the way back needs to know.

    Attributes
    ----------
    op, inputs, parents
        The operation, what its forward was given, and where the gradients flow.  A result or a constant
        that no rule reads is replaced by its outline.  Inputs and parents are None once a walk has
        released them.
    rules
        The rules of the inputs that need a gradient, each with the number of its input.
    y
        The result, or None if no rule reads it.
    """

    __slots__ = "__weakref__", "_birth", "inputs", "op", "parents", "rules", "y"

    inputs: Any
    parents: Any

    def __init__(
        self, op: Op[...], y: Array, inputs: list[Any], parents: list[Source | None], key: int
    ) -> None:
        self.shape = y.shape
        self.dtype = y.dtype
        self.op = op
        # key has a bit for each input that needs a gradient.  For each key, op.plans says which rules
        # these inputs have, which inputs none of the rules reads, and whether one of them reads y
        self.rules, unread, reads_y = op.plans[key]
        self.y = y if reads_y else None
        for i in unread:
            parent, a = parents[i], inputs[i]
            if type(parent) is Node:
                inputs[i] = parent  # a node is the outline of its result
            elif parent is None and type(a) is ndarray:
                inputs[i] = Outline(a.shape, a.dtype)
        self.inputs = inputs
        self.parents = parents
        self._birth = next_birth()

    def __repr__(self) -> str:
        return f"<Node of {self.op.name}, shape {self.shape}, {self.dtype}>"


def ancestry(root: Tensor, since: int = 0) -> list[Source]:
    """Return the node of ``root``, and every node and leaf that it was computed from, oldest first.

    Only those born with the number ``since`` or later; the walk ends there.

    Raises
    ------
    RuntimeError
        If an earlier ``backward()`` has released a part of the graph.
    """
    found: list[Any] = [root._node or root]
    seen = set(found)
    for node in found:  # the list grows while it is walked
        if type(node) is not Node or node._birth <= since:
            continue
        parents = node.parents
        if parents is None:
            raise RuntimeError(
                "the graph of this result was released by an earlier backward(); "
                "pass retain_graph=True to that call to walk it again"
            )
        for parent in parents:
            if parent is not None and parent not in seen and parent._birth >= since:
                seen.add(parent)
                found.append(parent)
    found.sort(key=attrgetter("_birth"))
    return found


def sweep(
    order: list[Source],
    seed: Array,
    wanted: Collection[Source] = (),
    recorded: Callable[[Node], tuple[Any, Any]] | None = None,
    release: bool = False,
) -> dict[Any, Array]:
    """Walk back through ``order``, newest first; return the cotangents of its leaves and of ``wanted``.

    ``seed`` is the cotangent of the last member of ``order``.  Cotangents flow only between members, and
    the walk empties the list.  A rule may return a :class:`~minigrad.adding.Placed`, a cotangent that is
    mostly zeros.  It is added where it belongs, without making the zeros.

    ``recorded`` gives the result and the inputs of a node as Tensors; fed with Tensors, the rules make a
    graph of their own.  With ``release`` each node forgets how it was made once the walk has passed it.
    """
    # nodes whose cotangent this walk has made itself, so nobody else holds it
    own: set[Source] = set()
    cotangents: dict[Any, Any] = dict.fromkeys(order)
    cotangents[order[-1]] = seed
    while order:
        node: Any = order.pop()
        # a leaf, or one of the xs of gradients(), where ancestry stopped: it may have been released
        if type(node) is not Node or node.parents is None:
            continue
        parents = node.parents
        g = cotangents[node] if node in wanted else cotangents.pop(node)
        y, inputs = recorded(node) if recorded else (node.y, node.inputs)
        for i, rule in node.rules:
            parent = parents[i]
            if parent in cotangents:  # else it is outside of ``order``
                c, others = rule(g, y, *inputs), cotangents[parent]
                if type(c) is Placed:
                    c, others = c.added_to(others, in_place=parent in own), None
                    own.add(parent)
                elif (
                    type(c) is not ndarray or c.shape != parent.shape or c.dtype is not parent.dtype
                ):
                    c = fit(c, parent, recorded is not None, node.op, i)
                # not +=, because c may be g itself, or an array that another node has
                cotangents[parent] = c if others is None else others + c
                del c, others  # or they would outlive this step of the walk
        if release:
            node.y = node.inputs = node.parents = None
    return cotangents  # those of the leaves and of ``wanted``: all others were popped


def fit(g: Array, a: Source, record: bool, op: Op[...], i: int) -> Array:
    """Return the cotangent ``g`` in the shape and dtype of ``a``, the argument ``i`` of ``op``.

    Broadcasting repeats an argument, so its cotangent is the sum over the repetitions: over the axes that
    were put in front and over those that were stretched from length 1.

    Raises
    ------
    TypeError
        If ``g``, which a rule has returned, is not an array, number or Tensor of real numbers.
    ValueError
        If it has a shape that ``a`` cannot be broadcast to.
    """
    if type(g) is not ndarray:
        g = _as_array(g, record, op, i)
    if g.dtype.kind not in "fiub":
        raise TypeError(f"{_returned(op, i)}n array of dtype {g.dtype}, not of real numbers")
    if g.shape != a.shape:
        new = g.ndim - a.ndim
        axes = list(range(new))
        for axis, length in enumerate(a.shape, new):
            if new < 0 or length not in (1, g.shape[axis]):
                raise ValueError(
                    f"{_returned(op, i)}n array of shape {g.shape}, not one to sum to {a.shape}"
                )
            if length != g.shape[axis]:
                axes.append(axis)
        summed = total(g, tuple(axes)) if type(g) is ndarray else g.sum(axis=tuple(axes))
        g = summed.reshape(a.shape)
    return g if g.dtype is a.dtype else g.astype(a.dtype)


def _as_array(g: Any, record: bool, op: Op[...], i: int) -> Array:
    """Return a number, or a constant Tensor from a rule that calls an op, as an array."""
    if isinstance(g, (int, float, np.generic)) or (hasattr(g, "__array__") and not record):
        return np.asarray(g)
    if not hasattr(g, "dtype"):
        raise TypeError(f"{_returned(op, i)} {type(g).__name__}, not an array")
    return g


def _returned(op: Op[...], i: int) -> str:
    return f"the rule of {op.name} for argument {i} returned a"


def backward(root: Tensor, g: Array, retain_graph: bool) -> None:
    """Add the gradient of every leaf that ``root`` was computed from to its ``.grad``.

    Unless ``retain_graph`` is true, each node forgets how it was made as soon as the walk has passed it.
    No ``.grad`` is written before all are known, and then all are written at once.

    A leaf is given the array that a rule has made for it, without a copy.  It gets a copy where somebody
    else may hold that array: of a view, of another leaf's gradient, and of ``g``.
    """
    taken = {id(g)}  # arrays that somebody else holds
    order = ancestry(root)
    for leaf in order:
        if (
            not isinstance(leaf, Node)
            and leaf.grad is not None
            and np.shape(leaf.grad) != leaf.shape
        ):
            raise ValueError(
                f"a leaf of shape {leaf.shape} has been given a .grad of shape {np.shape(leaf.grad)}"
            )
    # quietly: infinity and NaN are values here, and NumPy is not to warn of them
    found, sums = quietly(sweep, order, g, (), None, not retain_graph), []
    for leaf, c in found.items():
        nobodys = c.base is None and c.flags.writeable and id(c) not in taken
        taken.add(id(c))
        if leaf.grad is None:
            sums.append(c if nobodys and c.dtype is leaf.dtype else np.array(c, leaf.dtype))
        else:
            sums.append(np.asarray(leaf.grad + c, leaf.dtype))
    # leaf.grad = sum, for all of them or, should Ctrl-C come, for none
    write_all = at_once(object.__setattr__, found, repeat("grad"), sums)
    write_all()


def gradients(
    root: Tensor, g: Array, xs: Sequence[Tensor], recorded: Callable[[Node], tuple[Any, Any]] | None
) -> list[Array | None]:
    """Return the gradient of ``root`` for each of ``xs``, None where it does not depend on it.

    Rules are called only for what lies between ``xs`` and ``root``, and no tensor is written to.
    """
    sources = [x._node or x for x in xs]
    wanted, between = set(sources), set(sources)
    order = ancestry(root, since=min((x._birth for x in sources), default=0))
    for node in order:
        if not between.isdisjoint(node.parents or ()):  # a leaf has none
            between.add(node)
    order = [node for node in order if node in between]
    found = quietly(sweep, order, g, wanted, recorded) if order else {}
    return [found.get(x) for x in sources]
