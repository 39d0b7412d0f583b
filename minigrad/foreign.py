"""What NumPy's own functions may do with a Tensor.

When NumPy is given a Tensor, it asks the Tensor what to do (NEP 13 and NEP 18).  There are four cases:

- A function that Python writes as an operator becomes the operation: ``ndarray + Tensor`` arrives here.
- A function that only asks about values, such as ``np.argmax``, is answered from the array.
- If minigrad has no function of that name and no gradient is needed, as in most plots, nothing can be
  lost.  NumPy gets the arrays.
- Every other function would return an array, and the gradient would be lost.  It is refused, and the
  error names what to use.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import hints, ops
from minigrad.operation import Op

#: The functions of NumPy that Python's operators stand for.
OPERATIONS: dict[np.ufunc, Op[...]] = {
    np.add: ops.add,
    np.subtract: ops.sub,
    np.multiply: ops.mul,
    np.divide: ops.div,
    np.power: ops.pow,
    np.matmul: ops.matmul,
    np.negative: ops.neg,
    np.absolute: ops.abs,
}
COMPARISONS = frozenset(
    {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
)

#: Functions whose result has no gradient: they ask a question, or return an index, a shape, a file.
WITHOUT_GRADIENT: frozenset[Any] = frozenset(
    {
        *(np.isnan, np.isinf, np.isfinite, np.signbit, np.isneginf, np.isposinf),
        *(np.isclose, np.allclose, np.array_equal, np.array_equiv, np.isin, np.any, np.all),
        *(np.isreal, np.iscomplex, np.isrealobj, np.iscomplexobj),
        *(np.argmax, np.argmin, np.nanargmax, np.nanargmin, np.argsort, np.argpartition),
        *(np.argwhere, np.nonzero, np.flatnonzero, np.count_nonzero),
        *(np.searchsorted, np.digitize, np.lexsort),
        *(np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like),
        *(np.result_type, np.can_cast, np.min_scalar_type, np.common_type),
        *(np.shares_memory, np.may_share_memory),
        *(np.array2string, np.array_repr, np.array_str),
        *(np.save, np.savez, np.savez_compressed, np.savetxt),
    }
)


def refusal(name: str, hint: str = "") -> TypeError:
    """Return the error for a function of NumPy that would return an array, and lose the gradient."""
    own, composed = hints.own_name(name), hints.COMPOSITIONS.get(name)
    if own:
        instead = f"use mg.{own}{hint}"
    elif composed:
        instead = f"pass .data if you need no gradient, else {hints.said(composed)}"
    else:
        instead = "make it of the operations here, or pass .data if you need no gradient"
    return TypeError(f"np.{name} makes arrays, and would lose the gradient of a Tensor: {instead}")
