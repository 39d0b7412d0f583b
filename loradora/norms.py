r"""‖W0 + s B A‖ for each row, without forming B A: the trick of DoRA's norm.

The definition forms V = W0 + s B A and takes the norm of its rows (:func:`direct_norm`).  That makes
arrays of the size of W0 in every step.  Multiplied out, the square of row i is

    ‖vᵢ‖² = ‖wᵢ + s bᵢA‖² = ‖wᵢ‖² + 2s ⟨wᵢAᵀ, bᵢ⟩ + s² ⟨bᵢ(AAᵀ), bᵢ⟩

where vᵢ, wᵢ, bᵢ are the rows i of V, W0 and B.  This needs only arrays with r columns, and ‖wᵢ‖², which
never changes (:func:`factored_row_norm`).  A test compares the two on random arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

import minigrad as mg
from minigrad import Tensor
from minigrad.scopes import quietly

Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")

#: Up to this many entries of V, the definition is faster, because it makes fewer calls to NumPy.
SMALL = 8192


def direct_norm(W0: Array, A: Any, B: Any, s: float, axis: int = 1) -> Tensor:
    """Return ‖W0 + s B A‖ for each row, shape (out,), or for each column (axis 0): the definition.

    Parameters
    ----------
    W0
        Shape (out, in).
    A
        Shape (r, in): an array, or a Tensor if it is to be differentiated.
    B
        Shape (out, r), likewise.
    s
        The scaling.
    axis
        1 for the norms of the rows, 0 for those of the columns.

    Examples
    --------
    >>> W0, A, B = np.diag([3.0, 1.0]), np.array([[0.0, 2.0]]), np.array([[2.0], [0.0]])
    >>> direct_norm(W0, A, B, 1.0)  # of V = [[3, 4], [0, 1]]
    Tensor([5., 1.])
    """
    return mg.norm(W0 + (s * B) @ A, axis)


def factored_row_norm(W0: Array, A: Any, B: Any, s: float, squares: Array) -> Tensor:
    """Return what :func:`direct_norm` returns for the rows, without forming B A.

    ``squares`` are the :func:`squares` of W0 along its rows.

    Where the terms of ‖vᵢ‖² nearly cancel, their sum keeps few digits and may even be negative.  That
    happens if s bᵢA is close to −wᵢ, or if bᵢA is much shorter than its bound ‖bᵢA‖² ≤ ‖AAᵀ‖ ‖bᵢ‖².  The
    definition is used for such rows.
    """
    gram = A @ A.mT
    change = mg.matmul.of(W0, A.mT) + B @ (s / 2 * gram)  # so that ‖vᵢ‖² = ‖wᵢ‖² + 2s ⟨change, bᵢ⟩
    ones = np.ones(B.shape[1], W0.dtype)  # adds up short rows faster than sum(axis=1)
    square = squares + 2 * s * ((change * B) @ ones)
    b, G = np.asarray(B), np.asarray(gram)
    # ‖s bᵢA‖² ≤ bound ‖bᵢ‖², with the Frobenius norm of AAᵀ
    bound = s * s * math.sqrt(np.vdot(G, G))
    # a sum below 3 % of its terms has lost too many digits
    sound = square > 0.03 * (squares + bound * ((b * b) @ ones))
    if sound.all():
        return mg.sqrt(square)
    rows = np.flatnonzero(~sound)
    direct = direct_norm(W0[rows], A, B[rows], s)
    square = mg.where(sound, square, 1)  # the 1 is discarded, but √ of 0 would send NaN back
    return mg.where(sound, mg.sqrt(square), mg.scatter(direct, rows, sound.shape))


def squares(W0: Array, axis: int = 1) -> Array:
    """Return ‖wᵢ‖² for each row of W0, or for each column.

    Its root is the norm again, to the last bit.  So while B is 0, ‖V‖ equals m, and m/‖V‖ is exactly 1.
    Where the square would under- or overflow, infinity is returned: then no sum counts as sound, and
    the definition is used.
    """
    found = (mg.norm(W0, axis=axis) ** 2).data
    limits = np.finfo(W0.dtype)
    return np.where(found >= limits.tiny / limits.eps, found, np.inf).astype(W0.dtype)


class LowRankNorm:
    """‖V‖ along an axis of V = W0 + s B A, for one layer, whose W0 stays the same.

    V is formed if it has no more entries than A and B together, or no more than ``SMALL``: then the
    definition is as cheap.  Otherwise the factored form is used.

    Parameters
    ----------
    axis
        1 for the norms of the rows of V, 0 for those of its columns.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._squares = Memo()
        self._constant = Memo()

    def __call__(self, W0: Array, A: Any, B: Any, s: float) -> Tensor:
        """Return the norms; the arguments are those of :func:`direct_norm`."""
        return quietly(self._norms, W0, A, B, s)

    def _norms(self, W0: Array, A: Any, B: Any, s: float) -> Tensor:
        if W0.size <= max(SMALL, A.size + B.size):
            return direct_norm(W0, A, B, s, self.axis)
        W0.setflags(write=False)  # what is remembered of it must stay true
        known = self._squares(lambda: squares(W0.astype(A.dtype, copy=False), self.axis), W0)
        if self.axis == 0:  # the rows of Vᵀ = W0ᵀ + s AᵀBᵀ
            W0, A, B = W0.mT, B.mT, A.mT
        return factored_row_norm(W0, A, B, s, known)

    def remembered(self, W0: Array, A: Array, B: Array, s: float) -> Tensor:
        """Return the same for arrays, computed again only when one of them has changed."""
        W0.setflags(write=False)
        return self._constant(lambda: self(W0, A, B, s), W0, A.tobytes(), B.tobytes(), s)


class Memo:
    """The last value of a function of W0 and other arguments, kept while these stay the same."""

    def __init__(self) -> None:
        self._last: Any = None, (), None

    def __call__(self, make: Callable[[], T], W0: Array, *others: Any) -> T:
        """Return ``make()``, or its last result if the arguments are still the same.

        W0 is the same if it is the same array, which is read-only.  The others are if they are equal.
        """
        array, values, result = self._last
        if array is not W0 or values != others:
            result = make()
            self._last = W0, others, result  # one assignment, so that no thread sees half of it
        return cast(T, result)
