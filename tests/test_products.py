"""The products of ``minigrad.products`` are NumPy's, whether they are made in blocks or not."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad as mg
from minigrad import products

#: n, k and m of a (n, k) and b (k, m), and the number of rows in a block; 0 if there are none.
SIZES = {
    (2048, 128, 8): 64,
    (2048, 8, 128): 64,
    (2048, 16, 512): 64,
    (1001, 512, 3): 64,  # the last 41 rows are no block
    (600, 1024, 16): 32,
    (600, 16, 1024): 32,
    (256, 4096, 8): 16,
    (256, 8192, 8): 0,  # blocks would be too small,
    (256, 784, 4): 0,  # the product is small,
    (2048, 128, 17): 0,  # nothing is narrow,
    (9000, 128, 1): 0,  # or is but a vector
    (3, 1, 4): 0,
    (1, 3, 4): 0,
    (0, 3, 4): 0,
    (3, 0, 4): 0,
}

LAYOUTS = [np.ascontiguousarray, np.asfortranarray, lambda a: np.stack([a, a], axis=-1)[..., 0]]


@pytest.fixture
def blocks(monkeypatch):
    """The number of rows of each stack of blocks that is made."""
    rows, make = set(), products._blocks
    monkeypatch.setattr(products, "_blocks", lambda a, n: rows.add(n) or make(a, n))
    return rows


def signs(*shape):
    """Numbers of which all sums are exact, in any order, in every dtype."""
    return np.random.default_rng(0).integers(-1, 1, shape, endpoint=True).astype(float)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "rows"), SIZES.items(), ids=str)
def test_a_product_is_that_of_numpy(size, rows, dtype, blocks):
    n, k, m = size
    a, b = signs(n, k), signs(k, m)
    for of_a in LAYOUTS:
        for of_b in LAYOUTS:
            found = products.product(of_a(a.astype(dtype)), of_b(b.astype(dtype)))
            assert_array_equal(found, (a @ b).astype(dtype), strict=True)
        if of_a is np.ascontiguousarray or not rows:
            assert blocks == ({rows} if rows else set())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "rows"), SIZES.items(), ids=str)
def test_a_product_over_rows_is_that_of_numpy(size, rows, dtype, blocks):
    n, k, m = size
    a, b = signs(n, k), signs(n, m)
    for of_a in LAYOUTS:
        for of_b in LAYOUTS:
            found = products.product_over_rows(of_a(a.astype(dtype)), of_b(b.astype(dtype)))
            assert_array_equal(found, (a.T @ b).astype(dtype), strict=True)
    assert blocks == ({64} if rows == 64 else set())


def test_products_of_float16_are_computed_in_float32():
    a, b = (np.full((9000, n), 0.5, np.float16) for n in (3, 4))
    for found in (products.product(a.T, b), products.product_over_rows(a, b)):
        assert_array_equal(found, np.full((3, 4), 2250, np.float16), strict=True)


def test_different_dtypes_give_the_wider_one():
    a, b = np.ones((2048, 128), np.float32), np.ones((128, 8))
    assert products.product(a, b).dtype == b.dtype
    assert products.product_over_rows(a, np.ones((2048, 8))).dtype == b.dtype


@pytest.mark.parametrize("columns", [(1, 1), (3, 4), (8, 128)], ids=str)
def test_a_sum_over_many_rows_keeps_its_digits(columns):
    """Within 40 roundings; one after the other, 100,000 rows of 0.1 lose one part in a thousand."""
    a, b = (np.full((100_000, n), 0.1, np.float32) for n in columns)
    exact = 100_000 * np.float64(np.float32(0.1)) ** 2
    assert_allclose(products.product_over_rows(a, b), np.full(columns, exact), rtol=40 * 2**-24)


@pytest.mark.parametrize("shapes", [[(2048, 128), (127, 8)], [(2, 1), (3, 4)]], ids=str)
def test_matrices_that_do_not_fit_are_refused_in_the_words_of_numpy(shapes):
    a, b = map(np.ones, shapes)
    with pytest.raises(ValueError, match="mismatch in its core dimension") as expected:
        np.matmul(a, b)
    with pytest.raises(ValueError, match="mismatch in its core dimension") as found:
        products.product(a, b)
    assert str(found.value) == str(expected.value)


def test_an_adapter_takes_its_gradients_from_them(blocks):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(32, 64, 128)), rng.normal(size=(32, 64, 8))
    A = mg.Tensor(rng.normal(size=(8, 128)), requires_grad=True)
    mg.linear(x, A).backward(g)
    assert blocks == {64}
    assert_allclose(A.grad, np.einsum("nti,ntj->ij", g, x), rtol=1e-12)


@pytest.mark.parametrize("rows", [129, 640])
def test_a_product_of_many_rows_lies_row_by_row(rows):
    """Where there are few, w xᵀ is quicker, and its transpose lies column by column."""
    x, w = np.ones((rows, 8), np.float32), np.ones((1536, 8), np.float32)
    assert mg.linear(x, w).data.flags.c_contiguous
    assert mg.linear(x[None], w).data.flags.c_contiguous
    assert mg.linear(x[:16], w).data.flags.f_contiguous
