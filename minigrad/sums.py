"""Sums over axes of an array, and largest entries: the tricks of the reductions.

The definitions are NumPy's: ``total(a, axes)`` is ``np.sum(a, axes)``, ``total(a, axes, b=b)`` is
``np.sum(a * b, axes)``, and ``extreme(np.maximum, a, axes)`` is ``np.max(a, axes)``.  Here

- float16 is added in float32, because in float16 a sum overflows at 65,504, and 2,048 + 1 is 2,048;
- many rows are added in blocks.  NumPy adds them one after the other, and n additions round n times: a
  million rows of 0.1 in float32 lose one part in a hundred;
- many short rows are added together.  NumPy starts anew for each row, which takes as long as adding a
  hundred numbers.  In float32 a product with a vector of ones is faster still.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.operation import Array

#: The number of rows that are added one after the other.
BLOCK = 64

#: From this many numbers on, it pays to ask how they lie in memory.
MANY = 2**14

_add: Any = np.add.reduce

#: Σ a∘b over the first axis, without making a∘b.
of_products = functools.partial(np.einsum, "n...,n...->...")


def wide(a: Array) -> Array:
    """Return ``a``, and float16 in float32."""
    return a.astype(np.float32) if a.dtype.itemsize < 4 else a


def like(y: Array, a: Array) -> Array:
    """Return ``y``, which may have been computed in a wider dtype, in the dtype of ``a``."""
    return y if y.dtype is a.dtype else y.astype(a.dtype)


def over_rows(add: Callable[..., Array], *arrays: Array) -> Array:
    """Return ``add(*arrays)``, a sum over the first axis of the arrays; many rows are added in blocks.

    64 rows are added one after the other, then 64 such sums, and so on.  A million rows of 0.1 in float32
    then lose one part in a million.  It is also faster, because the rows of all blocks are added at once,
    as if they were one long row.
    """
    n, k = len(arrays[0]), BLOCK
    if n <= 2 * k:
        return add(*arrays)
    q = n // k
    blocks = add(*(a[: k * q].reshape(k, q, *a.shape[1:]) for a in arrays))
    y = over_rows(_add, blocks)
    return y if k * q == n else y + add(*(a[k * q :] for a in arrays))


def total(a: Array, axes: tuple[int, ...], keepdims: bool = False, b: Any = None) -> Array:
    """Return Σa over ``axes``, none of them negative; a float16 sum is returned in float32.

    With ``b``, an array of the same shape, return Σa∘b.  If there are many numbers, a∘b is not formed.
    """
    a = wide(a)
    if a.size <= 2 * BLOCK and b is None:
        return _add(a, axes, None, None, keepdims)
    lengths = [a.shape[i] for i in axes]
    # rows that NumPy would add one after the other; neighbours in memory it adds in parts
    rows = math.prod([n for i, n in zip(axes, lengths) if a.strides[i] != a.itemsize])
    many = rows > 2 * BLOCK and not (len(axes) == a.ndim and a.flags.forc)
    # einsum and BLAS add neighbours in fewer parts than np.add does, so long rows are not for them
    short = a.size > MANY and axes != (0,) and 1 < math.prod(lengths) <= 2 * BLOCK
    if b is not None and not many and not short:
        if axes == (a.ndim - 1,) and a.shape[-1] <= 1024:
            y = np.vecdot(a, wide(b))
            return y[..., None] if keepdims else y
        return total(a * wide(b), axes, keepdims)
    arrays = [a] if b is None else [a, wide(b)]
    if short:
        y = _total_of_short_rows(arrays, axes)
        return np.expand_dims(y, axes) if keepdims else y
    if not many:
        return _add(a, axes, None, None, keepdims)
    i = max(axes, key=lambda i: a.shape[i] > 1)  # the first that is longer than 1
    add = _add if b is None else of_products
    y = over_rows(add, *(x.swapaxes(0, i) for x in arrays))[None].swapaxes(0, i)
    return total(y, axes, keepdims)


def _total_of_short_rows(arrays: list[Array], axes: tuple[int, ...]) -> Array:
    """Return Σa, or Σa∘b, over ``axes`` that hold few numbers."""
    a = arrays[0]
    rows = len(arrays) == 1 and axes == (a.ndim - 1,) and a.flags.c_contiguous
    if rows and a.dtype == np.float32:  # in float64 it depends on the length
        return a @ np.ones(a.shape[-1], a.dtype)
    labels = [*range(a.ndim)]
    kept = [i for i in labels if i not in axes]
    y: Array = np.einsum(*[part for x in arrays for part in (x, labels)], kept)
    return y


def extreme(
    choose: Any, a: Array, axes: tuple[int, ...], keepdims: bool = False, initial: Any = None
) -> Array:
    """Return the largest entry over ``axes`` if ``choose`` is np.maximum, the smallest if np.minimum.

    ``initial`` counts as one more entry, if it is given.
    """
    # NumPy takes half as long, or less, where it has something to start with
    if initial is None and a.size:
        initial = -np.inf if choose is np.maximum else np.inf
    n = a.shape[-1] if a.ndim else 1
    many_short_rows = a.size > MANY and axes == (a.ndim - 1,) and n <= BLOCK // 2
    if not many_short_rows or a.strides[-1] != a.itemsize:
        return choose.reduce(a, axes, None, None, keepdims, initial)
    y = a.reshape(-1)
    # of each two neighbours one is kept; for float16 this would be slower than the copy below
    while n % 2 == 0 and a.itemsize > 2:
        y, n = choose(y[::2], y[1::2]), n // 2
    y = choose.reduce(y.reshape(-1, n).T.copy(), initial=initial)  # column by column
    return y.reshape((*a.shape[:-1], 1) if keepdims else a.shape[:-1])
