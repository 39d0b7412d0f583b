"""What every operation costs, forward and backward, beside PyTorch and beside NumPy by hand.

    python tests/benchmarks/ops.py [--quick] [--size 1000x1000] [pow softmax "x[rows" ...]

Each table is for one size.  Each row is one way to use an operation.

- The forward is called as in training, and recorded: every array of floats wants a gradient.
- The backward is ``y.backward(g)`` alone.  The graph is kept, and the ``.grad`` of the leaves is removed
  before the next time.
- PyTorch does the same.  Before any timing, both must agree.
- "NumPy" is the floor: what you write by hand if you know the derivative and need no graph.  These
  formulas share nothing with the rules of the engine, so a rule that takes a detour does not raise its
  floor.  Here, too, each gradient is an array of its own: if it is just ``g``, it is a copy.

Times are medians in µs; "/torch" and "/NumPy" are ours in proportion.  A ✓ means at most 1.5 of PyTorch's
time, or at most 1.3 of NumPy's.  Whatever has a ✗ is listed again at the end.  An operation without a row
is an error.
"""

from one_thread import settle  # isort: split

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timing import Samples, Work, interleaved, table

import minigrad as mg

Array = np.ndarray
Axis = int | None
Shape = tuple[int, ...]

#: From a size to the arguments: arrays of floats, which want gradients, and others, which do not.
#: None if there is nothing to measure at this size.
Draw = Callable[[np.random.Generator, Shape], "Sequence[Array] | None"]

SIZES: dict[str, Shape] = {
    "16": (4, 4),
    "64x256": (64, 256),
    "1000x1000": (1000, 1000),
    "32x64x4x16": (32, 64, 4, 16),
}
QUICK = "16", "64x256"

OF_TORCH, OF_NUMPY = 1.5, 1.3


# ----------------------------------------------------------------------------- what goes in


def shaped(shapes: Callable[[Shape], Sequence[Shape]]) -> Draw:
    """Return how to draw normally distributed numbers in the shapes that a size leads to."""
    return lambda rng, s: [rng.standard_normal(shape, np.float32) for shape in shapes(s)]


one = shaped(lambda s: [s])
two = shaped(lambda s: [s, s])
with_row = shaped(lambda s: [s, s[-1:]])
with_two_rows = shaped(lambda s: [s, s[-1:], s[-1:]])
with_column_first = shaped(lambda s: [s[-2:-1], s])
with_matrix = shaped(lambda s: [s, (*s[:-2], s[-1], s[-2])])
with_layer = shaped(lambda s: [s, (s[-1], s[-1]), s[-1:]])
with_last_axis_1 = shaped(lambda s: [(*s, 1)])


def two_flat(rng: np.random.Generator, shape: Shape) -> Sequence[Array]:
    """Draw two vectors of positive numbers, so that no digits cancel in their product."""
    return [np.abs(rng.standard_normal(math.prod(shape), np.float32)) for _ in range(2)]


