"""What every op is tried on, and what it should give: one :class:`Case` per name.

A case is a strategy, which draws calls, and the same function written in NumPy.  A :class:`Call` names
the arrays to differentiate by and says how a function is called on them.  It does not know the function:
the op, NumPy's function and any other definition are called in the same way.

Hypothesis draws the structure (shapes, axes, indices, a seed), NumPy fills it with values.  These keep
away from kinks and poles by construction: all magnitudes in one call are distinct and lie between 0.3
and 3.  So no two entries tie, none is near 0, and a bound of ``clip`` coincides with no entry.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Shape: TypeAlias = tuple[int, ...]

SMALLEST, LARGEST = 0.3, 3.0


class Call:
    """The arrays to differentiate by, and how a function is called on them.

    ``apply(f, *variables)`` calls f.  It closes over everything else that f gets: numbers, axes, indices.
    """

    def __init__(
        self,
        variables: list[np.ndarray],
        apply: Callable[..., Any] = lambda f, *variables: f(*variables),
    ) -> None:
        self.variables, self.apply = variables, apply

    def of(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Return f as a function of the variables alone, which may be arrays or Tensors."""
        return partial(self.apply, f)

    def __repr__(self) -> str:
        """Show all that a function is given, because Hypothesis prints this when a test fails."""
        shown = self.of(lambda *args, **params: f"Call(args={args}, params={params})")
        return str(shown(*self.variables))


class Case(NamedTuple):
    """How calls of an op are drawn, and the same function of arrays, written in NumPy."""

    calls: st.SearchStrategy[Call]
    in_numpy: Callable[..., Any]


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


def array(of: st.SearchStrategy[Shape], signed: bool = True) -> st.SearchStrategy[np.ndarray]:
    """Draw one array, of a shape that is drawn first."""
    return of.flatmap(lambda shape: arrays(shape, signed=signed)).map(lambda drawn: drawn[0])


#: No two axes of a shape have the same length, so that a wrong order of axes shows.
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


def unary(signed: bool = True) -> st.SearchStrategy[Call]:
    return array(shapes(), signed).map(lambda a: Call([a]))


def conversions() -> st.SearchStrategy[Call]:
    """To the dtype that the array has already; ``test_tensor.py`` has the others."""
    return array(shapes()).map(lambda a: Call([a], lambda f, a: f(a, a.dtype)))


def operands(
    a: np.ndarray, b: np.ndarray, left: np.ndarray, right: np.ndarray
) -> st.SearchStrategy[Call]:
    """Draw a call on two arrays, or on an array with a number to the left or to the right of it."""
    return st.sampled_from(
        [
            Call([a, b]),
            Call([a], lambda f, a: f(a, right.item())),
            Call([b], lambda f, b: f(left.item(), b)),
        ]
    )


@st.composite
def binary(draw: st.DrawFn) -> Call:
    a, b, number = draw(arrays(*draw(broadcastable(2)), ()))
    return draw(operands(a, b, number, number))


@st.composite
def powers(draw: st.DrawFn) -> Call:
    """Any power of a positive base, or an integer power of any base."""
    if draw(st.booleans()):
        one, other = draw(broadcastable(2))
        base, positive = draw(arrays(one, (), signed=False))
        exponent, number = draw(arrays(other, ()))
        return draw(operands(base, exponent, positive, number))
    base, integer = draw(array(shapes())), draw(st.integers(-4, 6))
    return Call([base], lambda f, base: f(base, integer))


@st.composite
def choices(draw: st.DrawFn) -> Call:
    shape, *pair = draw(broadcastable(3))
    condition = draw(hnp.arrays(bool, shape))
    a, b, number = draw(arrays(*pair, ()))
    chosen = draw(operands(a, b, number, number))
    return Call(chosen.variables, lambda f, *ab: chosen.apply(partial(f, condition), *ab))


@st.composite
def clips(draw: st.DrawFn) -> Call:
    """Number, array, or nothing as the bound on either side."""
    shape, like = draw(broadcastable(2))
    a, one, other, lower, upper = draw(arrays(shape, like, like, (), ()))
    lower, upper = draw(st.sampled_from([(one, other), (lower.item(), upper.item())]))
    both = {"min": np.minimum(lower, upper), "max": np.maximum(lower, upper)}
    bounds = {name: bound for name, bound in both.items() if draw(st.booleans())}
    return Call([a], lambda f, a: f(a, **bounds))


# ----------------------------------------------------------------------------- matrix products


