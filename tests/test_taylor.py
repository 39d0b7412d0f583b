"""erf and the exact GELU by tables are those of ``math``, to the digits that their docstrings promise."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from minigrad import taylor

DTYPES = [np.float32, np.float64]

#: How far it may be from ``math.erf``: the bounds of the docstring.
ABSOLUTE = {np.float32: 6e-8, np.float64: 1.2e-16}


def definition(x):
    return np.array([math.erf(a) for a in x.reshape(-1).tolist()]).reshape(x.shape)


def assert_is_erf(x):
    kept = x.copy()
    with np.errstate(invalid="ignore"):  # of NaN as a place in a table
        y = taylor.erf(x)
    assert_array_equal(x, kept)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    exact, limits = definition(x), np.finfo(x.dtype)
    assert_allclose(y, exact, rtol=0, atol=ABSOLUTE[x.dtype.type])
    assert_allclose(y, exact, rtol=4 * limits.eps, atol=limits.smallest_subnormal)
    known = ~np.isnan(x)
    assert_array_equal(np.signbit(y[known]), np.signbit(x[known]))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_it_is_that_of_python_for_any_numbers(dtype, data):
    """NaN, infinities, zeros of either sign and subnormal numbers are drawn among them."""
    width = np.finfo(dtype).bits
    numbers = (
        st.floats(width=width)
        | st.floats(-7, 7, width=width)
        | st.floats(-0.125, 0.125, width=width)
    )
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    assert_is_erf(data.draw(hnp.arrays(dtype, shapes, elements=numbers)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_that_of_python_for_many_numbers_of_every_size(dtype):
    """Over several blocks, and as far from the points of the grid as numbers can be."""
    rng = np.random.default_rng(0)
    halfway = (np.arange(taylor.END * taylor.POINTS) + 0.5) / taylor.POINTS
    powers = 10 ** rng.uniform(-12, 1, 30_000)
    for x in (rng.normal(size=30_000) * 2, halfway, -halfway * 0.9999, powers, -powers):
        assert_is_erf(x.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_far_ends_and_the_middle(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    ends = [np.inf, 1e30, 6.0, 5.95, tiny, 0.0]
    assert_is_erf(np.array([*ends, np.nan, *(-x for x in ends)], dtype))


def test_an_array_of_any_layout_is_gone_through_in_its_order():
    x = np.random.default_rng(0).normal(size=(40, 30, 20))
    for view in (x.T, x[::2, ::-3], x[:, 0], x.swapaxes(0, 1), x.astype(">f8")):
        assert_is_erf(view)


def test_a_wider_dtype_has_the_digits_of_float64():
    x = np.linspace(-3, 3, 7).astype(np.longdouble)
    y = taylor.erf(x)
    assert y.dtype == np.longdouble
    assert_allclose(y.astype(float), definition(x), rtol=4e-16)


def phi(x):
    """Return Φ(x): in the left tail erfc keeps the digits that 1 + erf loses."""
    return np.array([math.erfc(-a * math.sqrt(0.5)) / 2 for a in x.reshape(-1).tolist()]).reshape(
        x.shape
    )


def slope(x):
    """Return Φ(x) + x φ(x), for finite numbers."""
    x = x.astype(float).clip(-1e100, 1e100)
    return phi(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


#: How far Φ and the slope of the GELU may be from their definitions: the bounds of the docstrings.
OF_PHI = {np.float32: 1e-7, np.float64: 3e-16}
OF_SLOPE = {np.float32: 2e-7, np.float64: 5e-16}


def assert_close_product(found, a, exact, bound):
    """Assert that the result is a times exact and then rounded, where exact is known to a bound."""
    limits = np.finfo(found.dtype)
    rounding = limits.eps * np.abs(a * exact) + limits.smallest_subnormal
    assert np.all(np.abs(found - a * exact) <= bound * np.abs(a) + rounding)


def assert_is_gelu(x, g):
    kept = x.copy(), g.copy()
    kind, known = x.dtype.type, np.isfinite(x)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        y, back = taylor.gelu(x), taylor.gelu_vjp(g, x)
    assert_array_equal(x, kept[0])
    assert_array_equal(g, kept[1])
    for found in (y, back):
        assert (found.dtype, found.shape) == (x.dtype, x.shape)
    assert_close_product(y[known], x[known], phi(x[known]), OF_PHI[kind])
    assert_close_product(back[known], g[known], slope(x[known]), OF_SLOPE[kind])
    assert np.all(np.isnan(back[np.isnan(x)]))
    assert np.all(np.isnan(y[np.isnan(x)]))
    assert np.all(y[x == np.inf] == np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_gelu_is_x_times_phi_for_any_numbers(dtype, data):
    """NaN, infinities, zeros of either sign and subnormal numbers are drawn among them."""
    width = np.finfo(dtype).bits
    numbers = st.floats(width=width) | st.floats(-8, 8, width=width)
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    x = data.draw(hnp.arrays(dtype, shapes, elements=numbers.filter(lambda a: a > -1e30 or a != a)))
    upstream = hnp.arrays(dtype, x.shape, elements=st.floats(-8, 8, width=width))
    assert_is_gelu(x, data.draw(upstream))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_x_times_phi_for_many_numbers_of_every_size(dtype):
    """Over several blocks, at the ends of the tables, and as far from their points as can be."""
    rng = np.random.default_rng(0)
    end = taylor.END * taylor.POINTS
    halfway = (np.arange(-end - 20, end + 20) + 0.5) / taylor.POINTS
    powers = 10 ** rng.uniform(-12, 1, 30_000)
    for x in (rng.normal(size=30_000) * 2, halfway, powers, -powers):
        assert_is_gelu(x.astype(dtype), rng.normal(size=x.shape).astype(dtype))


def test_gelu_goes_through_an_array_of_any_layout_in_its_order():
    x, g = np.random.default_rng(0).normal(size=(2, 40, 30, 20)).astype(np.float32)
    for view in (np.s_[::2, ::-3], np.s_[:, 0]):
        assert_is_gelu(x[view], g[view])
        assert_is_gelu(x[view].T, g[view].T)
        assert_is_gelu(x[view], np.ascontiguousarray(g[view].T).T)


def test_the_tables_are_made_when_they_are_needed_and_not_before():
    code = (
        "from minigrad import taylor\n"
        "print(taylor._table.cache_info().currsize + taylor._tangents.cache_info().currsize)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0"
