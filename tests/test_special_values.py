"""The hard points: kinks, ties, zeros, infinities, NaN and nothing at all, as exact tables.

Finite differences cannot judge a kink, so here every value and gradient is written down.  Values are
NumPy's.  Gradients are PyTorch's wherever PyTorch defines one.
"""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import loradora as ld
import minigrad as mg
from loradora import analysis, by_hand

inf, nan = np.inf, np.nan


def value_and_gradients(f, *arrays, upstream=None):
    """Return f of the arrays and its gradient for each of them, all as plain arrays."""
    xs = [mg.Tensor(np.asarray(a, dtype=float), requires_grad=True) for a in arrays]
    y = f(*xs)
    gs = mg.grad(y, xs, np.ones(y.shape) if upstream is None else upstream)
    return y.data, *(g.data for g in gs)


# ----------------------------------------------------------------------------- elementwise, one operand

POINTS = [nan, inf, -inf, 0.0, -1.0, 1e4, -1e4]

# name: the function, the same in NumPy, and its derivative at POINTS
UNARY = {
    "neg": (mg.neg, np.negative, [-1, -1, -1, -1, -1, -1, -1]),
    "abs": (mg.abs, np.abs, [0, 1, -1, 0, -1, 1, -1]),
    "exp": (mg.exp, np.exp, [nan, inf, 0, 1, math.exp(-1), inf, 0]),
    "log": (mg.log, np.log, [nan, 0, 0, inf, -1, 1e-4, -1e-4]),
    "sqrt": (mg.sqrt, np.sqrt, [nan, 0, nan, inf, nan, 0.005, nan]),
    "tanh": (mg.tanh, np.tanh, [nan, 0, 0, 1, 1 - math.tanh(1) ** 2, 0, 0]),
    "erf": (
        mg.erf,
        np.vectorize(math.erf),
        [nan, 0, 0, 2 / math.sqrt(math.pi), 2 / math.sqrt(math.pi) / math.e, 0, 0],
    ),
    "sigmoid": (
        mg.sigmoid,
        lambda a: 1 / (1 + np.exp(-a)),
        [nan, 0, 0, 0.25, math.e / (1 + math.e) ** 2, 0, 0],
    ),
    "relu": (mg.relu, lambda a: np.maximum(a, 0), [1, 1, 0, 0, 0, 1, 0]),
    "clip": (lambda a: mg.clip(a, -1, 1), lambda a: np.clip(a, -1, 1), [0, 0, 0, 1, 1, 0, 0]),
    "reciprocal": (lambda a: 1 / a, lambda a: 1 / a, [nan, 0, 0, -inf, -1, -1e-8, -1e-8]),
    "a**0": (lambda a: a**0, lambda a: a**0, [0, 0, 0, 0, 0, 0, 0]),
    "a**1": (lambda a: a**1, lambda a: a**1, [1, 1, 1, 1, 1, 1, 1]),
    "a**2": (lambda a: a**2, lambda a: a**2, [nan, inf, -inf, 0, -2, 2e4, -2e4]),
    "a**3": (lambda a: a**3, lambda a: a**3, [nan, inf, inf, 0, 3, 3e8, 3e8]),
    "a**4": (lambda a: a**4, lambda a: a**4, [nan, inf, -inf, 0, -4, 4e12, -4e12]),
    "a**5": (lambda a: a**5, lambda a: a**5, [nan, inf, inf, 0, 5, 5e16, 5e16]),
    "a**0.5": (lambda a: a**0.5, lambda a: a**0.5, [nan, 0, 0, inf, nan, 0.005, nan]),
    "a**-1": (lambda a: a**-1, lambda a: a**-1, [nan, 0, 0, -inf, -1, -1e-8, -1e-8]),
    "a**-2": (lambda a: a**-2, lambda a: a**-2.0, [nan, 0, 0, -inf, 2, -2e-12, 2e-12]),
    "a**-3": (lambda a: a**-3, lambda a: a**-3.0, [nan, 0, 0, -inf, -3, -3e-16, -3e-16]),
    "2**a": (lambda a: 2**a, lambda a: 2**a, [nan, inf, 0, math.log(2), math.log(2) / 2, inf, 0]),
    "0**a": (lambda a: 0**a, lambda a: 0.0**a, [nan, 0, -inf, 0, -inf, 0, -inf]),
}


@pytest.mark.parametrize(("f", "in_numpy", "slopes"), UNARY.values(), ids=UNARY)
def test_functions_of_one_number(f, in_numpy, slopes):
    with np.errstate(all="ignore"):
        expected = in_numpy(np.array(POINTS))
    y, g = value_and_gradients(f, POINTS)
    assert_allclose(y, expected, rtol=1e-15)
    assert_allclose(g, slopes, rtol=1e-15)


# ----------------------------------------------------------------------------- elementwise, two operands

# (a, b): the gradients for a and b
BINARY = {
    "add": (mg.add, np.add, {(nan, 1): (1, 1), (inf, -inf): (1, 1)}),
    "sub": (mg.sub, np.subtract, {(nan, 1): (1, -1), (inf, inf): (1, -1)}),
    "mul": (
        mg.mul,
        np.multiply,
        {(nan, 1): (1, nan), (inf, 1): (1, inf), (inf, 0): (0, inf), (0, 0): (0, 0)},
    ),
    "div": (
        mg.div,
        np.divide,
        {
            (1, 0): (inf, -inf),
            (-2, 0): (inf, inf),
            (0, 0): (inf, nan),
            (0, 2): (0.5, 0),
            (1, inf): (0, 0),
            (inf, 1): (1, -inf),
            (inf, inf): (0, nan),
            (nan, 1): (1, nan),
            (1, nan): (nan, nan),
        },
    ),
    "pow": (
        mg.pow,
        np.power,
        {
            (0, 0): (0, 0),
            (0, 1): (1, 0),
            (0, 2): (0, 0),
            (0, 0.5): (inf, 0),
            (0, -1): (-inf, -inf),
            (2, 0): (0, math.log(2)),
            (-2, 0): (0, nan),
            (-2, 3): (12, nan),
            (-2, 0.5): (nan, nan),
            (1, nan): (nan, 0),
            (nan, 0): (0, nan),
            (nan, 1): (1, nan),
            (inf, 0): (0, inf),
            (inf, 1): (1, inf),
            (0.5, inf): (nan, 0),
        },
    ),
    "maximum": (
        mg.maximum,
        np.maximum,
        {
            (2, 2): (0.5, 0.5),
            (-0.0, 0.0): (0.5, 0.5),
            (inf, inf): (0.5, 0.5),
            (3, -2): (1, 0),
            (-inf, 0): (0, 1),
            (nan, 1): (1, 1),
            (1, nan): (1, 1),
        },
    ),
    "minimum": (
        mg.minimum,
        np.minimum,
        {
            (2, 2): (0.5, 0.5),
            (-0.0, 0.0): (0.5, 0.5),
            (inf, inf): (0.5, 0.5),
            (3, -2): (0, 1),
            (-inf, 0): (1, 0),
            (nan, 1): (1, 1),
            (1, nan): (1, 1),
        },
    ),
}


@pytest.mark.parametrize(("f", "in_numpy", "table"), BINARY.values(), ids=BINARY)
def test_functions_of_two_numbers(f, in_numpy, table):
    a, b = np.array(list(table), dtype=float).T
    with np.errstate(all="ignore"):
        expected = in_numpy(a, b)
    y, ga, gb = value_and_gradients(f, a, b)
    assert_array_equal(y, expected)
    assert_allclose(np.stack([ga, gb], axis=1), list(table.values()), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_power_of_0_is_constant_also_at_subnormal_numbers(dtype, sign):
    limits = np.finfo(dtype)
    points = sign * np.array([limits.smallest_subnormal, limits.tiny / 8, limits.tiny, 1.0], dtype)
    for exponent in (0, np.zeros(4, dtype)):
        a = mg.Tensor(points, requires_grad=True)
        slope = mg.grad((a**exponent).sum(), a, create_graph=True)
        assert_array_equal(slope.data, np.zeros(4, dtype), strict=True)
        again = mg.grad(slope.sum(), a).data
        assert_array_equal(again[[0, 1, 3]], np.zeros(3))  # at tiny, a⁻² overflows


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [*range(-7, 8), 20, -21, 5.0, 2**60], ids=str)
def test_whole_powers_are_those_of_numpy(n, dtype):
    """Within two units in the last place, with every sign, 0, infinity and NaN."""
    limits = np.finfo(dtype)
    sizes = [0, limits.smallest_subnormal, limits.tiny, 0.3, 1 - limits.eps, 1, 1.7, 30, limits.max]
    a = np.array([*sizes, limits.tiny**0.25, limits.max**0.25, inf, nan], dtype)
    a = np.concatenate([a, -a])
    with np.errstate(all="ignore"):
        expected = a ** np.array(n, dtype)
    y = (mg.Tensor(a) ** n).data
    assert_allclose(y, expected, rtol=2 * limits.eps, atol=limits.smallest_subnormal, strict=True)
    known = ~np.isnan(a)
    assert_array_equal(np.signbit(y[known]), np.signbit(expected[known]))


