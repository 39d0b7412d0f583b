"""Random graphs, grown step by step, against an oracle that differentiates in the other direction.

The oracle goes forward.  Every node carries its value and its Jacobian for each leaf, propagated on plain
arrays.  It shares nothing with the engine that it judges: it has no graph, no order and no cotangents.
It need not undo broadcasting, because a tangent broadcasts by itself.  It also predicts, from the
history of a node, which backward passes must be refused because an earlier one released the graph.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule
from numpy.testing import assert_allclose

import minigrad as mg

SHAPES = st.sampled_from([(), (3,), (1, 3), (2, 1), (2, 3)])  # any two of them broadcast
SEEDS = st.integers(0, 2**32 - 1)


@dataclass(eq=False)
class Node:
    """A Tensor under test and, beside it, what the oracle knows."""

    tensor: mg.Tensor | None
    value: np.ndarray
    tangents: dict[int, np.ndarray]  # number of a leaf → Jacobian (leaf size, *value shape)
    history: frozenset[int]  # numbers of the recorded results that a walk from here passes


def total(da):
    return da.reshape(len(da), -1).sum(axis=1)


# op: the function under test, the same in NumPy, and its differential
UNARY = {
    "neg": (mg.neg, np.negative, lambda a, da: -da),
    "tanh": (mg.tanh, np.tanh, lambda a, da: da / np.cosh(a) ** 2),
    "bump": (
        lambda a: 1 / (a * a + 1),
        lambda a: 1 / (a * a + 1),
        lambda a, da: -2 * a * da / (a * a + 1) ** 2,
    ),
    "bell": (
        lambda a: mg.exp(-a * a),
        lambda a: np.exp(-a * a),
        lambda a, da: -2 * a * np.exp(-a * a) * da,
    ),
    "sum": (mg.sum, np.sum, lambda a, da: total(da)),
    "length": (
        lambda a: mg.norm(1 + a * a),
        lambda a: np.sqrt(np.sum((1 + a * a) ** 2)),
        lambda a, da: total((1 + a * a) * 2 * a * da) / np.sqrt(np.sum((1 + a * a) ** 2)),
    ),
}
BINARY = {
    "add": (mg.add, np.add, lambda a, b, da, db: da + db),
    "sub": (mg.sub, np.subtract, lambda a, b, da, db: da - db),
    "damp": (
        lambda a, b: a * mg.tanh(b),
        lambda a, b: a * np.tanh(b),
        lambda a, b, da, db: da * np.tanh(b) + a * db / np.cosh(b) ** 2,
    ),
    "div": (
        lambda a, b: a / (b * b + 1),
        lambda a, b: a / (b * b + 1),
        lambda a, b, da, db: da / (b * b + 1) - 2 * a * b * db / (b * b + 1) ** 2,
    ),
}


class RandomGraphs(RuleBasedStateMachine):
    """Leaves, ops on whatever exists, and backward passes from anywhere in any order."""

    nodes = Bundle("nodes")

    def __init__(self):
        super().__init__()
        self.leaves = []
        self.expected = []  # the gradient that each leaf should have by now
        self.released = set()
        self.births = 0

    # -- growing

    @initialize(target=nodes, shape=SHAPES, seed=SEEDS)
    def first_leaf(self, shape, seed):
        return self.new_leaf(shape, seed)

    @rule(target=nodes, shape=SHAPES, seed=SEEDS)
    def another_leaf(self, shape, seed):
        return self.new_leaf(shape, seed)

    def new_leaf(self, shape, seed):
        value = np.random.default_rng(seed).uniform(-2, 2, shape)
        tensor = mg.Tensor(value, requires_grad=True)
        self.leaves.append(tensor)
        self.expected.append(np.zeros(shape))
        identity = np.eye(value.size).reshape(value.size, *shape)
        return Node(tensor, value, {len(self.leaves) - 1: identity}, frozenset())

    @rule(target=nodes, name=st.sampled_from(sorted(UNARY)), a=nodes, record=st.booleans())
    def unary(self, name, a, record):
        f, in_numpy, differential = UNARY[name]
        with contextlib.nullcontext() if record else mg.no_grad():
            tensor = f(a.tensor)
        tangents = {leaf: differential(a.value, da) for leaf, da in a.tangents.items()}
        return self.result(tensor, in_numpy(a.value), tangents if record else {}, a)

    @rule(target=nodes, name=st.sampled_from(sorted(BINARY)), a=nodes, b=nodes)
    def binary(self, name, a, b):
        f, in_numpy, differential = BINARY[name]
        value = in_numpy(a.value, b.value)
        tangents = {}
        for leaf in a.tangents.keys() | b.tangents.keys():
            da, db = self.tangent(a, leaf, value.ndim), self.tangent(b, leaf, value.ndim)
            tangents[leaf] = differential(a.value, b.value, da, db)
        return self.result(f(a.tensor, b.tensor), value, tangents, a, b)

    @rule(target=nodes, a=nodes)
    def split(self, a):
        """Two results of one node: its rows in reverse, and the first of them alone."""
        parts = (slice(None, None, -1), 0) if a.value.ndim else (None, ...)
        return multiple(*(self.part(a, index) for index in parts))

    def part(self, a, index):
        tangents = {leaf: da[:, index] for leaf, da in a.tangents.items()}
        return self.result(a.tensor[index], a.value[index], tangents, a)

    @rule(target=nodes, a=nodes)
    def detach(self, a):
        return self.result(a.tensor.detach(), a.value, {})

    @rule(a=consumes(nodes))
    def drop(self, a):
        a.tensor = None

    def tangent(self, a, leaf, ndim):
        """Return the tangent with the axes that broadcasting puts in front of the value's own."""
        size = self.leaves[leaf].size
        da = a.tangents.get(leaf, np.zeros((size, *a.value.shape)))
        return da.reshape(size, *[1] * (ndim - a.value.ndim), *a.value.shape)

    def result(self, tensor, value, tangents, *parents):
        value = np.asarray(value)
        assert_allclose(tensor.data, value, rtol=1e-9, atol=1e-9, strict=True)
        assert tensor.requires_grad == bool(tangents)
        tangents = {
            leaf: np.broadcast_to(da, (len(da), *value.shape)) for leaf, da in tangents.items()
        }
        if not tangents:
            return Node(tensor, value, {}, frozenset())
        self.births += 1
        history = frozenset({self.births}).union(*(a.history for a in parents))
        return Node(tensor, value, tangents, history)

    # -- going back

    @rule(a=nodes, seed=SEEDS, retain=st.booleans())
    def backward(self, a, seed, retain):
        upstream = np.random.default_rng(seed).uniform(-2, 2, a.value.shape)
        with self.refusal(a):
            a.tensor.backward(upstream, retain_graph=retain)
            if not retain:
                self.released |= a.history
            for leaf in a.tangents:
                self.expected[leaf] = self.expected[leaf] + self.gradient(a, leaf, upstream)
        self.check_leaves()

    @rule(a=nodes, seed=SEEDS, create_graph=st.booleans())
    def grad(self, a, seed, create_graph):
        upstream = np.random.default_rng(seed).uniform(-2, 2, a.value.shape)
        with self.refusal(a):
            found = mg.grad(a.tensor, self.leaves, upstream, create_graph)
            for leaf, g in enumerate(found):
                self.compare(g.data, self.gradient(a, leaf, upstream))
        self.check_leaves()

    def refusal(self, a):
        """Expect the error that a walk from ``a`` must raise now, if any."""
        if not a.tangents:
            return pytest.raises(RuntimeError, match="requires a gradient")
        if a.history & self.released:
            return pytest.raises(RuntimeError, match="retain_graph=True")
        return contextlib.nullcontext()

    def gradient(self, a, leaf, upstream):
        shape = self.leaves[leaf].shape
        if leaf not in a.tangents:
            return np.zeros(shape)
        return total(upstream * a.tangents[leaf]).reshape(shape)

    def check_leaves(self):
        for leaf, expected in zip(self.leaves, self.expected, strict=True):
            self.compare(np.zeros(leaf.shape) if leaf.grad is None else leaf.grad, expected)

    def compare(self, found, expected):
        size = max([1.0, *(np.abs(e).max() for e in self.expected)])
        assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * size, strict=True)


TestRandomGraphs = RandomGraphs.TestCase
TestRandomGraphs.settings = settings(
    max_examples=4 * settings().max_examples, stateful_step_count=30
)
