r"""‖W0 + s B A‖ for each row, at the lowest price: the tricks of DoRA's norm.

The definition forms V = W0 + s B A and takes the norm of its rows (:func:`row_norm`).  That is one array
of the size of W0 in every step.  Multiplied out, row i is

    ‖vᵢ‖² = ‖wᵢ + s bᵢA‖² = ‖wᵢ‖² + 2s ⟨wᵢAᵀ, bᵢ⟩ + s² ⟨bᵢ(AAᵀ), bᵢ⟩

with wᵢ the row of W0.  That needs only arrays with r columns, and ‖wᵢ‖², which never changes
(:func:`factored_row_norm`).  A test compares both on random arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

import minigrad as mg
from minigrad import Tensor

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")

#: Up to so many entries of V the definition is faster, because it takes fewer calls of NumPy.
SMALL = 8192


def row_norm(W0: Array, A: Any, B: Any, s: float) -> Tensor:
    """Return ‖W0 + s B A‖ for each row, shape (out,): the definition.

    Parameters
    ----------
    W0
        Shape (out, in).
    A
        Shape (r, in), an array or, to be differentiated, a Tensor.
    B
        Shape (out, r), likewise.
    s
        The scaling.

    Examples
    --------
    >>> W0, A, B = np.diag([3.0, 1.0]), np.array([[0.0, 2.0]]), np.array([[2.0], [0.0]])
    >>> row_norm(W0, A, B, 1.0)  # of V = [[3, 4], [0, 1]]
    Tensor([5., 1.])
    """
    return mg.norm(W0 + (s * B) @ A, axis=1)


def factored_row_norm(W0: Array, A: Any, B: Any, s: float, squares: Array) -> Tensor:
    """Return what :func:`row_norm` returns, without forming B A; ``squares`` is that of W0.

    Where the terms of ‖vᵢ‖² nearly cancel, their sum keeps few digits and may even be negative.  That
    happens if s bᵢA is close to −wᵢ, or if bᵢA is much shorter than its bound ‖bᵢA‖² ≤ ‖AAᵀ‖ ‖bᵢ‖².  Such
    rows are computed by the definition.
    """
    gram = A @ A.mT
    change = W0 @ A.mT + B @ (s / 2 * gram)  # so that ‖vᵢ‖² = ‖wᵢ‖² + 2s ⟨change, bᵢ⟩
    ones = np.ones(B.shape[1], W0.dtype)  # adds up short rows faster than sum(axis=1)
    square = squares + 2 * s * ((change * B) @ ones)
    b, G = np.asarray(B), np.asarray(gram)
    longest = s * s * math.sqrt(np.vdot(G, G))
    sound = square > 0.03 * (squares + longest * ((b * b) @ ones))  # has lost less than two digits
    if sound.all():
        return mg.sqrt(square)
    rows = np.flatnonzero(~sound)
    direct = row_norm(W0[rows], A, B[rows], s)
    square = mg.where(sound, square, 1)
    return mg.where(sound, mg.sqrt(square), mg.scatter(direct, rows, sound.shape))


def row_squares(W0: Array) -> Array:
    """Return ‖wᵢ‖² for each row; its root is the norm again, to the last bit.

    Where the square under- or overflows it is infinity: then no sum is sound, and the row is computed by
    the definition.
    """
    squares = (mg.norm(W0, axis=1) ** 2).data
    limits = np.finfo(W0.dtype)
    return np.where(squares >= limits.tiny / limits.eps, squares, np.inf).astype(W0.dtype)


class LowRankNorm:
    """‖V‖ along an axis of V = W0 + s B A, for one layer, whose W0 stays the same.

    V is formed where it has no more entries than A and B together, or no more than ``SMALL``: there the
    definition is as cheap.  Everywhere else the factored form is.

    Parameters
    ----------
    axis
        1 for the norms of the rows of V, 0 for those of its columns.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._squares = Memo()
        self._constant = Memo()

    @np.errstate(all="ignore")
    def __call__(self, W0: Array, A: Any, B: Any, s: float) -> Tensor:
        """Return the norms; the arguments are those of :func:`row_norm`."""
        rows, A, B = (W0, A, B) if self.axis == 1 else (W0.mT, B.mT, A.mT)  # Vᵀ = W0ᵀ + s AᵀBᵀ
        if W0.size <= max(SMALL, A.size + B.size):
            return row_norm(rows, A, B, s)
        W0.setflags(write=False)  # what is remembered of it must stay true
        return factored_row_norm(rows, A, B, s, self._squares(lambda: row_squares(rows), W0))

    def remembered(self, W0: Array, A: Array, B: Array, s: float) -> Tensor:
        """Return the same for arrays; compute it only when one of them has changed."""
        W0.setflags(write=False)
        return self._constant(lambda: self(W0, A, B, s), W0, A.tobytes(), B.tobytes(), s)


class Memo:
    """The last value of a function of W0 and more, kept while these stay the same."""

    def __init__(self) -> None:
        self._last: Any = None, (), None

    def __call__(self, make: Callable[[], T], W0: Array, *others: Any) -> T:
        """Return ``make()``, or what it was when it was last made from these.

        W0 is the same if it is the same array, which is read-only; the others are if they are equal.
        """
        array, values, result = self._last
        if array is not W0 or values != others:
            result = make()
            self._last = W0, others, result  # at once, lest another thread see half of it
        return cast(T, result)
