"""The sums of ``minigrad.sums`` are those of their definition, however the numbers lie in memory."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minigrad import sums

#: Few numbers and many, short rows and long ones, on both sides of every threshold.
SHAPES = [
    *[(), (0, 3), (3, 0), (4, 4), (129,), (20_000,), (64, 256), (300, 100), (100, 300), (130, 130)],
    *[(9000, 2), (2, 9000), (16, 1100), (1100, 16), (70, 2, 200), (33, 16, 32), (5, 3, 2, 700)],
]

LAYOUTS = {
    "row by row": lambda a: a,
    "column by column": lambda a: np.asfortranarray(a),
    "backwards": lambda a: a[tuple([slice(None, None, -1)] * a.ndim)],
    "every second": lambda a: np.stack([a, a], axis=-1)[..., 0],
    "one row, many times": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
}


def cases(shape, dtype):
    """Yield two arrays in every layout, with every set of axes, with and without keepdims."""
    rng = np.random.default_rng(0)
    for layout, other in zip(LAYOUTS, [*LAYOUTS][1:] + [*LAYOUTS][:1]):
        a, b = (LAYOUTS[n](rng.uniform(0.5, 1.5, shape).astype(dtype)) for n in (layout, other))
        for n in range(len(shape) + 1):
            for axes in itertools.combinations(range(len(shape)), n):
                for keepdims in (False, True):
                    yield a, b, axes, keepdims


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_total_is_the_sum_over_the_axes(shape, dtype):
    """Within 20 roundings, however many numbers are added; of float16 within 20 of float32."""
    own = np.dtype(np.float32 if dtype is np.float16 else dtype)
    for a, b, axes, keepdims in cases(shape, dtype):
        for factor in (None, b):
            found = np.asarray(sums.total(a, axes, keepdims, factor))
            wide = a.astype(np.longdouble) * (1 if factor is None else factor)
            exact = np.sum(wide, axes, keepdims=keepdims)
            assert (found.dtype, found.shape) == (own, np.shape(exact))
            assert_allclose(found, exact, rtol=20 * np.finfo(own).eps)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=str)
def test_an_extreme_is_the_largest_or_the_smallest_over_the_axes(shape):
    for a, _, axes, keepdims in cases(shape, np.float32):
        for choose, in_numpy in [(np.maximum, np.max), (np.minimum, np.min)]:
            found = np.asarray(sums.extreme(choose, a, axes, keepdims))
            assert_array_equal(found, in_numpy(a, axes, keepdims=keepdims), strict=True)


@pytest.mark.parametrize("n", [1, 7, 16, 24, 31, 64])
def test_an_extreme_of_short_rows_knows_nan_infinities_and_where_to_start(n):
    """NaN is the extreme of its row wherever it stands, and ``initial`` counts as one more entry."""
    a = np.random.default_rng(0).normal(size=(20_000 // n + 1, n)).astype(np.float32)
    a[range(n), range(n)] = np.nan
    a[n : 2 * n, 0] = np.inf
    a[2 * n] = -np.inf
    for choose in (np.maximum, np.minimum):
        assert_array_equal(sums.extreme(choose, a, (1,)), choose.reduce(a, 1), strict=True)
        for initial in (-1.0, 1.0):
            found = sums.extreme(choose, a, (1,), False, initial)
            assert_array_equal(found, choose(choose.reduce(a, 1), np.float32(initial)), strict=True)


def test_an_extreme_of_nothing_is_where_it_starts_or_an_error():
    nothing = np.zeros((3, 0), np.float32)
    assert_array_equal(sums.extreme(np.maximum, nothing, (1,), False, -5), np.full(3, -5, "f"))
    with pytest.raises(ValueError, match="no identity"):
        sums.extreme(np.maximum, nothing, (1,))