MIXED = {
    "a**b": (mg.pow, [0.3, 1.7, 2.9], [1.1, -0.7, 3.3]),
    "a**b near 0": (mg.pow, [1e-30, 1e-20, 2e30], [1e-8, 3e-9, -1e-8]),
    "a/b": (mg.div, [0.3, 1.7, 2.9], [1.1, -0.7, 3.3]),
    "a∘b": (mg.mul, [0.3, 1.7, 2.9], [1.1, -0.7, 3.3]),
    "max(a, b)": (mg.maximum, [0.3, 1.7, 2.9], [1.1, -0.7, 3.3]),
    "a·b": (mg.matmul, [0.3, 1.7, 2.9], [1.1, -0.7, 3.3]),
    "affine": (lambda a, b: mg.affine(a, b, 0.5), [0.3, 1.7, 2.9], [1.1, -0.7, 3.3]),
}


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize(("f", "a", "b"), MIXED.values(), ids=MIXED)
def test_a_rule_computes_in_the_dtype_of_the_result_if_its_arguments_differ(f, a, b, narrow):
    """The argument in float64 has a gradient of its precision, beside float32; so has a second one."""
    wide = [np.float32(x).astype(np.float64) for x in (a, b)]
    mixed = [x.astype(np.float32) if i == narrow else x for i, x in enumerate(wide)]
    results = []
    for pair in (mixed, wide):
        xs = [mg.Tensor(x, requires_grad=True) for x in pair]
        y = f(*xs)
        gradients = mg.grad(y, xs, np.ones(y.shape), create_graph=True)
        again = mg.grad(gradients[1 - narrow].sum() + 0 * xs[1 - narrow].sum(), xs[1 - narrow])
        results.append([y.data, gradients[1 - narrow].data, again.data, gradients[narrow].data])
    *found, last = results[0]
    *exact, rounded = results[1]
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == np.float64
        assert_allclose(one, other, rtol=1e-14)
    assert_allclose(last, rounded, rtol=2e-7)


# ----------------------------------------------------------------------------- kinks


def test_clip_passes_the_gradient_on_the_closed_interval():
    x = [-2, -1, 0, 1, 2, nan]
    assert_array_equal(value_and_gradients(lambda x: mg.clip(x, -1, 1), x)[1], [0, 1, 1, 1, 0, 0])
    assert_array_equal(value_and_gradients(lambda x: mg.clip(x, min=0), x)[1], [0, 0, 1, 1, 1, 0])
    assert_array_equal(value_and_gradients(lambda x: mg.clip(x, max=0), x)[1], [1, 1, 1, 0, 0, 0])
    assert_array_equal(value_and_gradients(mg.clip, x)[1], [1, 1, 1, 1, 1, 1])


def test_an_infinite_upstream_gradient_is_stopped_by_what_was_not_chosen():
    x = [-1.0, 2.0]
    for f in (mg.relu, lambda x: mg.clip(x, min=0), lambda x: mg.maximum(x, 0)):
        assert_array_equal(value_and_gradients(f, x, upstream=[inf, inf])[1], [0, inf])
        assert_array_equal(value_and_gradients(f, x, upstream=[inf, 3])[1], [0, 3])
        assert_array_equal(value_and_gradients(f, x, upstream=[nan, nan])[1], [0, nan])


def test_an_infinite_gradient_of_a_gradient_is_stopped_there_too():
    """The slope is linear in the upstream gradient g, so its own rule keeps and drops the same places."""
    x, g = (mg.Tensor(a, requires_grad=True) for a in ([-1.0, 2.0], [1.0, 1.0]))
    for f in (mg.relu, lambda x: mg.clip(x, min=0), lambda x: mg.maximum(x, 0)):
        slope = mg.grad(f(x), x, g, create_graph=True)
        assert_array_equal(mg.grad(slope, g, [inf, inf]).data, [0, inf])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_what_was_not_chosen_has_gradient_plus_0_in_every_precision(dtype):
    x = mg.Tensor(np.array([[-1, 2], [-3, 4], [-5, 6]], dtype), requires_grad=True)
    g = np.array([[inf, nan, -inf], [-1, nan, -inf]], dtype).T
    for f in (
        mg.relu,
        lambda x: mg.clip(x, min=0),
        lambda x: mg.maximum(x, 0),
        lambda x: mg.where([False, True], x, 0),
    ):
        found = mg.grad(f(x), x, g).data
        assert_array_equal(found, np.array([[0, -1], [0, nan], [0, -inf]], dtype), strict=True)
        assert not np.signbit(found[:, 0]).any()


def test_where_passes_each_side_what_it_was_chosen_for_even_if_infinite():
    _, a, b = value_and_gradients(
        lambda a, b: mg.where([True, False, True], a, b),
        [1, nan, 3],
        [nan, 5, inf],
        upstream=[inf, -inf, nan],
    )
    assert_array_equal(a, [inf, 0, nan])
    assert_array_equal(b, [0, -inf, 0])


def test_where_hides_a_constant_that_is_not_a_number():
    y, g = value_and_gradients(lambda x: mg.where(x > 0, x, nan) * 2, [1, 2])
    assert_array_equal(y, [2, 4])
    assert_array_equal(g, [2, 2])


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("f", "sign"), [(mg.max, 1), (mg.min, -1)], ids=["max", "min"])
@pytest.mark.parametrize(
    ("a", "axis", "upstream", "gradient"),
    [
        pytest.param([1, 3, 3], None, 6, [0, 3, 3], id="two of three"),
        pytest.param([[2, 2], [2, 2]], None, 1, [[0.25] * 2] * 2, id="all"),
        pytest.param([[2, 2], [2, 1]], 0, [4, 8], [[2, 8], [2, 0]], id="columns"),
        pytest.param([[2, 2], [2, 1]], 1, [4, 8], [[2, 2], [8, 0]], id="rows"),
        pytest.param([[[5, 1], [5, 5]]], (0, 2), [1, 1], [[[1, 0], [0.5, 0.5]]], id="axis pair"),
        pytest.param([-inf, -inf], None, 1, [0.5, 0.5], id="infinities"),
        pytest.param([1, nan, 2], None, 1, [0, 1, 0], id="a NaN wins"),
        pytest.param([nan, nan, 2], None, 1, [0.5, 0.5, 0], id="NaNs share"),
    ],
)
def test_a_tie_shares_its_gradient_evenly(f, sign, keepdims, a, axis, upstream, gradient):
    a = sign * np.array(a, dtype=float)
    largest = np.max(sign * a, axis=axis, keepdims=keepdims)
    y, g = value_and_gradients(
        lambda a: f(a, axis, keepdims), a, upstream=np.reshape(upstream, largest.shape)
    )
    assert_array_equal(y, sign * largest)
    assert_array_equal(g, gradient)


# ----------------------------------------------------------------------------- norm