def positive(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return [rng.uniform(0.5, 1.5, s).astype(np.float32)]


def two_positive(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return *positive(rng, s), *positive(rng, s)


def with_mask(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return *one(rng, s), rng.random(s) < 0.5


def mask_and_two(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return rng.random(s) < 0.5, *two(rng, s)


def row_and_whole(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return rng.standard_normal(s[-1], np.float32), np.zeros(s, bool)


def with_places(axis: int) -> Draw:
    """Draw as many indices along an axis as it is long.  Some come twice, some not at all."""
    return lambda rng, s: (*one(rng, s), rng.integers(s[axis], size=s[axis]))


def with_order(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return *one(rng, s), rng.permutation(s[0])


def with_pairs(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return *one(rng, s), *(rng.integers(n, size=s[0]) for n in s[:2])


def with_triangle(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    return *one(rng, s), np.tri(*s[-2:], dtype=bool)


def with_labels(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    rows = math.prod(s[:-1])
    return *one(rng, (rows, s[-1])), rng.integers(s[-1], size=rows)


def with_ignored_labels(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    x, labels = with_labels(rng, s)
    labels[::4] = -100
    return x, labels


def with_weights_and_labels(rng: np.random.Generator, s: Shape) -> Sequence[Array]:
    x, labels = with_labels(rng, s)
    return x, *one(rng, labels.shape), labels


def parts(n: int) -> Draw:
    """Draw n parts of 16 numbers, or of a million together."""
    of_size = {(4, 4): [(4, 4)] * n, (1000, 1000): [(1_000_000 // n,)] * n}
    return lambda rng, s: shaped(of_size.get)(rng, s) if s in of_size else None


def along(axis: Axis) -> Draw:
    """Draw an array if it has the axis."""
    return lambda rng, s: one(rng, s) if axis is None or axis < len(s) else None


# ----------------------------------------------------------------------------- by hand


def over_rows(g: Array) -> Array:
    """Sum over all axes but the last."""
    return np.einsum("ij->j", g.reshape(-1, g.shape[-1]))


def back(g: Array, axis: Axis) -> Array:
    """Put back the axis that a reduction took away."""
    return g if axis is None else np.expand_dims(g, axis)


def count(x: Array, axis: Axis) -> int:
    return x.size if axis is None else x.shape[axis]


def deviation(x: Array, axis: Axis) -> Array:
    return x - x.mean(axis, keepdims=True)


def sum_of_squares(x: Array, axis: Axis) -> Array:
    return np.vecdot(x, x) if axis == -1 else np.square(x).sum(axis)


def shared(g: Array, y: Array, x: Array, axis: Axis) -> Array:
    """Give each entry that attains the extreme an equal share."""
    ties = x == back(y, axis)
    return back(g, axis) / ties.sum(axis, keepdims=True, dtype=g.dtype) * ties


def layer_norm(x: Array) -> Array:
    d = deviation(x, -1)
    d *= 1 / np.sqrt(np.vecdot(d, d)[..., None] / x.shape[-1] + 1e-5)
    return d


def layer_norm_back(g: Array, y: Array, x: Array) -> Array:
    spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    y = y * (np.vecdot(g, y)[..., None] / x.shape[-1])
    return (g - g.mean(-1, keepdims=True) - y) / spread


def below_largest(x: Array, axis: int) -> Array:
    # NumPy finds the largest of few numbers faster if it is told where to begin
    return x - x.max(axis, keepdims=True, initial=-np.inf)


def softmax(x: Array, axis: int) -> Array:
    y = below_largest(x, axis)
    np.exp(y, out=y)
    y /= y.sum(axis, keepdims=True)
    return y


def softmax_where(x: Array, mask: Array) -> Array:
    return softmax(np.where(mask, x, -np.inf), -1)


def softmax_back(g: Array, y: Array, axis: int) -> Array:
    return y * (g - (g * y).sum(axis, keepdims=True))


def log_softmax(x: Array, axis: int) -> Array:
    y = below_largest(x, axis)
    y -= np.log(np.exp(y).sum(axis, keepdims=True))
    return y


def logsumexp(x: Array, axis: int) -> Array:
    largest = x.max(axis, keepdims=True, initial=-np.inf)
    return np.log(np.exp(x - largest).sum(axis)) + largest.squeeze(axis)


def nll(x: Array, labels: Array) -> Array:
    z = below_largest(x, 1)
    of_label = z[np.arange(len(z)), labels]
    return np.log(np.exp(z, out=z).sum(1)) - of_label


def nll_grad(x: Array, w: Array, labels: Array) -> Array:
    y = softmax(x, 1)
    y[np.arange(len(x)), labels] -= 1
    y *= w[:, None]
    return y


def nll_grad_back(g: Array, y: Array, x: Array, w: Array, labels: Array) -> Sequence[Array]:
    p = softmax(x, 1)
    return softmax_back(g * w[:, None], p, 1), (g * p).sum(1) - g[np.arange(len(x)), labels]


SLOPE = math.sqrt(2 / math.pi)


def erf(x: Array) -> Array:
    return np.array([math.erf(a) for a in x.ravel().tolist()], x.dtype).reshape(x.shape)


def exact_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(math.sqrt(0.5) * x))


def exact_gelu_back(g: Array, y: Array, x: Array) -> Array:
    phi = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return g * (0.5 * (1 + erf(math.sqrt(0.5) * x)) + x * phi)


def counted(x: Array, labels: Array) -> tuple[Array, Array]:
    return x[labels >= 0], labels[labels >= 0]


def ignoring_back(g: Array, y: Array, x: Array, labels: Array) -> Array:
    rows, classes = counted(x, labels)
    return placed(nll_grad(rows, np.full(len(rows), g / len(rows)), classes), labels >= 0, x)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(SLOPE * (x + 0.044715 * x * x * x)))


def gelu_back(g: Array, y: Array, x: Array) -> Array:
    square = x * x
    t = np.tanh(SLOPE * (x + 0.044715 * x * square))
    return 0.5 * g * (1 + t + x * (1 - t * t) * (SLOPE + 3 * 0.044715 * SLOPE * square))


def placed(a: Array, index: Any, like: Array) -> Array:
    """Return zeros with a at an index in which no place comes twice."""
    y = np.zeros_like(like)
    y[index] = a
    return y


def added(a: Array, rows: Array) -> Array:
    """Return zeros with a[i] added to row rows[i]: one by one, which beats np.add.at for long rows."""
    y = np.zeros_like(a)
    for row, part in zip(rows.tolist(), a):
        y[row] += part
    return y


def added_at_pairs(g: Array, y: Array, x: Array, *pairs: Array) -> Array:
    x_bar = np.zeros_like(x)
    np.add.at(x_bar, pairs, g)
    return x_bar


def cut(g: Array, _: Array, *arrays: Array) -> list[Array]:
    ends = np.cumsum([len(a) for a in arrays]).tolist()
    return [g[end - len(a) : end].copy() for end, a in zip(ends, arrays)]


def row_by_row(g: Array, y: Array, x: Array) -> Array:
    x_bar = np.empty_like(x)
    for i in range(len(x)):
        x_bar[i] = g[i] * (1 - y[i] * y[i])
    return x_bar


# ----------------------------------------------------------------------------- the rows


class Row(NamedTuple):
    """One way to use an operation: in three libraries, and its gradient by hand.

    ``backward(g, y, *arguments)`` returns the gradient of the array of floats, or of each of them.
    """

    op: str
    name: str
    ours: Callable[..., Any]
    torch: Callable[..., Any]
    numpy: Callable[..., Any]
    backward: Callable[..., Any]
    draw: Draw = one


def same(
    op: str,
    name: str,
    f: Callable[..., Any],
    backward: Callable[..., Any],
    draw: Draw = one,
    numpy: Callable[..., Any] | None = None,
) -> Row:
    """Return the row of a formula that is written the same way everywhere, or by hand in a better way."""
    return Row(op, name, f, f, numpy or f, backward, draw)


def named(name: str, backward: Callable[..., Any], draw: Draw = one) -> Row:
    """Return the row of a function that is called the same way everywhere."""
    op = name.partition("(")[0]
    return Row(op, name, *(getattr(library, op) for library in (mg, torch, np)), backward, draw)


def reduced(
    op: str,
    axes: Sequence[Axis],
    theirs: Callable[..., Any],
    numpy: Callable[[Array, Axis], Any],
    backward: Callable[[Array, Array, Array, Axis], Array],
) -> Iterator[Row]:
    """Return the rows of a reduction over all numbers (None) or along an axis."""
    ours = getattr(mg, op)
    for axis in axes:
        given = () if axis is None else (axis,)
        yield Row(
            op,
            f"{op}({', '.join(map(str, ('x', *given)))})",
            lambda x, given=given: ours(x, *given),
            lambda x, given=given: theirs(x, *given),
            lambda x, axis=axis: numpy(x, axis),
            lambda g, y, x, axis=axis: backward(g, y, x, axis),
            along(axis),
        )


def joined(
    op: str, theirs: Callable[..., Any], numpy: Callable[..., Any], backward: Callable[..., Any]
) -> Iterator[Row]:
    """Return the rows of two large parts and of many small ones."""
    ours = getattr(mg, op)
    for name, draw in {
        "([x, y])": two,
        ", 1,000 parts": parts(1_000),
        ", 10,000 parts": parts(10_000),
    }.items():
        yield Row(
            op,
            op + name,
            lambda *xs: ours(xs),
            lambda *xs: theirs(xs),
            lambda *xs: numpy(xs),
            backward,
            draw,
        )


ARITHMETIC = [
    same("add", "x + y", lambda x, y: x + y, lambda g, *_: (g.copy(), g.copy()), two),
    same("add", "x + 1", lambda x: x + 1, lambda g, *_: g.copy()),
    same("add", "x + row", lambda x, r: x + r, lambda g, *_: (g.copy(), over_rows(g)), with_row),
    same("sub", "x − y", lambda x, y: x - y, lambda g, *_: (g.copy(), -g), two),
    same("sub", "1 − x", lambda x: 1 - x, lambda g, *_: -g),
    same("mul", "x∘y", lambda x, y: x * y, lambda g, _, x, y: (g * y, g * x), two),
    same("mul", "2x", lambda x: 2 * x, lambda g, *_: 2 * g),
    same(
        "mul", "x∘row", lambda x, r: x * r, lambda g, _, x, r: (g * r, over_rows(g * x)), with_row
    ),
    same("div", "x/y", lambda x, y: x / y, lambda g, q, x, y: (g / y, -g * q / y), two_positive),
    same("div", "1/x", lambda x: 1 / x, lambda g, y, x: -g * y * y, positive),
    same("neg", "−x", lambda x: -x, lambda g, *_: -g),
]

#: By hand without NumPy's power, which is slow for most exponents.
POWERS = [
    same("pow", "x**2", lambda x: x**2, lambda g, _, x: 2 * g * x),
    same("pow", "x**3", lambda x: x**3, lambda g, _, x: 3 * g * x * x, one, lambda x: x * x * x),
    same(
        "pow",
        "x**4",
        lambda x: x**4,
        lambda g, _, x: 4 * g * x * x * x,
        one,
        lambda x: (x * x) ** 2,
    ),
    same("pow", "x**.5", lambda x: x**0.5, lambda g, y, x: 0.5 * g / y, positive, np.sqrt),
    same("pow", "x**-1", lambda x: x**-1, lambda g, y, x: -g * y * y, positive, np.reciprocal),
    same("pow", "2**x", lambda x: 2**x, lambda g, y, x: math.log(2) * g * y, one, np.exp2),
    same(
        "pow",
        "x**y",
        lambda x, y: x**y,
        lambda g, z, x, y: (g * y * z / x, g * z * np.log(x)),
        two_positive,
    ),
]

ELEMENTWISE = [
    named("where(c, x, y)", lambda g, _, c, x, y: (g * c, g * ~c), mask_and_two),
    named("exp(x)", lambda g, y, x: g * y),
    named("log(x)", lambda g, y, x: g / x, positive),
    named("sqrt(x)", lambda g, y, x: 0.5 * g / y, positive),
    Row(
        "erf",
        "erf(x)",
        mg.erf,
        torch.erf,
        erf,
        lambda g, y, x: np.exp(-x * x) * g * (2 / math.sqrt(math.pi)),
    ),
    named("tanh(x)", lambda g, y, x: g * (1 - y * y)),
    Row(
        "sigmoid",
        "sigmoid(x)",
        mg.sigmoid,
        torch.sigmoid,
        lambda x: 1 / (1 + np.exp(-x)),
        lambda g, y, x: g * y * (1 - y),
    ),
    Row(
        "relu",
        "relu(x)",
        mg.relu,
        torch.relu,
        lambda x: np.maximum(x, 0),
        lambda g, y, x: g * (y > 0),
    ),
    named("abs(x)", lambda g, y, x: g * np.sign(x)),
    named("maximum(x, y)", lambda g, _, x, y: (g * (x > y), g * (x < y)), two),
    Row(
        "maximum",
        "maximum(x, 0)",
        lambda x: mg.maximum(x, 0),
        lambda x: torch.maximum(x, ZERO),
        lambda x: np.maximum(x, 0),
        lambda g, y, x: g * (x > 0),
    ),
    named("minimum(x, y)", lambda g, _, x, y: (g * (x < y), g * (x > y)), two),
    Row(
        "clip",
        "clip(x, -1, 1)",
        lambda x: mg.clip(x, -1, 1),
        lambda x: torch.clip(x, -1, 1),
        lambda x: np.clip(x, -1, 1),
        lambda g, y, x: g * (x == y),
    ),
    Row("gelu", "gelu(x)", mg.gelu, F.gelu, exact_gelu, exact_gelu_back),
    Row(
        "gelu",
        "gelu(x, tanh)",
        lambda x: mg.gelu(x, "tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        gelu,
        gelu_back,
    ),
]

ZERO = torch.zeros(())

PRODUCTS = [
    same(
        "matmul", "X @ Y", lambda x, y: x @ y, lambda g, _, x, y: (g @ y.mT, x.mT @ g), with_matrix
    ),
    same(
        "matmul",
        "X @ v",
        lambda x, v: x @ v,
        lambda g, _, x, v: (g[..., None] * v, g.ravel() @ x.reshape(-1, len(v))),
        with_row,
    ),
    same(
        "matmul",
        "v @ X",
        lambda v, x: v @ x,
        lambda g, _, v, x: (over_rows((x @ g[..., None])[..., 0]), v[:, None] * g[..., None, :]),
        with_column_first,
    ),
    same("matmul", "u @ v", lambda u, v: u @ v, lambda g, _, u, v: (g * v, g * u), two_flat),
    Row(
        "linear",
        "linear(x, w, b)",
        mg.linear,
        F.linear,
        lambda x, w, b: (x.reshape(-1, len(b)) @ w.T + b).reshape(x.shape),
        lambda g, _, x, w, b: (
            (g.reshape(-1, len(b)) @ w).reshape(x.shape),
            g.reshape(-1, len(b)).T @ x.reshape(-1, len(b)),
            over_rows(g),
        ),
        with_layer,
    ),
    Row(
        "affine",
        "affine(x, row, row)",
        mg.affine,
        lambda z, c, b: z * c + b,
        lambda z, c, b: z * c + b,
        lambda g, _, z, c, b: (g * c, over_rows(g * z), over_rows(g)),
        with_two_rows,
    ),
]

SHAPES = [
    same(
        "reshape",
        "x.reshape(-1)",
        lambda x: x.reshape(-1),
        lambda g, _, x: g.reshape(x.shape).copy(),
    ),
    Row(
        "transpose",
        "transpose(x)",
        mg.transpose,
        lambda x: x.permute(tuple(range(x.ndim))[::-1]),
        np.transpose,
        lambda g, *_: g.T.copy(),
    ),
    same(
        "swapaxes",
        "x.swapaxes(0, 1)",
        lambda x: x.swapaxes(0, 1),
        lambda g, *_: g.swapaxes(0, 1).copy(),
    ),
    Row(
        "broadcast_to",
        "broadcast_to(row, …)",
        lambda r, whole: mg.broadcast_to(r, whole.shape),
        lambda r, whole: torch.broadcast_to(r, whole.shape),
        lambda r, whole: np.broadcast_to(r, whole.shape),
        lambda g, *_: over_rows(g),
        row_and_whole,
    ),
    Row(
        "astype",
        "astype(x, float64)",
        lambda x: mg.astype(x, np.float64),
        lambda x: x.to(torch.float64),
        lambda x: x.astype(np.float64),
        lambda g, *_: g.astype(np.float32),
    ),
    Row(
        "flatten",
        "flatten(x)",
        mg.flatten,
        torch.flatten,
        lambda x: x.reshape(-1),
        lambda g, _, x: g.reshape(x.shape).copy(),
    ),
    Row(
        "squeeze",
        "squeeze(x, -1)",
        lambda x: mg.squeeze(x, -1),
        lambda x: torch.squeeze(x, -1),
        lambda x: x[..., 0],
        lambda g, *_: g[..., None].copy(),
        with_last_axis_1,
    ),
    Row(
        "expand_dims",
        "expand_dims(x, 0)",
        lambda x: mg.expand_dims(x, 0),
        lambda x: torch.unsqueeze(x, 0),
        lambda x: x[None],
        lambda g, *_: g[0].copy(),
    ),
]

PLACES = [
    same("getitem", "x[1:]", lambda x: x[1:], lambda g, _, x: placed(g, slice(1, None), x)),
    same("getitem", "x[0]", lambda x: x[0], lambda g, _, x: placed(g, 0, x)),
    same(
        "getitem",
        "x[rows], some twice",
        lambda x, rows: x[rows],
        lambda g, _, x, rows: added(g, rows),
        with_places(0),
    ),
    same(
        "getitem",
        "x[rows], each once",
        lambda x, rows: x[rows],
        lambda g, _, x, rows: placed(g, rows, x),
        with_order,
    ),
    same(
        "getitem",
        "x[:, cols], some twice",
        lambda x, cols: x[:, cols],
        lambda g, _, x, cols: added(g.swapaxes(0, 1).copy(), cols).swapaxes(0, 1),
        with_places(1),
    ),
    same("getitem", "x[rows, cols]", lambda x, i, j: x[i, j], added_at_pairs, with_pairs),
    same("getitem", "x[mask]", lambda x, m: x[m], lambda g, _, x, m: placed(g, m, x), with_mask),
    Row(
        "scatter",
        "scatter(x, rows), some twice",
        lambda x, rows: mg.scatter(x, rows, x.shape),
        lambda x, rows: torch.zeros(x.shape).index_add(0, rows, x),
        added,
        lambda g, _, x, rows: g[rows],
        with_places(0),
    ),
    Row(
        "scatter",
        "scatter(x, rows), each once",
        lambda x, rows: mg.scatter(x, rows, x.shape),
        lambda x, rows: torch.zeros(x.shape).index_add(0, rows, x),
        lambda x, rows: placed(x, rows, x),
        lambda g, _, x, rows: g[rows],
        with_order,
    ),
    *joined("concatenate", torch.concatenate, np.concatenate, cut),
    *joined("stack", torch.stack, np.stack, lambda g, *_: [part.copy() for part in g]),
    Row(
        "stack",
        "stack([tanh(r) for r in x])",
        lambda x: mg.stack([mg.tanh(row) for row in x]),
        lambda x: torch.stack([torch.tanh(row) for row in x]),
        lambda x: np.stack([np.tanh(row) for row in x]),
        row_by_row,
    ),
]

REDUCTIONS = [
    *reduced(
        "sum",
        [None, 0, 1, 2, 3],
        torch.sum,
        lambda x, i: x.sum(i),
        lambda g, y, x, i: np.full_like(x, back(g, i)),
    ),
    *reduced(
        "mean",
        [None, 0, 1, 2, 3],
        torch.mean,
        lambda x, i: x.mean(i),
        lambda g, y, x, i: np.full_like(x, back(g / count(x, i), i)),
    ),
    *reduced(
        "var",
        [None, 0, -1],
        lambda x, i=None: torch.var(x, i, correction=0),
        lambda x, i: np.square(deviation(x, i)).mean(i),
        lambda g, y, x, i: deviation(x, i) * back(2 * g / count(x, i), i),
    ),
    *reduced(
        "std",
        [None, 0, -1],
        lambda x, i=None: torch.std(x, i, correction=0),
        lambda x, i: np.sqrt(np.square(deviation(x, i)).mean(i)),
        lambda g, y, x, i: deviation(x, i) * back(g / (y * count(x, i)), i),
    ),
    *reduced("max", [None, 0, -1], torch.amax, lambda x, i: x.max(i), shared),
    *reduced("min", [None, 0, -1], torch.amin, lambda x, i: x.min(i), shared),
    *reduced(
        "norm",
        [None, 0, -1],
        lambda x, i=None: torch.linalg.vector_norm(x, dim=i),
        lambda x, i: np.sqrt(sum_of_squares(x, i)),
        lambda g, y, x, i: x * back(g / y, i),
    ),
    Row(
        "layer_norm",
        "layer_norm(x, -1)",
        mg.layer_norm,
        lambda x: F.layer_norm(x, x.shape[-1:]),
        layer_norm,
        layer_norm_back,
    ),
    *reduced("softmax", [0, -1], torch.softmax, softmax, lambda g, y, x, i: softmax_back(g, y, i)),
    Row(
        "softmax",
        "softmax(x, -1, triangle)",
        lambda x, mask: mg.softmax(x, -1, mask),
        lambda x, mask: x.masked_fill(~mask, -math.inf).softmax(-1),
        softmax_where,
        lambda g, y, x, mask: softmax_back(g, y, -1),
        with_triangle,
    ),
    *reduced(
        "log_softmax",
        [0, -1],
        torch.log_softmax,
        log_softmax,
        lambda g, y, x, i: g - np.exp(y) * g.sum(i, keepdims=True),
    ),
    *reduced(
        "logsumexp",
        [-1],
        torch.logsumexp,
        logsumexp,
        lambda g, y, x, i: back(g, i) * np.exp(x - back(y, i)),
    ),
]

LOSSES = [
    Row(
        "nll",
        "nll(x, labels)",
        mg.nll,
        lambda x, labels: F.cross_entropy(x, labels, reduction="none"),
        nll,
        lambda g, y, x, labels: nll_grad(x, g, labels),
        with_labels,
    ),
    Row(
        "nll_grad",
        "nll_grad(x, w, labels)",
        mg.nll_grad,
        lambda x, w, labels: w[:, None] * (x.softmax(1) - F.one_hot(labels, x.shape[1])),
        nll_grad,
        nll_grad_back,
        with_weights_and_labels,
    ),
    Row(
        "cross_entropy",
        "cross_entropy(x, labels)",
        mg.cross_entropy,
        F.cross_entropy,
        lambda x, labels: nll(x, labels).mean(),
        lambda g, y, x, labels: nll_grad(x, np.full(len(x), g / len(x)), labels),
        with_labels,
    ),
    Row(
        "cross_entropy",
        "cross_entropy(x, labels), some ignored",
        mg.cross_entropy,
        F.cross_entropy,
        lambda x, labels: nll(*counted(x, labels)).mean(),
        ignoring_back,
        with_ignored_labels,
    ),
    Row(
        "mse_loss",
        "mse_loss(x, y)",
        mg.mse_loss,
        F.mse_loss,
        lambda x, y: np.square(x - y).mean(),
        lambda g, _, x, y: (error := (x - y) * (2 * g / x.size), -error),
        two,
    ),
]

ROWS = [
    *ARITHMETIC,
    *POWERS,
    *ELEMENTWISE,
    *PRODUCTS,
    *SHAPES,
    *PLACES,
    *REDUCTIONS,
    *LOSSES,
]


def without_row() -> set[str]:
    """Return the names of the ops, and of what is composed of ops, that no row is about."""
    public = [getattr(mg, name) for name in mg.__all__]
    composed = [f.__name__ for f in public if getattr(f, "__module__", "") == "minigrad.functional"]
    return {*mg.OPS, *composed} - {row.op for row in ROWS}


# ----------------------------------------------------------------------------- the measurement


class Sides:
    """A row at one size: the three contenders, which agree, and a result each to go back from."""

    def __init__(self, row: Row, arrays: Sequence[Array]) -> None:
        self.row, self.arrays = row, arrays
        floats = [a.dtype.kind == "f" for a in arrays]
        self.ours = [mg.Tensor(a, requires_grad=True) if f else a for a, f in zip(arrays, floats)]
        self.torch = [torch.tensor(a, requires_grad=f) for a, f in zip(arrays, floats)]
        self.leaves = [x for x, f in zip(self.ours, floats) if f]
        self.torch_leaves = [x for x, f in zip(self.torch, floats) if f]
        self.y, self.y_torch = row.ours(*self.ours), row.torch(*self.torch)
        self.y_numpy = np.asarray(row.numpy(*arrays))
        rng = np.random.default_rng(1)
        self.g = np.asarray(rng.standard_normal(self.y.shape), self.y.dtype)
        self.agree()

    def forward(self) -> dict[str, Work]:
        row = self.row
        return {
            "ours": lambda: row.ours(*self.ours),
            "torch": lambda: row.torch(*self.torch),
            "NumPy": lambda: row.numpy(*self.arrays),
        }

    def backward(self) -> dict[str, Work]:
        row, g, g_torch = self.row, mg.Tensor(self.g), torch.tensor(self.g)
        return {
            "ours": lambda: go_back(self.y, g, self.leaves),
            "torch": lambda: go_back(self.y_torch, g_torch, self.torch_leaves),
            "NumPy": lambda: row.backward(self.g, self.y_numpy, *self.arrays),
        }

    def agree(self) -> None:
        """Raise AssertionError unless values and gradients are PyTorch's, ours and those by hand."""
        ours, theirs, by_hand = (work() for work in self.backward().values())
        if not isinstance(by_hand, Sequence):
            by_hand = [by_hand]
        expected = self.y_torch.detach(), *theirs
        for who, found in {"ours": (self.y.data, *ours), "NumPy": (self.y_numpy, *by_hand)}.items():
            for a, b in zip(found, expected, strict=True):
                close(a, b.numpy(), f"{who}, {self.row.name}")


def go_back(y: Any, g: Any, leaves: Iterable[Any]) -> list[Any]:
    for x in leaves:
        x.grad = None
    y.backward(g, retain_graph=True)
    return [x.grad for x in leaves]


def close(a: Array, b: Array, what: str) -> None:
    assert a.dtype == b.dtype, f"{what}: {a.dtype}, not {b.dtype}"
    largest = np.max(np.abs(b), initial=0)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest, err_msg=what)


class Cell(NamedTuple):
    """What was measured of a row at a size in one direction."""

    ours: Samples
    torch: Samples
    numpy: Samples

    head = "ours", "torch", "NumPy", "/torch", "/NumPy"

    @property
    def ratios(self) -> tuple[float, float]:
        return (self.ours / self.torch).median, (self.ours / self.numpy).median

    @property
    def beats_torch(self) -> bool:
        return self.ratios[0] <= OF_TORCH

    @property
    def passes(self) -> bool:
        return self.beats_torch or self.ratios[1] <= OF_NUMPY

    def show(self) -> list[str]:
        times = [samples.median * 1e6 for samples in self]
        return [*map(brief, times), *(f"{ratio:.2f}" for ratio in self.ratios)]


def brief(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def chosen(names: Sequence[str]) -> list[Row]:
    """Return the rows of the ops that are named; a name of no op is a part of the names of rows."""
    ops = {row.op for row in ROWS}
    parts = [name for name in names if name not in ops]
    return [
        row
        for row in ROWS
        if not names or row.op in names or any(part in row.name for part in parts)
    ]


def report(quick: bool, sizes: Sequence[str] = (), names: Sequence[str] = ()) -> Iterator[str]:
    if missing := without_row():
        raise LookupError(f"operations without a row here: {', '.join(sorted(missing))}")
    seconds, at_least = (0.02, 3) if quick else (0.2, 5)
    found: dict[tuple[str, str, str], Cell] = {}
    for size in sizes or (QUICK if quick else SIZES):
        lines = []
        for row in chosen(names):
            arrays = row.draw(np.random.default_rng(0), SIZES[size])
            if arrays is None:
                continue
            sides, line = Sides(row, arrays), [row.name]
            for way, work in (("forward", sides.forward()), ("backward", sides.backward())):
                cell = Cell(*interleaved(work, seconds, at_least).values())
                found[row.name, size, way] = cell
                line += [*cell.show(), "✓" if cell.passes else "✗"]
            lines.append(line)
        yield from table(
            f"Every op on {size.replace('x', '×')} numbers: forward, then backward, µs",
            ["", *Cell.head, "", *Cell.head, ""],
            lines,
        )
    cells = found.values()
    near_torch = sum(cell.beats_torch for cell in cells)
    yield ""
    yield (
        f"Of {len(cells)} cells {near_torch} take at most {OF_TORCH:g} of PyTorch's time, "
        f"{sum(cell.passes for cell in cells) - near_torch} more at most {OF_NUMPY:g} of NumPy's."
    )
    missed = [[*where, *cell.show()] for where, cell in found.items() if not cell.passes]
    if missed:
        yield from table("Neither of them", ["", "on", "", *Cell.head], missed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="ops, or parts of the names of rows; all if none")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, small sizes only")
    parser.add_argument("--size", action="append", choices=SIZES, help="can be given several times")
    options = parser.parse_args()

    settle()
    for line in report(options.quick, options.size or (), options.names):
        print(line, flush=True)


if __name__ == "__main__":
    main()