@st.composite
def products(draw: st.DrawFn) -> Call:
    """Matrices, stacks of them that broadcast, and 1-D operands."""
    n, k, m = draw(LENGTHS), draw(LENGTHS), draw(LENGTHS)
    left = draw(st.sampled_from([(k,), (n, k), (2, n, k), (3, 1, n, k)]))
    right = draw(st.sampled_from([(k,), (k, m), (1, k, m), (2, k, m)]))
    return Call(draw(arrays(left, right)))


@st.composite
def affines(draw: st.DrawFn) -> Call:
    """A factor and a shift that broadcast: both per entry of the last axis, or of any shapes."""
    z, c, shift = draw(broadcastable(3) | shapes(min_dims=1).map(lambda s: [s, s[-1:], s[-1:]]))
    product = np.broadcast_shapes(z, c)
    narrow = np.broadcast_shapes(product, shift) == product
    return Call(draw(arrays(z, c, *draw(st.sampled_from([[shift if narrow else product], []])))))


@st.composite
def linears(draw: st.DrawFn) -> Call:
    """Any number of leading axes; a bias per output, one for all, one for each entry, or none."""
    rows, into, out = draw(shapes(max_dims=2)), draw(LENGTHS), draw(LENGTHS)
    bias = draw(st.sampled_from([[(out,)], [(1,)], [(*rows, out)], []]))
    return Call(draw(arrays((*rows, into), (out, into), *bias)))


# ----------------------------------------------------------------------------- places


@st.composite
def reshapes(draw: st.DrawFn) -> Call:
    """To the same lengths in another order with ones between, flat, or with one length left open."""
    a = draw(array(shapes()))
    shape = draw(st.permutations([*a.shape, 1]).map(tuple) | st.just((a.size,)))
    if a.size:
        open_at = draw(st.integers(0, len(shape) - 1))
        opened = (*shape[:open_at], -1, *shape[open_at + 1 :])
        shape = draw(st.sampled_from([shape, opened, -1]))
    return Call([a], lambda f, a: f(a, shape=shape))


@st.composite
def transposes(draw: st.DrawFn) -> Call:
    a = draw(array(shapes()))
    axes = tuple(
        draw(st.sampled_from([i, i - a.ndim])) for i in draw(st.permutations(range(a.ndim)))
    )
    return draw(st.sampled_from([Call([a]), Call([a], lambda f, a: f(a, axes=axes))]))


@st.composite
def squeezes(draw: st.DrawFn) -> Call:
    """Of all axes of length 1, or of some of them by name."""
    a = draw(array(shapes()))
    ones = [i for i in range(-a.ndim, a.ndim) if a.shape[i] == 1]
    axis = st.none() | st.just(())
    if ones:
        some = st.lists(st.sampled_from(ones), unique_by=lambda i: i % a.ndim).map(tuple)
        axis = axis | some | st.sampled_from(ones)
    chosen = draw(axis)
    return Call([a], lambda f, a: f(a, axis=chosen))


@st.composite
def expansions(draw: st.DrawFn) -> Call:
    """By one axis, or by two that are named from the front or from the back of the result."""
    a = draw(array(shapes()))
    pair = st.permutations(range(a.ndim + 2)).map(lambda axes: (axes[0], axes[1] - a.ndim - 2))
    axis = draw(st.integers(-a.ndim - 1, a.ndim) | pair)
    return Call([a], lambda f, a: f(a, axis=axis))


@st.composite
def flattenings(draw: st.DrawFn) -> Call:
    a = draw(array(shapes()))
    start = draw(st.integers(-a.ndim, max(a.ndim - 1, 0)))
    return Call([a], lambda f, a: f(a, start_dim=start))


@st.composite
def swaps(draw: st.DrawFn) -> Call:
    a = draw(array(shapes(min_dims=1)))
    one, other = draw(axis_of(a.shape)), draw(axis_of(a.shape))
    return Call([a], lambda f, a: f(a, axis1=one, axis2=other))


@st.composite
def stretches(draw: st.DrawFn) -> Call:
    small, other = draw(broadcastable(2))
    shape = np.broadcast_shapes(small, other)
    return Call(draw(arrays(small)), lambda f, a: f(a, shape=shape))


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
    a = draw(array(shapes()))
    index = draw(indices(a.shape))
    return Call([a], lambda f, a: f(a, index))


@st.composite
def scatters(draw: st.DrawFn) -> Call:
    """As many numbers as there are places, or one for all of them."""
    shape = draw(shapes())
    index = draw(indices(shape))
    places = np.empty(shape)[index].shape
    a = draw(array(st.sampled_from([places, ()])))
    return Call([a], lambda f, a: f(a, index, shape))


