"""Products with a narrow matrix, such as A and B of an adapter: the trick of matmul.

The definitions are NumPy's: ``product(a, b)`` is ``a @ b``, and ``product_over_rows(a, b)`` is
``a.T @ b``, a sum over the rows of both.

BLAS first copies both matrices into an order that suits its innermost loop.  That pays if each number is
used often.  In x Aᵀ, with x (n, in) and A (r, in), each number of x is used only r times, and for a small
r the copying takes as long as everything else.  On processors with AVX-512, OpenBLAS does not copy for a
product of at most a million multiplications.  So the rows are taken in blocks of 64 or fewer.  For r = 8
this takes half to two thirds of the time.

There is a second reason to make a sum over rows in blocks.  If the result has few numbers, BLAS adds the
rows one after the other, and n additions round n times: see :mod:`minigrad.sums`.
"""

from __future__ import annotations

import numpy as np

from minigrad.operation import Array
from minigrad.sums import BLOCK, like, total, wide

#: The most columns or rows that a narrow matrix has.  (With a single one BLAS copies nothing anyway.)
NARROW = 16

#: Up to this many multiplications OpenBLAS copies nothing.
SMALL = 1_000_000

#: A sum over rows with a larger result is not made in blocks: each block has a result of that size.
MOST = 2**13


def product(a: Array, b: Array) -> Array:
    """Return a @ b for a (n, k) and b (k, m), in blocks of rows if k or m is small and n is not.

    A column times a row is their elementwise product, because each of its sums has one term.
    """
    (n, k), m = a.shape, b.shape[1]
    if k == 1 == len(b):
        return a * b
    if not _pays(n, k, m, a) or a.dtype is not b.dtype:
        return a @ b
    rows = _rows_of_a_block(k * m)
    if rows < 16:
        return a @ b
    b = np.ascontiguousarray(b)  # it is small, and read for every block
    y, cut = np.empty((n, m), a.dtype), n - n % rows
    np.matmul(_blocks(a[:cut], rows), b, out=_blocks(y[:cut], rows))
    np.matmul(a[cut:], b, out=y[cut:])
    return y


def product_over_rows(a: Array, b: Array) -> Array:
    """Return aᵀ b for a (n, k) and b (n, m), in blocks of rows if k or m is small and n is not.

    BLAS sums 64 rows at a time, and these sums are added as in :mod:`minigrad.sums`.
    """
    (n, k), m = a.shape, b.shape[1]
    if n == 1 == len(b):
        return a.mT * b
    few = k * m < 16 and n > BLOCK * BLOCK
    if a.dtype is not b.dtype or not (few or (k * m <= MOST and _pays(n, k, m, a, b))):
        return a.mT @ b
    x, y, cut = wide(a), wide(b), n - n % BLOCK
    of_blocks = _blocks(x[:cut], BLOCK).mT @ _blocks(y[:cut], BLOCK)
    return like(total(of_blocks, (0,)) + x[cut:].mT @ y[cut:], b)


def _pays(n: int, k: int, m: int, *arrays: Array) -> bool:
    """Whether a product of n rows is large and has a narrow matrix, and the arrays lie row by row."""
    large = 1 < min(k, m) <= NARROW and n * k * m > SMALL
    return large and all(x.flags.c_contiguous for x in arrays)


def _rows_of_a_block(multiplications: int) -> int:
    """Return 64, halved until OpenBLAS takes that many rows without copying."""
    rows = BLOCK
    while rows * multiplications > SMALL:
        rows //= 2
    return rows


def _blocks(a: Array, rows: int) -> Array:
    """View (n, k) as a stack of matrices with so many rows."""
    return a.reshape(-1, rows, a.shape[1])
