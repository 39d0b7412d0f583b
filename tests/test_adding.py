"""Adding at an index gives the result of ``np.add.at``, even where it is computed differently."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from strategies import mixed_index

import minigrad as mg
from minigrad.adding import added, never_repeats, placed

#: Short rows and long ones, alone and in stacks.
SHAPES = [(5,), (3, 4), (4, 3, 2), (3, 300), (2, 3, 130), (20, 3, 16), (2, 2, 2, 64)]


def definition(a, index, shape):
    """Return what np.add.at gives for an ``a`` that need not be repeated: see the first test."""
    y = np.zeros(shape, a.dtype)
    np.add.at(y, index, np.broadcast_to(a, y[index].shape))
    return y


@pytest.mark.parametrize("places", [(3, 5), (2, 3, 5), (60, 5)])
def test_what_is_repeated_is_read_again(places):
    """Here np.add.at of NumPy 2.4 reads beyond the end of the five numbers, whatever lies there."""
    index = np.zeros(places, int)
    assert_array_equal(mg.scatter(np.ones(5), index, (2,)).data, [index.size, 0])
    assert_array_equal(added(np.ones(1), index, (2,)), [index.size, 0])
    with pytest.raises(ValueError, match="broadcast"):
        mg.scatter(np.ones(4), index, (2,))


def compare(shape, index, a):
    """All numbers are integers, so that their sums are exact in any order."""
    f = placed if never_repeats(index) else added
    assert_array_equal(f(a, index, shape), definition(a, index, shape), strict=True)


@given(st.data())
def test_it_is_what_numpy_does(data):
    shape = data.draw(st.sampled_from(SHAPES))
    parts = data.draw(mixed_index(shape))
    cut = data.draw(st.integers(0, len(parts)))
    index = data.draw(
        st.sampled_from([parts, parts[:cut], (..., *parts[cut:]), (*parts[:cut], ..., None)])
    )
    places = np.empty(shape)[index].shape
    size = data.draw(st.sampled_from([places, places[1:], ()]))
    compare(shape, index, np.random.default_rng(0).integers(-9, 9, size).astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_picks_from_each_axis(shape):
    rng = np.random.default_rng(0)
    for axis, n in enumerate(shape):
        for size in (7, (3, 5), (2, 40)):
            picks = rng.integers(-n, n, size)
            for dtype in (np.intp, np.int8):
                for index in (
                    (*[slice(None)] * axis, picks.astype(dtype)),
                    (*[slice(None)] * axis, picks.astype(dtype), ...),
                    (..., picks.astype(dtype), *[slice(None)] * (len(shape) - axis - 1)),
                ):
                    places = np.empty(shape)[index].shape
                    compare(shape, index, rng.integers(-9, 9, places).astype(float))
                    compare(shape, index, rng.integers(-9, 9, places[1:]).astype(float))


@pytest.mark.parametrize(
    "index",
    [
        ([0, 2], [1, 1], [0, 1]),
        (slice(None), [[0, 2], [1, 1]], [0, -1]),
        (slice(None), 1, [1, 1, 1, 1]),
        ([0, 1], slice(None), [1, 1]),
        ([3, 3, 3], slice(None, None, -1)),
        (slice(1, None), [0, 0, 0]),
        (None, [0, 0, 0]),
        ([0, 0], None, [1, 1]),
        ([0, 0, 1], np.array([True, False, False])),
        ([[0]] * 7, np.array([[True, True], [False, False], [False, False]])),
        [],
    ],
    ids=str,
)
def test_other_indices(index):
    shape = (4, 3, 2)
    places = np.empty(shape)[index].shape
    for size in (places, ()):
        compare(shape, index, np.random.default_rng(0).integers(-9, 9, size).astype(float))


@pytest.mark.parametrize("index", [([0, 3],), (slice(None), [0, -5]), ([0], [0], [0])], ids=str)
def test_what_is_out_of_range_is_refused_in_the_words_of_numpy(index):
    a, shape = np.ones((20, 20)), (3, 4)
    with pytest.raises(IndexError) as expected:
        definition(a, index, shape)
    with pytest.raises(IndexError) as found:
        added(a, index, shape)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "index",
    [3, np.int64(3), (..., 1), slice(2), None, np.arange(4) > 1, ([True, False, False, True], 0)],
    ids=str,
)
def test_numbers_slices_and_masks_repeat_nothing(index):
    assert never_repeats(index)
    places = np.empty((4, 3, 2))[index].shape
    compare((4, 3, 2), index, np.arange(1.0, 1 + np.prod(places)).reshape(places))


@pytest.mark.parametrize("index", [[1], ([True, False], [1, 1]), [], np.array(1)], ids=str)
def test_integers_in_arrays_may_repeat(index):
    assert not never_repeats(index)


def test_a_place_that_is_picked_often_keeps_its_digits():
    """Within 20 roundings; one after the other, 20,000 rows would lose two parts in ten thousand."""
    a = np.full((20_000, 128), 0.1, np.float32)
    assert_allclose(
        added(a, [1] * 20_000, (3, 128))[1], 20_000 * a[0].astype(float), rtol=20 * 2**-23
    )


@pytest.mark.parametrize("times", [1, 100])
def test_infinities_and_nans_stay_in_their_places(times):
    a = np.full((3 * times, 300), 1.0)
    a[0, :3] = np.inf, -np.inf, np.nan
    for width in (3, 300):
        x = mg.Tensor(np.zeros((2, width)), requires_grad=True)
        g = mg.grad(x[[1, 1, 0] * times], x, a[:, :width]).data
        assert_array_equal(g[1, :3], [np.inf, -np.inf, np.nan])
        assert_array_equal(g[1, 3:], np.full(width - 3, 2 * times))
        assert_array_equal(g[0], np.full(width, times))