ZERO_AXES = [None, 0, 1, -1, (0, 1), (1, 0)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", ZERO_AXES)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0), (0, 0)])
def test_the_zero_vector_has_norm_0_and_gradient_0(shape, axis, keepdims):
    y, g = value_and_gradients(lambda a: mg.norm(a, axis, keepdims), np.zeros(shape))
    expected = np.sum(np.zeros(shape), axis=axis, keepdims=keepdims)
    assert_array_equal(y, expected, strict=True)
    assert_array_equal(g, np.zeros(shape), strict=True)


def test_a_row_of_zeros_has_gradient_0_and_its_neighbours_theirs():
    y, g = value_and_gradients(lambda a: mg.norm(a, axis=1), [[0, 0], [3, 4], [0, -2]])
    assert_array_equal(y, [0, 5, 2])
    assert_array_equal(g, [[0, 0], [0.6, 0.8], [0, -1]])


def test_the_norm_of_a_number_is_its_absolute_value():
    assert [float(v) for v in value_and_gradients(mg.norm, -3.0)] == [3, -1]
    assert [float(v) for v in value_and_gradients(mg.norm, 0.0)] == [0, 0]


@pytest.mark.parametrize("size", [1.0, 1e200, 1e-170, 1e-300, 2.0**-1060, 1.7e308 / 5])
def test_the_norm_neither_overflows_nor_underflows(size):
    a = np.array([3.0, -4.0, 0.0]) * size
    y, g = value_and_gradients(mg.norm, a)
    assert_allclose(y, 5 * size, rtol=2**-51)
    assert_allclose(g, [0.6, -0.8, 0], rtol=2**-51)


def test_the_smallest_number_there_is_has_a_norm_and_a_direction():
    tiny = np.nextafter(0, 1)
    assert [float(v) for v in value_and_gradients(mg.norm, -tiny)] == [tiny, -1]


def test_huge_and_tiny_rows_do_not_disturb_each_other():
    y, g = value_and_gradients(lambda a: mg.norm(a, axis=1), [[3e300, 4e300], [3e-300, 4e-300]])
    assert_allclose(y, [5e300, 5e-300], rtol=1e-15)
    assert_allclose(g, [[0.6, 0.8], [0.6, 0.8]], rtol=1e-15)
    y, g = value_and_gradients(lambda a: mg.norm(a, axis=1), [[3.0, 4.0], [3e300, 4e300]])
    assert_allclose(y, [5, 5e300], rtol=1e-15)
    assert_allclose(g, [[0.6, 0.8], [0.6, 0.8]], rtol=1e-15)


def test_a_huge_norm_keeps_the_other_axes_also_of_length_1():
    a = np.full((2, 1, 4), 1e200)
    for keepdims in (False, True):
        y = mg.norm(a, 2, keepdims)
        assert_allclose(y.data, np.full((2, 1, 1) if keepdims else (2, 1), 2e200), strict=True)


def test_the_norm_of_infinities_and_nan():
    for a, length, gradient in [
        ([inf, 1], inf, [nan, 0]),
        ([inf, -inf], inf, [nan, nan]),
        ([nan, 1], nan, [nan, nan]),
    ]:
        y, g = value_and_gradients(mg.norm, a)
        assert_array_equal(y, length)
        assert_array_equal(g, gradient)


# ----------------------------------------------------------------------------- standard deviation


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", ZERO_AXES)
def test_what_does_not_vary_has_deviation_0_and_gradient_0(axis, keepdims):
    """The root of the variance would have the gradient NaN there.  It is 0 here and in PyTorch."""
    y, g = value_and_gradients(lambda a: mg.std(a, axis, keepdims=keepdims), np.full((2, 3), 2.0))
    assert_array_equal(y, np.std(np.full((2, 3), 2.0), axis, keepdims=keepdims), strict=True)
    assert_array_equal(g, np.zeros((2, 3)))


#: numbers, ddof: the deviation, and its gradient
DEVIATIONS = {
    "three numbers": ([2, 3, 4], 1, 1, [-0.5, 0, 0.5]),
    "one number": ([7], 0, 0, [0]),
    "no degree of freedom": ([7], 1, nan, [nan]),
    "two numbers, none": ([2, 3], 2, inf, [nan, nan]),
    "fewer than none": ([2, 3], 3, inf, [nan, nan]),
    "nothing": ([], 0, nan, []),
    "an infinity": ([inf, 1], 0, nan, [nan, nan]),
    "a NaN": ([nan, 1], 0, nan, [nan, nan]),
    "squares that overflow": ([1e200, -1e200], 0, 1e200, [0.5, -0.5]),
    "squares that underflow": ([1e-200, -1e-200], 0, 1e-200, [0.5, -0.5]),
}


@pytest.mark.parametrize(("a", "ddof", "value", "gradient"), DEVIATIONS.values(), ids=DEVIATIONS)
def test_deviations(a, ddof, value, gradient):
    y, g = value_and_gradients(lambda a: mg.std(a, ddof=ddof), a)
    assert_allclose(y, value, rtol=1e-15)
    assert_allclose(g, gradient, rtol=1e-15)


def test_float16_deviates_and_adds_up_powers_in_float32():
    x = mg.Tensor(np.float16([60000, -60000] * 2000), requires_grad=True)
    y = mg.std(x)
    assert_array_equal(y.data, np.float16(60000), strict=True)
    assert_allclose(mg.grad(y, x).data * 4000, np.sign(x.data), rtol=2e-3)
    x = mg.Tensor(np.zeros(100_000, np.float16), requires_grad=True)
    y = mg.logsumexp(x)
    assert_array_equal(y.data, np.float16(math.log(100_000)), strict=True)
    assert_allclose(mg.grad(y, x).data, np.full(100_000, 1e-5), rtol=5e-3)


# ----------------------------------------------------------------------------- layer norm

#: numbers, eps: normalised, and their gradients for the upstream gradient (1, 2, 4)
NORMALIZED = {
    "two apart": ([1, -1, 0], 1 / 3, ([1, -1, 0], [-1, -2 / 3, 5 / 3])),
    "all equal": ([2, 2, 2], 0.25, ([0, 0, 0], [-8 / 3, -2 / 3, 10 / 3])),
    "all equal, without eps": ([2, 2, 2], 0, ([nan] * 3, [nan] * 3)),
    "squares that overflow": ([1e200, -1e200, 0], 1e-5, ([nan] * 3, [nan] * 3)),
    "an infinity": ([inf, 1, 2], 1e-5, ([nan] * 3, [nan] * 3)),
    "a NaN": ([nan, 1, 2], 1e-5, ([nan] * 3, [nan] * 3)),
}


@pytest.mark.parametrize(("x", "eps", "expected"), NORMALIZED.values(), ids=NORMALIZED)
def test_layer_norm_of_extreme_rows(x, eps, expected):
    """PyTorch's values, except where squares overflow (it has 0 or NaN there).  Rows are independent."""
    rows = [x, [0, 1, -1]]
    found = value_and_gradients(
        lambda x: mg.layer_norm(x, eps=eps), rows, upstream=np.array([[1.0, 2, 4], [0, 0, 0]])
    )
    for array, wanted in zip(found, expected, strict=True):
        assert_allclose(array[0], wanted, rtol=1e-14, atol=1e-15)
        assert np.isfinite(array[1]).all()


@pytest.mark.parametrize("upstream", [0.0, 3.0])
def test_layer_norm_of_one_entry_is_0_and_constant(upstream):
    y, g = value_and_gradients(mg.layer_norm, [[7.0], [-1.0]], upstream=[[upstream], [2.0]])
    assert_array_equal(y, [[0], [0]])
    assert_array_equal(g, [[0], [0]])


@pytest.mark.parametrize("shift", [0, 1e3, -1e5])
def test_layer_norm_keeps_its_digits_far_from_0(shift):
    """The mean of squares minus the square of the mean would lose all digits."""
    x = np.float32([[1, 3], [-0.5, 0.5]]) + np.float32(shift)
    y, exact = mg.layer_norm(x, eps=0.0), np.float32([[-1, 1], [-1, 1]])
    assert_allclose(y.data, exact, rtol=1e-6)


# ----------------------------------------------------------------------------- softmax

LN2 = math.log(2)

# logits: log-softmax, softmax, and their gradients for the upstream gradient (1, 2, 4)
SOFTMAX = {
    "far apart": (
        [1e4, -1e4, 0],
        ([0, -2e4, -1e4], [-6, 2, 4]),
        ([1, 0, 0], [0, 0, 0]),
    ),
    "huge and equal": (
        [1e300, 1e300, -1e300],
        ([-LN2, -LN2, -2e300], [-2.5, -1.5, 4]),
        ([0.5, 0.5, 0], [-0.25, 0.25, 0]),
    ),
    "masked": (
        [-inf, 0, 0],
        ([-inf, -LN2, -LN2], [1, -1.5, 0.5]),
        ([0, 0.5, 0.5], [0, -0.5, 0.5]),
    ),
    "all masked": ([-inf] * 3, ([-inf] * 3, [1, 2, 4]), ([0] * 3, [0] * 3)),
    "infinite": ([inf, 0, 0], ([nan] * 3, [nan] * 3), ([nan] * 3, [nan] * 3)),
    "NaN": ([nan, 0, 0], ([nan] * 3, [nan] * 3), ([nan] * 3, [nan] * 3)),
}


@pytest.mark.parametrize(("logits", "of_log", "of_softmax"), SOFTMAX.values(), ids=SOFTMAX)
def test_softmax_of_extreme_logits(logits, of_log, of_softmax):
    for f, expected in ((mg.log_softmax, of_log), (mg.softmax, of_softmax)):
        found = value_and_gradients(f, logits, upstream=[1.0, 2.0, 4.0])
        for array, wanted in zip(found, expected, strict=True):
            assert_allclose(array, wanted, rtol=1e-15)


@pytest.mark.parametrize("hidden", [nan, inf, -inf, 1e4, -0.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_softmax_does_not_choose_is_0_and_takes_no_part(hidden, dtype):
    x = np.array([[0, hidden, 0], [hidden, hidden, hidden], [1e4, hidden, -inf]], dtype)
    x = mg.Tensor(x, requires_grad=True)
    p = mg.softmax(x, where=[[True, False, True], [False] * 3, [True, False, True]])
    assert_array_equal(p.data, np.array([[0.5, 0, 0.5], [0, 0, 0], [1, 0, 0]], dtype), strict=True)
    g = mg.grad(p, x, np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    assert_array_equal(g.data, np.array([[-0.5, 0, 0.5], [0, 0, 0], [0, 0, 0]], dtype), strict=True)


@pytest.mark.parametrize("chosen", [nan, inf])
def test_what_cannot_be_shared_out_makes_nan_of_its_row_alone(chosen):
    y, g = value_and_gradients(
        lambda x: mg.softmax(x, where=[True, True, False]), [[chosen, 0, 0], [0, 0, 0]]
    )
    assert_array_equal(y, [[nan, nan, nan], [0.5, 0.5, 0]])
    assert_array_equal(g, [[nan, nan, nan], [0, 0, 0]])


def test_a_label_without_a_chance_is_infinitely_unexpected():
    """Whether it is one of several, or none has one: p is 0, and its gradient p − onehot."""
    y, g = value_and_gradients(lambda x: mg.ops.nll(x, [0, 0]), [[-inf, 0], [-inf, -inf]])
    assert_array_equal(y, [inf, inf])
    assert_array_equal(g, [[-1, 1], [-1, 0]])
    assert_array_equal(mg.ops.nll_grad([[-inf, -inf]], [2], [0]).data, [[-2, 0]])


# logits: the logarithm of the sum of their powers, and its gradient
LOGSUMEXP = {
    "far apart": ([1e4, -1e4, 0], 1e4, [1, 0, 0]),
    "far below": ([-1e4, -1e4, -2e4], LN2 - 1e4, [0.5, 0.5, 0]),
    "huge and equal": ([1e300, 1e300, -1e300], 1e300, [0.5, 0.5, 0]),
    "masked": ([-inf, 0, 0], LN2, [0, 0.5, 0.5]),
    "all masked": ([-inf] * 3, -inf, [nan] * 3),
    "infinite": ([inf, 0, 0], inf, [nan, 0, 0]),
    "both infinities": ([inf, -inf, inf], inf, [nan, 0, nan]),
    "NaN": ([nan, 0, 0], nan, [nan] * 3),
    "nothing": ([], -inf, []),
}


@pytest.mark.parametrize(("logits", "value", "gradient"), LOGSUMEXP.values(), ids=LOGSUMEXP)
def test_logsumexp_of_extreme_logits(logits, value, gradient):
    y, g = value_and_gradients(mg.logsumexp, logits)
    assert_allclose(y, value, rtol=1e-15)
    assert_allclose(g, gradient, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [-1000, -100, -88, -40, -16, 16, 40, 44, 60, 88, 100, 700, 1000])
def test_softmax_does_not_feel_a_shift_of_all_logits(shift, dtype):
    """Powers that leave the range of numbers, or nearly so, take no digits with them."""
    z = np.array([[0, -1, -3.5], [-30, 0, -60]], dtype)
    p = np.exp(z, dtype=float) / np.sum(np.exp(z, dtype=float), axis=1, keepdims=True)
    near, w = 20 * np.finfo(dtype).eps, np.array([1e-3, 2], dtype)
    labels, onehot = [2, 0], np.eye(3)[[2, 0]]
    x = mg.Tensor(z + dtype(shift), requires_grad=True)
    loss = mg.ops.nll(x, labels)
    for found, exact in [
        (mg.softmax(x), p),
        (loss, -np.log(p[[0, 1], labels])),
        (mg.grad(loss, x, w), w[:, None] * (p - onehot)),
    ]:
        assert found.dtype == dtype
        assert_allclose(found.data, exact, rtol=near, atol=near * 1e-9)


@pytest.mark.parametrize("shift", [0, -15, 40])
@pytest.mark.parametrize("below", [0, 10, 39, 41, 80, 86, 90, 110, 1e4])
def test_the_loss_of_an_unlikely_label_keeps_its_digits(below, shift):
    x = np.float32([[0, -below], [0, 0]]) + np.float32(shift)
    exact = np.log(np.exp(-float(below)) + 1) + below, LN2
    assert_allclose(mg.ops.nll(x, [1, 0]).data, exact, rtol=2e-7)


def test_a_row_of_logits_does_not_disturb_another():
    rows = [[1e4, 0], [-inf, -inf], [-1e4, -1e4]]
    y, g = value_and_gradients(lambda x: mg.logsumexp(x, 1, keepdims=True), rows)
    assert_allclose(y, [[1e4], [-inf], [LN2 - 1e4]], rtol=1e-15)
    assert_allclose(g, [[1, 0], [nan, nan], [0.5, 0.5]], rtol=1e-15)


def test_cross_entropy_never_overflows():
    logits = [[1e4, -1e4], [1e4, -1e4], [-inf, 0], [1e308, -1e308]]
    y, g = value_and_gradients(
        lambda a: mg.cross_entropy(a, [0, 1, 1, 0], reduction="none"), logits
    )
    assert_array_equal(y, [0, 2e4, 0, 0])
    assert_array_equal(g, [[0, 0], [1, -1], [0, 0], [0, 0]])


@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gelu_of_infinities_and_nan(form, dtype):
    """Where it is constantly 0 it does not feel how far that is; elsewhere the values are PyTorch's."""
    points = np.array([-inf, np.finfo(dtype).min, -50, 0, 50, nan, inf], dtype)
    x = mg.Tensor(points, requires_grad=True)
    y = mg.gelu(x, form)
    assert_array_equal(y.data, np.array([0, 0, 0, 0, 50, nan, inf], dtype), strict=True)
    slope = mg.grad(y.sum(), x, create_graph=True)
    assert_array_equal(slope.data, np.array([0, 0, 0, 0.5, 1, nan, nan], dtype), strict=True)
    assert_array_equal(mg.grad(slope.sum(), x).data[:3], np.zeros(3))
    assert_array_equal(mg.grad(mg.gelu(x, form).sum(), x).data, slope.data)  # of arrays alone


def test_far_to_the_left_gelu_still_has_the_slope_of_float64():
    """(1 − a²) e^(−a²/2)/√(2π) falls to 1e-86 at −20, and Φ is cut off long before."""
    x = mg.Tensor([-10.0, -20.0], requires_grad=True)
    slope = mg.grad(mg.gelu(x).sum(), x).data
    bell = np.exp(-(x.data**2) / 2) / math.sqrt(2 * math.pi)
    assert_allclose(slope, x.data * bell, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_left_tail_of_gelu_is_small_and_not_positive(dtype):
    """What is left of it is known to the last digit of ½, not to its own."""
    x = np.linspace(-45, -1, 3000).astype(dtype)
    exact = [a / 2 * math.erfc(-a / math.sqrt(2)) for a in x.tolist()]
    found = mg.gelu(x).data
    assert np.all(found <= 0)
    assert_allclose(found, exact, rtol=0, atol=3 * np.finfo(dtype).eps)
    few = x[x > -40]
    assert_array_equal(mg.gelu(few).data, found[x > -40])


def test_sigmoid_keeps_its_small_values():
    y, g = value_and_gradients(mg.sigmoid, [-740.0, 740.0])
    assert_allclose(y, [math.exp(-740), 1], rtol=1e-15)
    assert_allclose(g, [math.exp(-740), 0], rtol=1e-15)


# ----------------------------------------------------------------------------- one number, and nothing

# what keeps the shape of its only tensor
SAME_SHAPE = {name: f for name, (f, *_) in UNARY.items()} | {
    "gelu": mg.gelu,
    "layer_norm": mg.layer_norm,
    "softmax": mg.softmax,
    "log_softmax": mg.log_softmax,
    "where": lambda a: mg.where(a > 0, a, 0),
    "mul": lambda a: a * a,
    "maximum": lambda a: mg.maximum(a, 0),
    "minimum": lambda a: mg.minimum(a, 0),
    "reshape": lambda a: a.reshape(a.shape),
    "transpose": lambda a: a.T.T,
    "broadcast_to": lambda a: mg.broadcast_to(a, a.shape),
    "astype": lambda a: a.astype(np.float32),
    "getitem": lambda a: a[...],
    "linear": lambda a: mg.linear(a, np.eye(a.shape[-1])) if a.ndim else 1 * a,
}


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("f", SAME_SHAPE.values(), ids=SAME_SHAPE)
def test_one_number_and_no_numbers_go_through(f, shape):
    y, g = value_and_gradients(f, np.full(shape, 0.5))
    assert y.shape == g.shape == shape
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(g))


# reduction: its value of nothing
OF_NOTHING = {
    "sum": (mg.sum, 0),
    "mean": (mg.mean, nan),
    "var": (mg.var, nan),
    "norm": (mg.norm, 0),
    "std": (mg.std, nan),
    "logsumexp": (mg.logsumexp, -inf),
}


@pytest.mark.parametrize(("f", "of_nothing"), OF_NOTHING.values(), ids=OF_NOTHING)
def test_reductions_of_one_number_and_of_nothing(f, of_nothing):
    one, slope = value_and_gradients(f, 2.0)
    assert one == (0 if f in (mg.var, mg.std) else 2)
    assert slope == (0 if f in (mg.var, mg.std) else 1)
    y, g = value_and_gradients(lambda a: f(a, axis=1), np.ones((3, 0)))
    assert_array_equal(y, [of_nothing] * 3)
    assert g.shape == (3, 0)
    y, g = value_and_gradients(lambda a: f(a, axis=0), np.ones((3, 0)))
    assert y.shape == (0,)
    assert g.shape == (3, 0)


# numbers, and a ddof that leaves no degrees of freedom: the variance and its gradient
NO_FREEDOM = {
    "one number": ([2.0], 1, nan, [nan]),
    "two numbers": ([1.0, 3.0], 2, inf, [-inf, inf]),
    "one of them is the mean": ([1.0, 2.0, 3.0], 3, inf, [-inf, nan, inf]),
    "fewer than none": ([1.0, 3.0], 3, inf, [-inf, inf]),
    "nothing": ([], 1, nan, []),
}


@pytest.mark.parametrize(("a", "ddof", "variance", "slopes"), NO_FREEDOM.values(), ids=NO_FREEDOM)
def test_without_degrees_of_freedom_a_variance_is_infinite_or_undefined(a, ddof, variance, slopes):
    with pytest.warns(RuntimeWarning):
        assert_array_equal(np.var(a, ddof=ddof), variance)
    for axis in (None, 0):
        y, g = value_and_gradients(lambda a, axis=axis: mg.var(a, axis, ddof), a)
        assert_array_equal(y, variance)
        assert_array_equal(g, slopes)


@pytest.mark.parametrize("f", [mg.max, mg.min], ids=["max", "min"])
def test_nothing_has_no_extreme_but_no_columns_have_no_extremes(f):
    with pytest.raises(ValueError, match="no identity"):
        f(mg.Tensor(np.ones((3, 0))), axis=1)
    y, g = value_and_gradients(lambda a: f(a, axis=0), np.ones((3, 0)))
    assert y.shape == (0,)
    assert g.shape == (3, 0)


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [
        ((0, 2), (2, 3), (0, 3)),
        ((2, 0), (0, 3), (2, 3)),
        ((0,), (0,), ()),
        ((0, 1, 2), (2,), (0, 1)),
    ],
    ids=str,
)
def test_products_with_an_empty_side(a, b, product):
    y, ga, gb = value_and_gradients(mg.matmul, np.ones(a), np.ones(b))
    assert_array_equal(y, np.zeros(product), strict=True)
    assert_array_equal(ga, np.zeros(a), strict=True)
    assert_array_equal(gb, np.zeros(b), strict=True)


def test_joining_and_selecting_nothing():
    none, some = np.ones((0, 2)), np.ones((3, 2))
    y, g0, g1 = value_and_gradients(lambda a, b: mg.concatenate([a, b]), none, some)
    assert (y.shape, g0.shape, g1.shape) == ((3, 2), (0, 2), (3, 2))
    for index in ([], slice(0), np.zeros(3, bool)):
        y, g = value_and_gradients(lambda a, index=index: a[index], some)
        assert y.shape == (0, 2)
        assert_array_equal(g, np.zeros((3, 2)))


@pytest.mark.parametrize("dtype", ["u1", ">u2", ">u4", ">u8", "i1", ">i8"])
def test_no_kind_of_label_breaks_the_search_for_ignored_ones(dtype):
    """NumPy 2.0 may crash where unsigned numbers that it must buffer are compared with −100."""
    labels = np.zeros((40, 600), dtype)[:, ::2]
    logits = np.zeros((40, 300, 2))
    for _ in range(20):
        assert_allclose(mg.cross_entropy(logits, labels).item(), LN2)
        assert_allclose(mg.cross_entropy(logits.reshape(-1, 2), labels.ravel()).item(), LN2)
        with pytest.raises(IndexError, match="label 0 is out of range for 0 classes"):
            mg.cross_entropy(logits[..., :0], labels)


@pytest.mark.parametrize("hidden", [nan, inf, -inf, 1e308])
def test_a_label_that_is_ignored_leaves_no_trace(hidden):
    logits = np.array([[[0, 0], [hidden, hidden]], [[hidden, 0], [LN2, 0]]])
    for labels, ignored in (([[0, -100], [-100, 1]], {}), ([[0, 2], [2, 1]], {"ignore_index": 2})):
        for reduction, value, scale in (
            ("none", [[LN2, 0], [0, math.log(3)]], 1),
            ("sum", LN2 + math.log(3), 1),
            ("mean", (LN2 + math.log(3)) / 2, 1 / 2),
        ):
            y, g = value_and_gradients(
                lambda x, labels=labels, options=ignored | {"reduction": reduction}: (
                    mg.cross_entropy(x, labels, **options)
                ),
                logits,
            )
            assert_allclose(y, value, rtol=1e-15)
            assert_allclose(g[0, 0] / scale, [-0.5, 0.5], rtol=1e-15)
            assert_allclose(g[1, 1] / scale, [2 / 3, -2 / 3], rtol=1e-15)
            assert_array_equal(g[[0, 1], [1, 0]], np.zeros((2, 2)))


def test_the_mean_over_labels_that_are_all_ignored_is_undefined():
    for reduction, value in (("mean", nan), ("sum", 0), ("none", [0, 0])):
        y, g = value_and_gradients(
            lambda x, reduction=reduction: mg.cross_entropy(x, [-100, -100], reduction),
            [[1, 2], [nan, 4]],
        )
        assert_array_equal(y, value)
        assert_array_equal(g, np.zeros((2, 2)))


def test_losses_of_no_examples():
    y, g = value_and_gradients(
        lambda a: mg.cross_entropy(a, np.zeros(0, int), reduction="sum"), np.ones((0, 4))
    )
    assert y == 0
    assert g.shape == (0, 4)
    y, g = value_and_gradients(lambda a: mg.mse_loss(a, np.ones((0,))), np.ones((0,)))
    assert np.isnan(y)
    assert g.shape == (0,)


# ----------------------------------------------------------------------------- second order


@pytest.mark.parametrize(
    "condition", [[255, 0], [-3, 0], [0.5, 0.0], [True, False], np.uint8([255, 0])], ids=repr
)
def test_a_condition_of_numbers_chooses_and_does_not_scale(condition):
    x = mg.Tensor([1.0, 1.0], requires_grad=True)
    for create_graph in (False, True):
        y = mg.where(condition, x, 0.0).sum() + mg.where(condition, 0.0, 3 * x).sum()
        assert_array_equal(mg.grad(y, x, create_graph=create_graph).data, [1, 3])


def test_the_hessian_of_a_power_is_symmetric_where_the_exponent_is_0():
    """∂²(aᵇ)/∂a∂b = aᵇ⁻¹ (1 + b log a), which is 1/a at b = 0."""
    a, b = mg.Tensor(2.0, requires_grad=True), mg.Tensor(0.0, requires_grad=True)
    da, db = mg.grad(a**b, [a, b], create_graph=True)
    assert mg.grad(da, b).item() == mg.grad(db, a).item() == 0.5
    mg.gradgradcheck(mg.pow, np.array([2.0, 0.5]), np.array([0.0, 0.0]))
    mg.gradgradcheck(mg.pow, np.array([2.0, 0.5, 3.0]), np.array([0.0, 0.0, 2.0]))


@pytest.mark.parametrize(
    ("a", "b", "hessian"),
    [
        (0.0, 0.0, [[0, 1], [0, 0]]),
        (0.0, 1.0, [[0, 1], [0, 0]]),
        (0.0, 2.0, [[2, 0], [0, 0]]),
        (1e-320, 0.0, [[0, 1], [inf, math.log(1e-320) ** 2]]),
        (nan, 0.0, [[0, 1], [nan, nan]]),
    ],
)
def test_where_a_power_has_conventions_its_second_derivatives_are_theirs(a, b, hessian):
    """Where 1 is taken for the base of b aᵇ⁻¹, its slope by b is 1; where log a is that of 1, it is 0."""
    xs = [mg.Tensor(a, requires_grad=True), mg.Tensor(b, requires_grad=True)]
    slopes = mg.grad(xs[0] ** xs[1], xs, create_graph=True)
    found = [[g.item() for g in mg.grad(slope, xs)] for slope in slopes]
    assert_allclose(found, hessian, rtol=1e-15)


@pytest.mark.parametrize(
    ("a", "b"), [(np.float16(1e-6), np.float64), (np.float32(1e-39), np.float64)], ids=repr
)
def test_a_base_whose_inverse_its_own_dtype_cannot_hold_keeps_it_in_that_of_the_power(a, b):
    base = mg.Tensor(np.array([a]), requires_grad=True)
    exponent = mg.Tensor(np.zeros(1, b), requires_grad=True)
    slope = mg.grad((base**exponent).sum(), base, create_graph=True)
    assert_allclose(mg.grad(slope.sum(), exponent).data, 1 / b(a), rtol=1e-15)


def test_the_slope_of_a_power_of_mixed_exponents_is_that_of_its_dtype():
    """Of the two powers with the exponent 1/2 the upstream gradients cancel."""
    a = mg.Tensor(np.array(1e-5, np.float16), requires_grad=True)
    y = a ** np.array([0, 0.5, 0.5], np.float32)
    slope = mg.grad(y, a, [1.0, 1.0, -1.0], create_graph=True)
    assert mg.grad(slope, a).item() == 0


def test_a_base_close_to_1_keeps_its_logarithm_in_float16():
    x = mg.Tensor(np.zeros(1, np.float16), requires_grad=True)
    slope = mg.grad(1.0000001**x, x, np.float16([1e4])).data
    assert_allclose(slope, 1e4 * math.log(1.0000001), rtol=1e-3)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_gradient_of_the_norm_at_the_zero_vector_is_constant(axis):
    x = mg.Tensor(np.zeros((2, 3)), requires_grad=True)
    slope = mg.grad(mg.norm(x, axis=axis).sum(), x, create_graph=True)
    assert_array_equal(mg.grad((slope * np.arange(6.0).reshape(2, 3)).sum(), x).data, 0 * x.data)


@pytest.mark.parametrize("f", [mg.max, mg.min], ids=["max", "min"])
def test_an_infinite_upstream_gradient_reaches_only_what_was_chosen(f):
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    expected = [0, inf] if f is mg.max else [inf, 0]
    assert_array_equal(mg.grad(f(x), x, inf).data, expected)


# ----------------------------------------------------------------------------- numbers, few bits

REDUCTIONS = [mg.sum, mg.mean, mg.max, mg.min, mg.norm, mg.var]
REDUCTIONS += [mg.softmax, mg.log_softmax, mg.layer_norm]


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("f", REDUCTIONS, ids=lambda f: f.name)
def test_a_number_may_be_reduced_over_its_only_axis(f, axis):
    x = mg.Tensor(3.0, requires_grad=True)
    y, row = f(x, axis=axis), f(x.reshape(1), axis=axis)
    assert y.shape == ()
    assert_array_equal(y.data, row.data.reshape(()))
    slope = mg.grad(y, x, create_graph=True)
    assert_array_equal(slope.data, mg.grad(row, x, np.ones(row.shape)).data)
    with pytest.raises(ValueError, match="axis 1"):
        f(x, axis=1)


MANY = 70_000  # more than float16 can count exactly

# what sums or counts: a function, and its arguments, which are given to it as float16
OF_MANY_HALVES = {
    "sum": (mg.sum, np.full(MANY, 0.01)),
    "sum of columns": (lambda a: mg.sum(a, 0), np.full((MANY, 2), 0.01)),
    "mean": (mg.mean, np.full(MANY, 1000)),
    "mean of columns": (lambda a: mg.mean(a, 0), np.full((MANY, 2), 3)),
    "var": (mg.var, np.arange(MANY) % 7),
    "var of outliers": (lambda a: mg.var(a) / 100, np.r_[np.zeros(MANY), 2000, -2000]),
    "var of small numbers": (mg.var, np.tile([0.01, -0.01], MANY)),
    "norm": (mg.norm, np.ones(MANY)),
    "norm of large numbers": (mg.norm, np.full((100, 2), 3000)),
    "norm of small numbers": (mg.norm, np.full((MANY, 1), 1e-3)),
    "norm of columns": (lambda a: mg.norm(a, axis=0), np.full((MANY, 2), 2)),
    "max, tied": (lambda a: mg.max(a) * 100, np.full(MANY, 3)),
    "min, tied": (lambda a: mg.min(a, 0) * 100, np.full((MANY, 2), 3)),
    "layer_norm": (lambda a: mg.layer_norm(a)[:9] * 2**15, np.arange(MANY) % 7),
    "layer_norm of outliers": (lambda a: mg.layer_norm(a)[-2:], np.r_[np.zeros(MANY), 2000, -2000]),
    "softmax": (lambda a: mg.softmax(a)[0] * 2**15, np.zeros(MANY)),
    "softmax, masked": (
        lambda a: mg.softmax(a, where=np.arange(MANY) % 2 > 0)[:2] * 2**14,
        np.zeros(MANY),
    ),
    "softmax of columns": (lambda a: mg.softmax(a, 0)[0] * 2**15, np.zeros((MANY, 2))),
    "log_softmax": (lambda a: mg.log_softmax(a)[:2] * 1000, np.zeros(MANY)),
    "log_softmax of columns": (lambda a: mg.log_softmax(a, 0)[:2] * 1000, np.zeros((MANY, 2))),
    "cross_entropy": (lambda a: mg.cross_entropy(a, [0]) * 1000, np.zeros((1, MANY))),
    "nll_grad": (
        lambda a, w: mg.ops.nll_grad(a, w, [0])[:, :3],
        np.zeros((1, MANY)),
        np.full(1, 1000),
    ),
    "mse_loss": (lambda a: mg.mse_loss(a, 0 * a), np.full(MANY, 1)),
    "mse_loss of outliers": (
        lambda a: mg.mse_loss(a, np.zeros(MANY, np.float16)),
        np.r_[np.zeros(MANY - 1), 500],
    ),
    "a broadcast number": (lambda a, b: (a * b).sum() / 100, np.full(MANY, 0.5), np.ones(1)),
    "a broadcast row": (lambda a, b: (a + b).mean(0) * 100, np.zeros((MANY, 2)), np.ones(2)),
    "affine": (
        lambda z, c, b: mg.affine(z, c, b).mean(),
        np.ones((MANY, 2)),
        np.ones(2),
        np.ones(2),
    ),
    "linear": (
        lambda x, w, b: mg.linear(x, w, b).mean(),
        np.ones((MANY, 2)),
        np.ones((3, 2)),
        np.ones(3),
    ),
    "linear in many": (lambda x, w: mg.linear(x, w), np.full((1, MANY), 0.01), np.ones((1, MANY))),
    "matmul": (lambda a, b: a @ b, np.full((1, MANY), 0.01), np.ones(MANY)),
    "matmul of a stack": (lambda a, b: (a @ b).mean(), np.ones((MANY, 1, 2)), np.ones((2, 3))),
    "matmul of a stack and a vector": (
        lambda a, b: (a @ b).mean(),
        np.ones((MANY, 1, 2)),
        np.ones(2),
    ),
    "the same entry": (lambda a: a[np.zeros(MANY, int)].mean() * 100, np.ones(2)),
}


@pytest.mark.parametrize("case", OF_MANY_HALVES.values(), ids=OF_MANY_HALVES)
def test_what_sums_or_counts_many_float16_agrees_with_float64(case):
    """Sums are made in float32: a result that float16 can hold does not overflow on the way."""
    f, *arrays = case
    results = []
    for dtype in (np.float16, np.float64):
        xs = [mg.Tensor(a.astype(np.float16).astype(dtype), requires_grad=True) for a in arrays]
        y = f(*xs)
        results.append([y.data, *(g.data for g in mg.grad(y, xs, np.ones(y.shape)))])
    for found, exact in zip(*results, strict=True):
        assert found.dtype == np.float16
        assert_allclose(found, exact, rtol=5e-3, atol=2e-7)


# far from each other, so that their differences are large
APART = [3.56, -3.23, -5.38]

# a function of float16 numbers, and the numbers
ROUNDED_ONCE = {
    "softmax": (mg.softmax, APART),
    "log_softmax": (mg.log_softmax, APART),
    "nll": (lambda x: mg.ops.nll(x[None], [1]), APART),
    "nll_grad": (lambda x: mg.ops.nll_grad(x[None], [3], [1]), APART),
    "slope of softmax": (lambda x: slope(mg.softmax, x, [6e4, -6e4, -6e4, -6e4]), [0, 0, 0, 0]),
    "slope of log_softmax": (lambda x: slope(mg.log_softmax, x, [1, 2, -1]), APART),
    "slope of a large log_softmax": (lambda x: slope(mg.log_softmax, x, [6e4, 5e4]), [0, -1e3]),
    "slope of a small log_softmax": (lambda x: slope(mg.log_softmax, x, [6e4, 0])[1:], [0, -17]),
    "slope of nll_grad": (
        lambda x: slope(lambda x: mg.ops.nll_grad(x[None], [3], [1])[0], x, [0, 1, 1]),
        APART,
    ),
    "slope of a large nll_grad": (
        lambda x: slope(lambda x: mg.ops.nll_grad(x[None], [1000], [0])[0], x, [-100, 100])[1:],
        [0, -17],
    ),
    "slope of nll_grad by its weight": (
        lambda w: slope(
            lambda w: mg.ops.nll_grad(np.array([[0.1, 0, -9]], w.dtype), w, [2]), w, [[1, -1, 0]]
        ),
        [1],
    ),
    "erf": (mg.erf, [*APART, 0.01, 1.9]),
    "slope of erf": (lambda x: slope(mg.erf, x, [6e4, 6e4, 6e4, -6e4]), [1.1, 2.2, -3.3, 2.9]),
    "layer_norm": (mg.layer_norm, APART),
    "layer_norm of a large row": (mg.layer_norm, [6e4, -6e4, 5e4]),
    "slope of layer_norm": (lambda x: slope(mg.layer_norm, x, [6e4, -6e4, 6e4]), APART),
    "slope of var": (lambda x: slope(mg.var, x, 4e4), [0, 0.01]),
    "slope of affine": (
        lambda c: slope(lambda c: mg.affine(np.array([300, -200], c.dtype), c), c, [300, 300]),
        [1],
    ),
}


def slope(f, x, upstream):
    return mg.grad(f(x), x, np.array(upstream, x.dtype), create_graph=True)


@pytest.mark.parametrize(("f", "x"), ROUNDED_ONCE.values(), ids=ROUNDED_ONCE)
def test_float16_is_rounded_at_the_end_and_not_on_the_way(f, x):
    given = np.array(x, np.float16)
    found = f(mg.Tensor(given, requires_grad=True)).data
    exact = f(mg.Tensor(given.astype(float), requires_grad=True)).data
    assert found.dtype == np.float16
    assert_allclose(found, exact, rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize("size", [100, 1300, 60_000])
def test_gelu_of_large_float16_is_the_identity_or_0(size, form):
    x = mg.Tensor(np.array([size, -size], np.float16), requires_grad=True)
    y = mg.gelu(x, form)
    assert_array_equal(y.data, np.array([size, 0], np.float16), strict=True)
    assert_array_equal(mg.grad(y.sum(), x).data, np.array([1, 0], np.float16), strict=True)


# float32 sums of many rows: a function, whose gradient sums, too, and its arguments
OF_MANY_ROWS = {
    "sum": (lambda a: mg.sum(a, 0), (10**6, 8)),
    "mean": (lambda a: mg.mean(a, 0), (10**6, 8)),
    "mean over two axes": (lambda a: mg.mean(a, (0, 1)), (1000, 1000, 3)),
    "mean over the middle": (lambda a: mg.mean(a, 1), (2, 10**5, 3)),
    "sum of a transpose": (lambda a: mg.sum(a.T, 1), (10**6, 3)),
    "sum of some columns": (lambda a: mg.sum(a[:, :3]), (10**6, 8)),
    "sum over two axes apart": (lambda a: mg.sum(a, (0, 2)), (10**5, 3, 4)),
    "an odd number of rows": (lambda a: mg.sum(a, 0), (64**3 + 64 * 5 + 7, 3)),
    "var": (lambda a: mg.var(a * np.float32(10), 0), (10**6, 2)),
    "logsumexp": (lambda a: mg.logsumexp(a, 0), (10**6, 2)),
    "sum of long rows": (lambda a: mg.sum(a, 1), (8, 10**5)),
    "sum of rows of many rows": (lambda a: mg.sum(a, (0, 2)), (1000, 3, 20)),
    "layer_norm": (lambda a: mg.layer_norm(a, 0, 1.0), (10**6, 2)),
    "norm": (lambda a: mg.norm(a, 0), (10**6, 2)),
    "norm of long rows": (lambda a: mg.norm(a, 1), (8, 10**5)),
    "norm of all": (mg.norm, (10**3, 10**3)),
    "softmax of long rows": (lambda a: mg.softmax(a, 1) * 10**5, (8, 10**5)),
    "softmax": (lambda a: mg.softmax(a, 0).sum(0), (10**6, 2)),
    "log_softmax": (lambda a: mg.log_softmax(a, 0)[0], (10**6, 2)),
    "a broadcast row": (lambda a, b: a + b, (10**6, 8), (8,)),
    "a broadcast column": (lambda a, b: a * b, (8, 10**5), (8, 1)),
    "a broadcast channel": (lambda a, b: a + b, (10**4, 3, 50), (3, 1)),
    "affine": (lambda z, c, b: mg.affine(z, c, b), (10**6, 8), (8,), (8,)),
    "linear": (lambda x, w, b: mg.linear(x, w, b), (10**5, 2), (8, 2), (8,)),
    "linear of few numbers": (lambda x, w: mg.linear(x, w), (10**5, 2), (3, 2)),
    "matmul of a stack": (lambda a, b: a @ b, (10**5, 1, 2), (2, 8)),
    "matmul of few numbers": (lambda a, b: a @ b, (10**5, 2), (2, 3)),
    "matmul of a stack of few numbers": (lambda a, b: a @ b, (10**5, 1, 2), (2, 3)),
    "a stack times a vector": (lambda a, b: a @ b, (10**5, 1, 2), (2,)),
}


@pytest.mark.parametrize("case", OF_MANY_ROWS.values(), ids=OF_MANY_ROWS)
def test_a_float32_sum_of_many_rows_loses_next_to_nothing(case):
    """NumPy adds rows one after the other: of a million times 0.1, one part in a hundred is lost."""
    f, *shapes = case
    values = [np.full(shape, 0.1, np.float32) for shape in shapes]
    results = []
    for dtype in (np.float32, np.float64):
        xs = [mg.Tensor(a.astype(dtype), requires_grad=True) for a in values]
        y = f(*xs)
        gradients = mg.grad(y, xs, np.full(y.shape, np.float32(0.1)))
        results.append([y.data, *(g.data for g in gradients)])
    for found, exact in zip(*results, strict=True):
        assert found.dtype == np.float32
        assert_allclose(found, exact, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("special", [[inf], [-inf], [nan], [inf, -inf], [inf, nan]], ids=str)
@pytest.mark.parametrize("at", [0, 63, 64, 4095, 9_999])
def test_a_sum_of_many_rows_keeps_infinities_and_nan_in_their_columns(special, at):
    a = np.ones((10_000, 3))
    a[(np.arange(len(special)) * 777 + at) % len(a), 1] = special
    with np.errstate(invalid="ignore"):
        assert_array_equal(mg.sum(a, 0).data, a.sum(0))
        assert_array_equal(mg.mean(a.T, 1).data, a.mean(0))


@pytest.mark.parametrize("rows", [0, 1, 64, 128, 129, 8192, 8193])
def test_a_sum_of_negative_zeros_is_that_of_numpy(rows):
    a = np.full((rows, 2, 1), -0.0)
    for keepdims in (False, True):
        found, expected = mg.sum(a, 0, keepdims).data, a.sum(0, keepdims=keepdims)
        assert_array_equal(found, expected, strict=True)
        assert_array_equal(np.signbit(found), np.signbit(expected))
    assert mg.sum(np.ones((rows, 0)), 0).shape == (0,)
    assert_array_equal(mg.sum(np.ones((0, rows)), 0).data, np.zeros(rows))


def test_a_norm_counts_squares_that_vanish_one_by_one():
    x = np.full(10**6, 3e-23, np.float32)  # 9e-46 is 0 in float32, but a million of them is not
    x[0] = 1.2e-19
    assert_allclose(mg.norm(x).item(), np.linalg.norm(x.astype(np.float64)), rtol=1e-5)


# ----------------------------------------------------------------------------- too small to matter

TINY = float(np.finfo(np.float64).tiny)


def tiny(*shape, dtype=np.float64):
    """Return numbers about as small as the dtype can hold."""
    with np.errstate(under="ignore"):
        found = np.random.default_rng(0).normal(size=shape) * float(np.finfo(dtype).tiny)
        return found.astype(dtype)


def tiny_linear(dtype=np.float32):
    layer = ld.Linear(6, 4, rng=0, dtype=dtype)
    layer.weight.data, layer.bias.data = tiny(4, 6, dtype=dtype), tiny(4, dtype=dtype)
    return layer


def adapted(**options):
    config = ld.LoraConfig(r=2, lora_alpha=1, target_modules="all-linear", **options)
    model = ld.get_peft_model(ld.Sequential(tiny_linear()), config, rng=0)
    for p in model.trainable_parameters():
        p.data = tiny(*p.shape, dtype=p.dtype)
    return model


def loaded_with_float64(load, model):
    load(model, {name: tiny(*a.shape) for name, a in ld.get_peft_model_state_dict(model).items()})
    return model


def summed(kind):
    model = adapted()
    model.add_weighted_adapter(["default"], [0.3], "sum", kind)
    model.set_adapter("sum")
    return model


def trained(optimizer):
    model, x, labels = adapted(), tiny(8, 6, dtype=np.float32), np.arange(8) % 4
    list(ld.fit(model, x, labels, optimizer=optimizer(model.parameters()), steps=3, rng=0))
    ld.evaluate(model, x, labels)
    return model


def into_float32():
    layer = tiny_linear()
    layer.load_state_dict(tiny_linear(np.float64).state_dict())
    return layer


def float16_adapter(**options):
    return ld.LoRALinear(
        ld.Linear(100, 9, dtype=np.float16, rng=0), r=9, lora_alpha=1, rng=0, **options
    )


A, B, W0, X, G = tiny(2, 3), tiny(4, 2), tiny(4, 3), tiny(5, 3), tiny(5, 4)

#: Computations of models or arrays in which something underflows harmlessly.
UNDERFLOWS = {
    "float16 weights": lambda: ld.Linear(100, 100, rng=0, dtype=np.float16),
    "float64 inputs": lambda: [ld.Linear(6, 4, rng=0)(tiny(5, 6)).data],
    "a state in float64": into_float32,
    "a float16 adapter": lambda: float16_adapter(autocast_adapter_dtype=False),
    "pissa": lambda: ld.LoRALinear(
        tiny_linear(np.float64), r=2, lora_alpha=30, init_lora_weights="pissa"
    ),
    "olora": lambda: ld.LoRALinear(tiny_linear(), r=2, lora_alpha=3, init_lora_weights="olora"),
    "dora": lambda: adapted(use_dora=True),
    "an adapter in float64": lambda: loaded_with_float64(ld.set_peft_model_state_dict, adapted()),
    "its state_dict": lambda: adapted().load_state_dict(adapted().state_dict()),
    "cat": lambda: summed("cat"),
    "svd": lambda: summed("svd"),
    "linear": lambda: summed("linear"),
    "merging": lambda: adapted(use_dora=True).merge_and_unload(),
    "training": lambda: trained(ld.AdamW),
    "training with SGD": lambda: trained(lambda params: ld.SGD(params, momentum=0.9)),
    "magnitude_and_direction": lambda: analysis.magnitude_and_direction([[3.0, TINY]]),
    "change": lambda: analysis.change(tiny(3, 3), tiny(3, 3)[::-1]),
    "effective_rank": lambda: [analysis.effective_rank(np.diag([1e10, TINY]))],
    "correlation": lambda: [
        analysis.correlation([analysis.Change(k * TINY / 3, k * k * TINY) for k in (1, 2, 4)])
    ],
    "lora_forward": lambda: [by_hand.lora_forward(X, W0, 0, A, B, 0.3)],
    "lora_gradients": lambda: by_hand.lora_gradients(G, X, W0, A, B, 0.3),
    "dora_forward": lambda: [by_hand.dora_forward(X, W0, 0, A, B, np.ones(4), 0.3)],
    "dora_gradients": lambda: by_hand.dora_gradients(G, X, W0, A, B, np.ones(4), 0.3),
    "gradcheck": lambda: [mg.gradcheck(lambda x: x * TINY / 3, np.array([0.7]))],
    "gradgradcheck": lambda: [mg.gradgradcheck(lambda x: x * x * TINY / 3, np.array([0.7]))],
}


def arrays_of(found):
    """Return what was made as bytes."""
    if isinstance(found, ld.Module):
        found = found.state_dict().values()
    return [np.asarray(array).tobytes() for array in found or ()]


@pytest.mark.parametrize("name", UNDERFLOWS)
def test_an_underflow_is_no_error_whatever_numpy_is_told_to_do(name):
    with np.errstate(all="raise"):
        found = arrays_of(UNDERFLOWS[name]())
    assert found == arrays_of(UNDERFLOWS[name]())