@st.composite
def neighbours(draw: st.DrawFn, count: int) -> Call:
    """Draw arrays that differ in length along one axis, to be joined along it or flattened."""
    shape = draw(shapes(min_dims=1))
    axis = draw(axis_of(shape))
    split = axis % len(shape)
    parts = [(*shape[:split], draw(LENGTHS), *shape[split + 1 :]) for _ in range(count)]
    along = draw(st.sampled_from([axis, axis, None]))
    return Call(draw(arrays(*parts)), lambda f, *parts: f(parts, axis=along))


@st.composite
def equals(draw: st.DrawFn, count: int) -> Call:
    """Draw arrays of one shape, and an axis of the result that has one more."""
    shape = draw(shapes(max_dims=2))
    axis = draw(axis_of((*shape, count)))
    return Call(draw(arrays(*[shape] * count)), lambda f, *parts: f(parts, axis=axis))


# ----------------------------------------------------------------------------- reductions


@st.composite
def reductions(draw: st.DrawFn, nonempty: bool = False) -> Call:
    """Over any axes, or only over those that have entries."""
    a = draw(array(shapes()))
    axis, keepdims = draw(axes_of(a.shape, nonempty)), draw(st.booleans())
    return Call([a], lambda f, a: f(a, axis=axis, keepdims=keepdims))


@st.composite
def variances(draw: st.DrawFn) -> Call:
    """With a ``ddof`` that leaves at least one degree of freedom."""
    a = draw(array(shapes()))
    axis, keepdims = draw(axes_of(a.shape)), draw(st.booleans())
    count = np.max(np.sum(np.ones(a.shape), axis=axis), initial=0)
    ddof = draw(st.integers(0, 1 if count > 1 else 0))
    return Call([a], lambda f, a: f(a, axis=axis, ddof=ddof, keepdims=keepdims))


@st.composite
def normalizations(draw: st.DrawFn) -> Call:
    """Over any axes, with an ``eps`` beside which the derivatives of close numbers are not too large."""
    x = draw(array(shapes()))
    axis, eps = draw(axes_of(x.shape)), draw(st.sampled_from([0.1, 1, np.float32(3)]))
    return Call([x], lambda f, x: f(x, axis=axis, eps=eps))


@st.composite
def distributions(draw: st.DrawFn) -> Call:
    x = draw(array(shapes(min_dims=1)))
    axis = draw(axis_of(x.shape))
    return Call([x], lambda f, x: f(x, axis=axis))


