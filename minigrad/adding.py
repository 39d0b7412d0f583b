"""Zeros with numbers added at an index, which may name a place twice: the trick of indexing.

The definition is two lines of NumPy:

    y = np.zeros(shape)
    np.add.at(y, index, a)

If no place is named twice, an assignment does the same.  Otherwise np.add.at is fast if y and the index
have one axis each, and takes about six times longer per entry if not.

Most indices pick from one axis, or from a few neighbouring axes, and take the others whole, as y[rows],
y[:, columns] and y[..., i, j] do.  Then y is a stack of n matrices with m rows of k entries, where m is
the number of places that can be picked.  And a is a stack of n matrices with one row for each pick.
There are three ways to add them:

- long rows one by one;
- all rows of one place at once, if the same places are picked over and over, like the letters of a text;
- short rows entry by entry, each at its place along the one axis of y's memory.
"""

from __future__ import annotations

import math
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from minigrad.sums import over_rows

Array: TypeAlias = npt.NDArray[Any]


def never_repeats(index: Any) -> bool:
    """Whether an index names no place twice, because it is made of numbers, slices and masks alone."""
    parts = index if isinstance(index, tuple) else (index,)
    basic = (int, np.integer, slice, EllipsisType, type(None))
    return all(isinstance(p, basic) or np.asarray(p).dtype == bool for p in parts)


class Placed:
    """Zeros of some shape with ``a`` at an index that names no place twice; not made until needed.

    When many of them are added up, one array serves for all.
    """

    __slots__ = "a", "index", "shape"

    def __init__(self, a: Array, index: Any, shape: tuple[int, ...]) -> None:
        self.a, self.index, self.shape = a, index, shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the zeros."""
        return self.a.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return placed(self.a, self.index, self.shape)

    def added_to(self, y: Array | None, in_place: bool) -> Array:
        """Return y with this added, or this alone; in the memory of y if that is allowed."""
        if y is None:
            return placed(self.a, self.index, self.shape)
        total = y if in_place else y.copy()
        total[self.index] += self.a
        return total


def placed(a: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """Return zeros of the given shape with ``a`` at ``index``, which names no place twice."""
    y = np.zeros(shape, a.dtype)
    # an assignment would drop leading axes of length 1, and take anything that is empty
    if a.ndim and (len(a) == 1 or not a.size) and a.ndim > np.ndim(y[index]):
        raise ValueError(f"{a.shape} does not broadcast to {np.shape(y[index])}, the places")
    try:
        y[index] = a
    except TypeError as error:  # of a mask, which NumPy treats on its own
        raise ValueError(f"{a.shape} does not broadcast to the places of the mask") from error
    return y


def added(a: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """Return zeros of the given shape with ``a`` added at ``index``, which has arrays of integers."""
    y = np.zeros(shape, a.dtype)
    # np.add.at of NumPy 2.4 reads beyond the end of such an a where it should repeat it
    if a.ndim == y.ndim == 1:
        a = np.broadcast_to(a, y[index].shape)
    if a.size <= 256:  # for few numbers, choosing a faster way takes longer than adding
        np.add.at(y, index, a)
        return y
    parts = _without_ellipsis(index, y.ndim)
    picking = [i for i, p in enumerate(parts) if not (isinstance(p, slice) and p == slice(None))]
    i, j = picking[0], picking[-1] + 1
    before, middle, after = y.shape[:i], y.shape[i:j], y.shape[j:]
    n, m, k = map(math.prod, (before, middle, after))
    # to number more places than there are entries would not pay
    if a.ndim > 1 and m <= a.size and all(np.asarray(p).dtype.kind in "iu" for p in parts[i:j]):
        picks = np.arange(m).reshape((*[1] * len(before), *middle))[parts[:j]]
        if a.shape == (*before, *picks.shape[i:], *after):
            _add_rows(y.reshape((n, m, k)), picks.ravel(), a.reshape((n, picks.size, k)))
            return y
    np.add.at(y, index, a)
    return y


def _without_ellipsis(index: Any, ndim: int) -> tuple[Any, ...]:
    """Return the index as a tuple, with whole slices in the place of an Ellipsis."""
    parts = index if isinstance(index, tuple) else (index,)
    for i, p in enumerate(parts):
        if p is Ellipsis:
            return (*parts[:i], *[slice(None)] * (ndim + 1 - len(parts)), *parts[i + 1 :])
    return parts


def _add_rows(y: Array, picks: Array, a: Array) -> None:
    """Perform y[:, picks] += a for zeros y (n, m, k), a (n, number of picks, k) and one axis of picks."""
    n, m, k = y.shape
    if k >= 64 and picks.size >= 24 * np.count_nonzero(counts := np.bincount(picks)):
        order, stop = np.argsort(picks, kind="stable"), 0
        for place in np.flatnonzero(counts).tolist():
            start, stop = stop, stop + counts[place]
            rows = a.take(order[start:stop], axis=1).swapaxes(0, 1)
            y[:, place] = over_rows(np.add.reduce, rows)
    elif k >= 16 and n * k >= 256:
        rows = y.swapaxes(0, 1)
        for pick, more in zip(picks.tolist(), a.swapaxes(0, 1)):
            row = rows[pick]
            row += more
    else:
        starts = m * k * np.arange(n)[:, None, None] + np.arange(k)
        entries = starts + k * picks[:, None]
        np.add.at(y.reshape(-1), entries.reshape(-1), a.reshape(-1))
