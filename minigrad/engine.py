"""Chapter 2: the chain rule.

A recorded tensor remembers how it was made: the op, its *inputs* (what the forward was given), and its
*parents* (for each input the Tensor whose value it is, or None where no gradient is needed).
These memories form a directed acyclic graph, and the chain rule is one walk over it: start with the
cotangent of the result, and at every tensor hand each parent its vector-Jacobian product.  A tensor
that was used k times receives k cotangents, and they add up.

A tensor must have all of its cotangents before it passes them on.  Tensors are numbered at birth and
are younger than their parents, so "newest first" is such an order: no recursion, no topological sort.
For L = tanh(ab) + a², where a is number 0 and b number 1, the walk goes

    5  L = p + q     L̄ = 1      hands p̄ = 1 to p and q̄ = 1 to q
    4  q = a·a       q̄ = 1      hands a and a again to a
    3  p = tanh(u)   p̄ = 1      hands ū = 1 − p² to u
    2  u = a·b       ū          hands ū b to a, where it is added, and ū a to b
    1, 0  leaves     keep their sums: b̄ = ū a,  ā = a + a + ū b

Everything that belongs to one pass lives in local variables of that pass.  So threads can walk at the
same time, also over shared leaves.  Only the last step of :func:`backward` is not for two threads at a
time: of two that add to the ``.grad`` of one leaf, one may be lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from minigrad import ops
from minigrad.scopes import at_once, quietly

if TYPE_CHECKING:
    from minigrad.ops import Array, Op
    from minigrad.tensor import Tensor


def ancestry(root: Tensor, since: int = 0) -> list[Tensor]:
    """Return ``root`` and every tensor needing a gradient that it was computed from, oldest first.

    Only those born with the number ``since`` or later; the walk ends there.

    Raises
    ------
    RuntimeError
        If an earlier ``backward()`` has released a part of the graph.
    """
    found, seen = [root], {root}
    for tensor in found:  # the list grows while it is walked
        made = tensor._made
        if made is None or tensor._birth <= since:
            continue
        _, _, parents = made
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
    order: list[Tensor],
    seed: Array,
    wanted: Collection[Tensor] = (),
    record: bool = False,
    release: bool = False,
) -> dict[Tensor, Array]:
    """Walk back through ``order``, newest first; return the cotangents of its leaves and of ``wanted``.

    ``seed`` is the cotangent of the last one.  Cotangents flow only between tensors of ``order``, which
    is emptied on the way.  With ``record`` the rules are fed Tensors, so that what they compute is a
    graph, too; with ``release`` each tensor forgets how it was made once the walk has passed it.
    """
    cotangents: dict[Any, Array] = dict.fromkeys(order)
    cotangents[order[-1]] = seed
    while order:
        tensor = order.pop()
        made = tensor._made
        if made is None:  # a leaf
            continue
        op, inputs, parents = made
        if parents is None:  # one of the xs of gradients(), released before: the walk ends there
            continue
        g = cotangents[tensor] if tensor in wanted else cotangents.pop(tensor)
        y: Array = tensor._data
        if record:
            y, inputs = tensor, _as_tensors(inputs, parents)
        rules: Sequence[Any] = op.rules(len(parents)) if op.each else op.vjps
        for i, (rule, parent) in enumerate(zip(rules, parents)):
            if parent in cotangents:  # which holds the tensors of this walk, and so never None
                a, c = parent._data, rule(g, y, *inputs)
                if type(c) is not ndarray or c.shape != a.shape or c.dtype is not a.dtype:
                    c = fit(c, a, record, op, i)
                others = cotangents[parent]
                # not +=, because c may be g itself, or an array that another tensor has
                cotangents[parent] = c if others is None else others + c
        if release:
            tensor._made = op, None, None
    return cotangents  # those of the leaves and of ``wanted``: all others were popped


def _as_tensors(inputs: Sequence[Any], parents: Sequence[Tensor | None]) -> Sequence[Any]:
    """Return what a forward was given, with the tensors that need a gradient in place of their arrays.

    Raises
    ------
    RuntimeError
        If such a tensor has been assigned another value since.
    """
    known = []
    for x, parent in zip(inputs, parents):
        if parent is not None and parent._data is not x:
            raise RuntimeError(
                f"a leaf of shape {parent.shape} was assigned to after it was used: the graph of "
                "its gradient would mix the old and the new value"
            )
        known.append(x if parent is None else parent)
    return known


def fit(g: Array, a: Array, record: bool, op: Op[...], i: int) -> Array:
    """Return the cotangent ``g`` in the shape and dtype of ``a``, the argument ``i`` of ``op``.

    A broadcast argument was repeated: its cotangent is the sum over the repetitions, that is over the
    axes that broadcasting put in front and those that it stretched from length 1.

    Raises
    ------
    TypeError
        If ``g``, which a rule has made, is no array (or number, or Tensor) of real numbers.
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
        summed = ops.total(g, tuple(axes)) if type(g) is ndarray else g.sum(axis=tuple(axes))
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

    Unless ``retain_graph``, each tensor forgets how it was made as soon as the walk has passed it.  No
    ``.grad`` is written before all are known, and then all are written at once.

    A leaf is given the very array that a rule has made for it; it gets a copy of what may be somebody
    else's: a view, another leaf's, or ``g``.
    """
    taken = {id(g)}  # arrays that somebody has already
    order = ancestry(root)
    for leaf in order:
        if leaf.grad is not None and np.shape(leaf.grad) != leaf.shape:
            raise ValueError(
                f"a leaf of shape {leaf.shape} has been given a .grad of shape {np.shape(leaf.grad)}"
            )
    found, sums = quietly(sweep, order, g, (), False, not retain_graph), []
    for leaf, c in found.items():
        nobodys = c.base is None and c.flags.writeable and id(c) not in taken
        taken.add(id(c))
        if leaf.grad is None:
            sums.append(c if nobodys and c.dtype is leaf.dtype else np.array(c, leaf.dtype))
        else:
            sums.append(np.asarray(leaf.grad + c, leaf.dtype))
    at_once(object.__setattr__, found, repeat("grad"), sums)()


def gradients(root: Tensor, g: Array, xs: Sequence[Tensor], record: bool) -> dict[Tensor, Array]:
    """Return the gradient of ``root`` for each of ``xs`` that it depends on; write to no tensor.

    Only what lies between ``xs`` and ``root`` is walked over.
    """
    wanted, between = set(xs), set(xs)
    order = ancestry(root, since=min((x._birth for x in xs), default=0))
    for tensor in order:
        if not between.isdisjoint(tensor.parents):
            between.add(tensor)
    order = [tensor for tensor in order if tensor in between]
    if not order:
        return {}
    return quietly(sweep, order, g, wanted, record)