@st.composite
def masked_distributions(draw: st.DrawFn) -> Call:
    """Over all entries, or over those that a mask picks, which may be none."""
    whole = draw(distributions())
    (x,) = whole.variables
    narrow = x.shape[draw(st.integers(0, x.ndim)) :]
    mask = draw(st.none() | hnp.arrays(bool, [draw(st.sampled_from([n, n, 1])) for n in narrow]))
    if mask is None:
        return whole
    return Call([x], lambda f, x: whole.apply(partial(f, where=mask), x))


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and a label for each row of them."""
    samples, classes = draw(LENGTHS.filter(bool)), draw(st.integers(1, 4))
    (logits,) = draw(arrays((samples, classes)))
    return logits, draw(hnp.arrays(int, samples, elements=st.integers(0, classes - 1)))


@st.composite
def classifications(draw: st.DrawFn) -> Call:
    logits, labels = draw(labelled())
    return Call([logits], lambda f, x: f(x, labels))


@st.composite
def weighted_classifications(draw: st.DrawFn) -> Call:
    logits, labels = draw(labelled())
    (weights,) = draw(arrays(labels.shape))
    return Call([logits, weights], lambda f, x, w: f(x, w, labels))


# ----------------------------------------------------------------------------- the tables


def placed(a: np.ndarray, index: Any, shape: Shape) -> np.ndarray:
    y = np.zeros(shape)
    np.add.at(y, index, a)
    return y


def nll(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.log(np.sum(np.exp(x), axis=1)) - np.take_along_axis(x, labels[:, None], 1)[:, 0]


def flat(a: np.ndarray, start_dim: int) -> np.ndarray:
    return a.reshape((*a.shape[:start_dim], math.prod(a.shape[start_dim:])))


def layer_norm(x: np.ndarray, axis: Any = -1, eps: float = 1e-5) -> np.ndarray:
    mean, var = np.mean(x, axis, keepdims=True), np.var(x, axis, keepdims=True)
    return (x - mean) / np.sqrt(var + float(eps))


def softmax(x: np.ndarray, axis: int = -1, where: Any = True) -> np.ndarray:
    powers = np.where(where, np.exp(x), 0)
    total = np.sum(powers, axis=axis, keepdims=True)
    return powers / np.where(total > 0, total, 1)


def gelus() -> st.SearchStrategy[Call]:
    def of(a: np.ndarray, form: str) -> Call:
        return Call([a], lambda f, a: f(a, approximate=form))

    return st.builds(of, array(shapes()), st.sampled_from(["none", "tanh"]))


def gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    if approximate == "none":
        return x / 2 * (1 + np.vectorize(math.erf, otypes=[float])(x / np.sqrt(2)))
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


CASES: dict[str, Case] = {
    "abs": Case(unary(), np.abs),
    "add": Case(binary(), np.add),
    "affine": Case(affines(), lambda z, c, b=0.0: z * c + b),
    "astype": Case(conversions(), np.asarray),
    "broadcast_to": Case(stretches(), np.broadcast_to),
    "clip": Case(clips(), lambda a, min=-np.inf, max=np.inf: np.minimum(np.maximum(a, min), max)),
    "concatenate": Case(neighbours(3), np.concatenate),
    "div": Case(binary(), np.divide),
    "erf": Case(unary(), np.vectorize(math.erf, otypes=[float])),
    "gelu": Case(unary(), lambda a: gelu(a, "none")),
    "exp": Case(unary(), np.exp),
    "getitem": Case(getitems(), lambda a, index: a[index]),
    "layer_norm": Case(normalizations(), layer_norm),
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
    "nll": Case(classifications(), nll),
    "nll_grad": Case(
        weighted_classifications(),
        lambda x, w, labels: w[:, None] * (softmax(x) - np.eye(x.shape[1])[labels]),
    ),
    "norm": Case(
        reductions(), lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis, keepdims=keepdims))
    ),
    "pow": Case(powers(), np.power),
    "relu": Case(unary(), lambda a: np.where(a > 0, a, 0)),
    "reshape": Case(reshapes(), lambda a, shape: a.reshape(shape)),
    "scatter": Case(scatters(), placed),
    "sigmoid": Case(unary(), lambda a: 1 / (1 + np.exp(-a))),
    "softmax": Case(masked_distributions(), softmax),
    "sqrt": Case(unary(signed=False), np.sqrt),
    "sub": Case(binary(), np.subtract),
    "sum": Case(reductions(), np.sum),
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
    shape, reduction = draw(shapes()), draw(REDUCTIONS)
    return Call(draw(arrays(shape, shape)), lambda f, a, b: f(a, b, reduction=reduction))


@st.composite
def reduced_classifications(draw: st.DrawFn) -> Call:
    """Of rows along any axes, of which some do not count; but of nothing there is no mean."""
    (logits, labels), reduction = draw(labelled()), draw(REDUCTIONS)
    options = {"reduction": reduction}
    if draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([-1, 9]))  # which are no classes
        ignored = draw(hnp.arrays(bool, labels.shape))
        ignored[0] &= reduction != "mean"
        labels[ignored] = options["ignore_index"]
    n, classes = logits.shape
    rows = draw(st.sampled_from([(n,), (n, 1), (1, n)] + [()] * (n == 1)))
    logits, labels = logits.reshape((*rows, classes)), labels.reshape(rows)
    return Call([logits], lambda f, x: f(x, labels, **options))


def cross_entropy(
    x: np.ndarray, labels: np.ndarray, reduction: str, ignore_index: int = -100
) -> Any:
    counted = labels != ignore_index
    classes = np.where(counted, labels, 0)[..., None]
    losses = np.log(np.sum(np.exp(x), -1)) - np.take_along_axis(x, classes, -1)[..., 0]
    return (
        np.where(counted, losses, 0) if reduction == "none" else reduced(losses[counted], reduction)
    )


#: What is composed from ops, and differentiated by their rules.
COMPOSED: dict[str, Case] = {
    "cross_entropy": Case(
        reduced_classifications(),
        cross_entropy,
    ),
    "expand_dims": Case(expansions(), np.expand_dims),
    "flatten": Case(flattenings(), flat),
    "gelu": Case(gelus(), gelu),
    "logsumexp": Case(
        reductions(),
        lambda x, axis, keepdims: np.log(np.sum(np.exp(x), axis, keepdims=keepdims)),
    ),
    "mse_loss": Case(losses(), lambda a, b, reduction: reduced((a - b) ** 2, reduction)),
    "squeeze": Case(squeezes(), np.squeeze),
    "stack": Case(equals(3), np.stack),
    "std": Case(variances(), np.std),
}
