"""What every op is tried on, and what it should give: one :class:`Case` per name.

A strategy draws ``(args, params)`` of a call, and a function of NumPy's gives the value expected.

Hypothesis draws the structure (shapes, axes, indices, a seed), NumPy fills it with values.  These keep
away from kinks and poles by construction: all magnitudes in one call are distinct and lie between 0.3
and 3.  So no two entries tie, none is near 0, and a bound of ``clip`` coincides with no entry.  A float
array of float64 among ``args`` is a variable to differentiate by; everything else is a constant.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loradora.adapters import frozen_product, plus_product, rescale

Shape: TypeAlias = tuple[int, ...]
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Calls: TypeAlias = st.SearchStrategy[Call]

SMALLEST, LARGEST = 0.3, 3.0


class Case(NamedTuple):
    """How calls of an op are drawn, and the same function of arrays, written in NumPy."""

    draws: Calls
    value: Callable[..., Any]


# ----------------------------------------------------------------------------- arrays and shapes


def arrays(*shapes: Shape, signed: bool = True) -> st.SearchStrategy[list[np.ndarray]]:
    """Draw one array per shape, no two entries of any of them nearly equal in magnitude."""
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(sizes)

    def fill(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        ranks = rng.permutation(total) + rng.uniform(0.25, 0.75, total)
        values = SMALLEST + (LARGEST - SMALLEST) * ranks / total
        if signed:
            values *= rng.choice([-1, 1], total)
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    return st.integers(0, 2**32 - 1).map(fill)


#: No two axes of a shape have the same length, lest a wrong order of axes go unseen.
SHAPES = [
    (),
    (1,),
    (3,),
    (2, 3),
    (3, 2),
    (4, 1),
    (2, 3, 1),
    (3, 1, 2),
    (2, 4, 3),
    (0,),
    (3, 0),
    (0, 2, 3),
]

#: Mostly some, now and then none.
LENGTHS = st.sampled_from([1, 2, 2, 3, 3, 4, 0])


def shapes(min_dims: int = 0, max_dims: int = 3) -> st.SearchStrategy[Shape]:
    return st.sampled_from([shape for shape in SHAPES if min_dims <= len(shape) <= max_dims])


@st.composite
def broadcastable(draw: st.DrawFn, count: int) -> list[Shape]:
    """Draw shapes that broadcast: of a common one, each leaves out leading axes or has length 1."""
    common = draw(shapes())
    kept = [common[draw(st.integers(0, len(common))) :] for _ in range(count)]
    return [tuple(draw(st.sampled_from([n, n, 1])) for n in shape) for shape in kept]


def axis_of(shape: Shape) -> st.SearchStrategy[int]:
    return st.integers(-len(shape), len(shape) - 1)


def axes_of(shape: Shape, nonempty: bool = False) -> st.SearchStrategy[Any]:
    """Draw None, an int, or a tuple: what a reduction takes as ``axis``."""
    ndim = len(shape)
    allowed = [i for i in range(-ndim, ndim) if shape[i] or not nonempty]
    everything = st.nothing() if nonempty and 0 in shape else st.none()
    if not allowed:
        return everything | st.just(())
    one = st.sampled_from(allowed)
    return everything | one | st.lists(one, unique_by=lambda i: i % ndim, max_size=ndim).map(tuple)


# ----------------------------------------------------------------------------- elementwise


@st.composite
def unary(draw: st.DrawFn, signed: bool = True) -> Call:
    return tuple(draw(arrays(draw(shapes()), signed=signed))), {}


@st.composite
def operands(draw: st.DrawFn, pair: Sequence[Shape]) -> tuple[Any, Any]:
    """Draw two arrays of the given shapes, or an array and a number on either side."""
    a, b, number = draw(arrays(*pair, ()))
    return draw(st.sampled_from([(a, b), (a, number.item()), (number.item(), b)]))


@st.composite
def binary(draw: st.DrawFn) -> Call:
    return draw(operands(draw(broadcastable(2)))), {}


@st.composite
def powers(draw: st.DrawFn) -> Call:
    """Any power of a positive base, or an integer power of any base."""
    if draw(st.booleans()):
        (base, exponent), params = draw(binary())
        return (
            np.asarray(abs(base)) if isinstance(base, np.ndarray) else abs(base),
            exponent,
        ), params
    (base,), params = draw(unary())
    return (base, draw(st.integers(-3, 4))), params


@st.composite
def choices(draw: st.DrawFn) -> Call:
    condition, *pair = draw(broadcastable(3))
    return (draw(hnp.arrays(bool, condition)), *draw(operands(pair))), {}


@st.composite
def clips(draw: st.DrawFn) -> Call:
    """Number, array, or nothing as the bound on either side."""
    shape, bounds = draw(broadcastable(2))
    a, one, other, lower, upper = draw(arrays(shape, bounds, bounds, (), ()))
    lower, upper = draw(st.sampled_from([(one, other), (lower.item(), upper.item())]))
    params = {"min": np.minimum(lower, upper), "max": np.maximum(lower, upper)}
    return (a,), {name: bound for name, bound in params.items() if draw(st.booleans())}


# ----------------------------------------------------------------------------- matrix products


@st.composite
def products(draw: st.DrawFn) -> Call:
    """Matrices, stacks of them that broadcast, and 1-D operands."""
    n, k, m = draw(LENGTHS), draw(LENGTHS), draw(LENGTHS)
    left = draw(st.sampled_from([(k,), (n, k), (2, n, k), (3, 1, n, k)]))
    right = draw(st.sampled_from([(k,), (k, m), (1, k, m), (2, k, m)]))
    return tuple(draw(arrays(left, right))), {}


@st.composite
def rescalings(draw: st.DrawFn) -> Call:
    """Any leading axes; with a shift or without."""
    rows, out = draw(shapes(max_dims=2)), draw(LENGTHS)
    shift = draw(st.sampled_from([[(out,)], []]))
    return tuple(draw(arrays((*rows, out), (out,), (out,), *shift))), {}


@st.composite
def low_rank_products(draw: st.DrawFn) -> Call:
    rows, out, r = draw(shapes(max_dims=2)), draw(LENGTHS), draw(LENGTHS)
    y0, h, B, s = draw(arrays((*rows, out), (*rows, r), (out, r), ()))
    return (y0, h, B, s.item()), {}


@st.composite
def frozen_products(draw: st.DrawFn) -> Call:
    """What is frozen, W0, A and the room for their product, is no variable: float32."""
    rows, into, out, r = draw(shapes(max_dims=2)), draw(LENGTHS), draw(LENGTHS), draw(LENGTHS)
    beside = len(rows) == 1 and draw(st.booleans())
    x, W0, h, B, s, A = draw(
        arrays((*rows, into), (out, into), (*rows, r), (out, r), (), (r, into))
    )
    W0, A, W0A = (a.astype(np.float32) for a in (W0, A, np.zeros((out, r))))
    return (x, W0, h, B, s.item(), *((A, W0A) if beside else ())), {}


@st.composite
def linears(draw: st.DrawFn) -> Call:
    """Any number of leading axes; a bias per output, one for all, or none."""
    rows, into, out = draw(shapes(max_dims=2)), draw(LENGTHS), draw(LENGTHS)
    bias = draw(st.sampled_from([[(out,)], [(1,)], []]))
    return tuple(draw(arrays((*rows, into), (out, into), *bias))), {}


# ----------------------------------------------------------------------------- places


@st.composite
def reshapes(draw: st.DrawFn) -> Call:
    """To the same lengths in another order with ones between, flat, or with one length left open."""
    (a,), _ = draw(unary())
    shape = draw(st.permutations([*a.shape, 1]).map(tuple) | st.just((a.size,)))
    if a.size:
        open_at = draw(st.integers(0, len(shape) - 1))
        opened = (*shape[:open_at], -1, *shape[open_at + 1 :])
        return (a,), {"shape": draw(st.sampled_from([shape, opened, -1]))}
    return (a,), {"shape": shape}


@st.composite
def transposes(draw: st.DrawFn) -> Call:
    (a,), _ = draw(unary())
    order = [draw(st.sampled_from([i, i - a.ndim])) for i in draw(st.permutations(range(a.ndim)))]
    return (a,), draw(st.sampled_from([{}, {"axes": tuple(order)}]))


@st.composite
def swaps(draw: st.DrawFn) -> Call:
    shape = draw(shapes(min_dims=1))
    (a,) = draw(arrays(shape))
    return (a,), {"axis1": draw(axis_of(shape)), "axis2": draw(axis_of(shape))}


@st.composite
def stretches(draw: st.DrawFn) -> Call:
    small, other = draw(broadcastable(2))
    return tuple(draw(arrays(small))), {"shape": np.broadcast_shapes(small, other)}


@st.composite
def mixed_index(draw: st.DrawFn, shape: Shape) -> tuple[Any, ...]:
    """Draw slices, numbers, and integer arrays with repeats, in any order along the axes."""
    picked = draw(st.sampled_from([(2,), (3,), (2, 3), (0,)]))
    index = []
    for n in shape:
        part = st.sampled_from([slice(None), slice(None, None, -1), slice(1, None, 2), slice(2, 2)])
        if n:
            entry = st.integers(-n, n - 1)
            part = part | entry | hnp.arrays(int, picked, elements=entry)
        index.append(draw(part))
    return tuple(index)


@st.composite
def masks(draw: st.DrawFn, shape: Shape) -> Any:
    """Draw a mask of the leading axes, alone or with a slice in front of its axis."""
    masked = draw(st.integers(1, len(shape)))
    if masked < len(shape) and draw(st.booleans()):
        return slice(None, None, -1), draw(hnp.arrays(bool, shape[1 : masked + 1]))
    return draw(hnp.arrays(bool, shape[:masked]))


def indices(shape: Shape) -> st.SearchStrategy[Any]:
    basic = hnp.basic_indices(shape, allow_newaxis=True)
    return basic | mixed_index(shape) | masks(shape) if shape else basic


@st.composite
def getitems(draw: st.DrawFn) -> Call:
    (a,), _ = draw(unary())
    return (a, draw(indices(a.shape))), {}


@st.composite
def scatters(draw: st.DrawFn) -> Call:
    """As many numbers as there are places, or one for all of them."""
    shape = draw(shapes())
    index = draw(indices(shape))
    places = np.empty(shape)[index].shape
    (a,) = draw(arrays(draw(st.sampled_from([places, ()]))))
    return (a, index, shape), {}


@st.composite
def neighbours(draw: st.DrawFn, count: int) -> Call:
    """Draw arrays that differ in length along one axis."""
    shape = draw(shapes(min_dims=1))
    axis = draw(axis_of(shape))
    split = axis % len(shape)
    parts = [(*shape[:split], draw(LENGTHS), *shape[split + 1 :]) for _ in range(count)]
    return tuple(draw(arrays(*parts))), {"axis": axis}


@st.composite
def equals(draw: st.DrawFn, count: int) -> Call:
    """Draw arrays of one shape, and an axis of the result that has one more."""
    shape = draw(shapes(max_dims=2))
    return tuple(draw(arrays(*[shape] * count))), {"axis": draw(axis_of((*shape, count)))}


# ----------------------------------------------------------------------------- reductions


@st.composite
def reductions(draw: st.DrawFn, nonempty: bool = False) -> Call:
    """Over any axes, or only over those that have entries."""
    (a,), _ = draw(unary())
    axis = draw(axes_of(a.shape, nonempty))
    return (a,), {"axis": axis, "keepdims": draw(st.booleans())}


@st.composite
def variances(draw: st.DrawFn) -> Call:
    """With a ``ddof`` that leaves at least one degree of freedom."""
    (a,), params = draw(reductions())
    count = np.max(np.sum(np.ones(a.shape), axis=params["axis"]), initial=0)
    return (a,), {**params, "ddof": draw(st.integers(0, 1 if count > 1 else 0))}


@st.composite
def distributions(draw: st.DrawFn) -> Call:
    shape = draw(shapes(min_dims=1))
    return tuple(draw(arrays(shape))), {"axis": draw(axis_of(shape))}


@st.composite
def classifications(draw: st.DrawFn) -> Call:
    samples, classes = draw(LENGTHS.filter(bool)), draw(st.integers(1, 4))
    (logits,) = draw(arrays((samples, classes)))
    return (logits, draw(hnp.arrays(int, samples, elements=st.integers(0, classes - 1)))), {}


@st.composite
def weighted_classifications(draw: st.DrawFn) -> Call:
    (logits, labels), params = draw(classifications())
    (w,) = draw(arrays(labels.shape))
    return (logits, w, labels), params


# ----------------------------------------------------------------------------- the tables


def placed(a: np.ndarray, index: Any, shape: Shape) -> np.ndarray:
    y = np.zeros(shape)
    np.add.at(y, index, a)
    return y


def surprise(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.log(np.sum(np.exp(x), axis=1)) - np.take_along_axis(x, labels[:, None], 1)[:, 0]


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


CASES: dict[str, Case] = {
    "abs": Case(unary(), np.abs),
    "add": Case(binary(), np.add),
    "astype": Case(unary().map(lambda call: (call[0], {"dtype": np.float64})), np.asarray),
    "broadcast_to": Case(stretches(), np.broadcast_to),
    "clip": Case(clips(), lambda a, min=-np.inf, max=np.inf: np.minimum(np.maximum(a, min), max)),
    "div": Case(binary(), np.divide),
    "exp": Case(unary(), np.exp),
    "getitem": Case(getitems(), lambda a, index: a[index]),
    "join": Case(
        neighbours(2).map(lambda call: ((*call[0], call[1]["axis"]), {})),
        lambda a, b, axis: np.concatenate([a, b], axis),
    ),
    "linear": Case(linears(), lambda x, w, b=0.0: np.einsum("...i,oi->...o", x, w) + b),
    "log": Case(unary(signed=False), np.log),
    "log_softmax": Case(distributions(), lambda x, axis: np.log(softmax(x, axis))),
    "matmul": Case(products(), np.matmul),
    "max": Case(reductions(nonempty=True), np.max),
    "maximum": Case(binary(), np.maximum),
    "mean": Case(reductions(nonempty=True), np.mean),
    "min": Case(reductions(nonempty=True), np.min),
    "minimum": Case(binary(), np.minimum),
    "mul": Case(binary(), np.multiply),
    "neg": Case(unary(), np.negative),
    "norm": Case(
        reductions(), lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis, keepdims=keepdims))
    ),
    plus_product.name: Case(
        low_rank_products(), lambda y0, h, B, s: y0 + s * np.einsum("...r,or->...o", h, B)
    ),
    "pow": Case(powers(), np.power),
    frozen_product.name: Case(
        frozen_products(), lambda x, W0, h, B, s, *beside: x @ W0.T + s * (h @ B.T)
    ),
    "residual": Case(
        weighted_classifications(),
        lambda x, w, labels: w[:, None] * (softmax(x) - np.eye(x.shape[1])[labels]),
    ),
    "relu": Case(unary(), lambda a: np.where(a > 0, a, 0)),
    rescale.name: Case(rescalings(), lambda z, m, n, b=0.0: m * z / n + b),
    "reshape": Case(reshapes(), lambda a, shape: a.reshape(shape)),
    "scatter": Case(scatters(), placed),
    "sigmoid": Case(unary(), lambda a: 1 / (1 + np.exp(-a))),
    "softmax": Case(distributions(), softmax),
    "sqrt": Case(unary(signed=False), np.sqrt),
    "sub": Case(binary(), np.subtract),
    "sum": Case(reductions(), np.sum),
    "surprise": Case(classifications(), surprise),
    "swapaxes": Case(swaps(), np.swapaxes),
    "tanh": Case(unary(), np.tanh),
    "transpose": Case(transposes(), np.transpose),
    "var": Case(variances(), np.var),
    "where": Case(choices(), np.where),
}

REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


def reduced(values: np.ndarray, reduction: str) -> Any:
    return {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](values)


@st.composite
def losses(draw: st.DrawFn) -> Call:
    (prediction, target) = draw(arrays(*[draw(shapes())] * 2))
    return (prediction, target), {"reduction": draw(REDUCTIONS)}


@st.composite
def reduced_classifications(draw: st.DrawFn) -> Call:
    args, _ = draw(classifications())
    return args, {"reduction": draw(REDUCTIONS)}


#: What is composed from ops, and differentiated by their rules; sequences are spread over ``args``.
COMPOSED: dict[str, Case] = {
    "concatenate": Case(neighbours(3), lambda *parts, axis: np.concatenate(parts, axis)),
    "cross_entropy": Case(
        reduced_classifications(),
        lambda x, labels, reduction: reduced(surprise(x, labels), reduction),
    ),
    "gelu": Case(
        unary(),
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    "mse_loss": Case(losses(), lambda a, b, reduction: reduced((a - b) ** 2, reduction)),
    "stack": Case(equals(3), lambda *parts, axis: np.stack(parts, axis)),
}
