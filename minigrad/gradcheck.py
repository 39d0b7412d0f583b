"""Gradients against finite differences.

A derivation can be wrong, and so can the code beside it.  The definition of the derivative cannot:

    ∂y/∂x  ≈  (y(x + h) − y(x − h)) / 2h       (central difference, error O(h²) + O(ε/h))

In float64 the two errors balance near h = ∛ε ≈ 6e-6.  About ten digits are right there, if the function
is neither much larger nor much more curved than its argument.  There are four comparisons:

1. the full Jacobian, entry by entry, because a projection can miss a wrong entry;
2. the gradient for a random upstream gradient, because a rule may ignore the one it is given;
3. the same again, because a rule may keep state;
4. the gradient for an upstream gradient of zeros, which must be exactly zero.

Where two values disagree, a step 64 times smaller decides.  Suppose the function is smooth, but h was too
coarse, as for log x at 0.001.  Then the error shrinks with h, and the gradient is accepted.  Suppose
there is a kink, as for relu at 0.  Then the slopes to the left and to the right stay apart however small
h is.  The difference is the mean of the two, a gradient chooses one by convention, and the report says
so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from minigrad import hints, ops
from minigrad.functional import concatenate
from minigrad.tensor import Tensor, grad

Array: TypeAlias = npt.NDArray[Any]


class GradcheckError(AssertionError):
    """A gradient disagrees with the finite differences of its function."""


@np.errstate(under="ignore")
def gradcheck(
    f: Callable[..., Tensor],
    *inputs: Any,
    step: float = 6e-6,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    seed: int = 0,
) -> bool:
    """Compare the gradients of ``f(*inputs)`` with central differences; return True or raise.

    Parameters
    ----------
    f
        A function of the inputs that returns one Tensor of any shape.
    *inputs
        Arrays of float64 (made into Tensors) and Tensors that require a gradient are checked;
        everything else is handed on.  A Tensor is moved itself, so ``f`` may also reach it another
        way: the parameters of a layer are checked by
        ``gradcheck(lambda x, *_: layer(x), x, *layer.parameters())``.
    step
        x is moved by step·max(1, |x|).
    rtol
        Accepted error relative to the larger of the two values; of a sum that the random upstream
        gradient makes of entries, relative to the sum of their magnitudes.
    atol
        Accepted absolute error, less if the whole Jacobian is smaller than 1; what rounding makes of
        the difference, 16ε·max(1, |y|)/h, is accepted on top.
    seed
        Of the random upstream gradient.

    Raises
    ------
    GradcheckError
        Naming argument, index, analytic and numeric value, error, and a kink.
    TypeError
        For inputs or a result in less than float64, whose differences have too few digits, and for a
        result that is no Tensor.
    ValueError
        If there is nothing to check.
    RuntimeError
        Inside ``no_grad``.

    Examples
    --------
    >>> gradcheck(lambda x: x * x, np.array([1.0, -2.0]))
    True
    """
    args, checked = _prepare(inputs)
    tensors = [args[i] for i in checked]
    before = [x.data.copy() for x in tensors]
    arrays = {i for i in checked if not isinstance(inputs[i], Tensor)}

    def value() -> Tensor:
        # a result, not the leaf: that has its numbers also for a rule that said it would not read them
        return _checked(f(*(a * 1 if i in arrays else a for i, a in enumerate(args))))

    y = value()
    analytic = [_jacobian(y, x) for x in tensors]
    numeric = [
        _confirmed(i, exact, value, x, y, step, rtol, atol)
        for i, x, exact in zip(checked, tensors, analytic, strict=True)
    ]
    rng = np.random.default_rng(seed)
    upstream = rng.uniform(0.5, 2, y.shape) * rng.choice([-1, 1], y.shape)
    first, again = _vjp(y, tensors, upstream), _vjp(value(), tensors, upstream)
    reversed_ = _vjp(y, tensors, -2 * upstream)
    nothing = _vjp(y, tensors, np.zeros(y.shape))
    for i, x, old in zip(checked, tensors, before, strict=True):
        if not np.array_equal(x.data, old, equal_nan=True):
            raise GradcheckError(f"argument {i} was written to: its value is not what it was")
    results = zip(checked, first, reversed_, again, nothing, numeric, strict=True)
    for i, g, minus_two_g, repeated, zero, jacobian in results:
        expected = np.tensordot(upstream, jacobian, axes=y.ndim)
        # the sum is as good as its terms: each entry was accepted with an error of its own
        slack = _accepted(jacobian, y, atol, step / 64) + rtol * np.abs(jacobian)
        accepted = np.tensordot(np.abs(upstream), np.nan_to_num(slack, posinf=0), axes=y.ndim)
        # a number has one upstream gradient at a time: the second tells what depends on sign and size
        for found in (g, minus_two_g / -2):
            for at in _disagreements(found, expected, rtol, accepted):
                raise GradcheckError(
                    f"argument {i}, input{list(at)}, with a random upstream gradient: analytic "
                    f"{found[at]:.10g}, numeric {expected[at]:.10g}, error "
                    f"{abs(found[at] - expected[at]):.3g}: the rule is not linear in its upstream "
                    "gradient"
                )
        if g.tobytes() != repeated.tobytes():
            raise GradcheckError(f"argument {i}: the same pass gave two different gradients")
        if np.any(zero):
            raise GradcheckError(f"argument {i}: an upstream gradient of 0 gave one that is not 0")
    return True


def gradgradcheck(
    f: Callable[..., Tensor], *inputs: Any, seed: int = 0, **tolerances: float
) -> bool:
    """Compare the second derivatives of ``f(*inputs)`` with differences of its gradient.

    The function checked is (x, v) ↦ Jᵀ(x) v, the gradient of ``f`` for an upstream gradient v, with
    respect to both x and v.  Arguments and errors are those of :func:`gradcheck`.

    >>> gradgradcheck(lambda x: x**3, np.array([1.0, -2.0]))
    True
    """
    args, checked = _prepare(inputs)
    shape = _checked(f(*args)).shape
    v = Tensor(np.random.default_rng(seed).uniform(0.5, 2, shape), requires_grad=True)

    def gradient(*args_and_v: Any) -> Tensor:
        *xs, upstream = args_and_v
        y = _checked(f(*xs))
        if not y.requires_grad:
            return ops.mul(0, upstream)
        found = grad(y, [xs[i] for i in checked], upstream, create_graph=True)
        return concatenate([g.reshape(-1) for g in found])

    return gradcheck(gradient, *args, v, seed=seed, **tolerances)


def _prepare(inputs: tuple[Any, ...]) -> tuple[list[Any], list[int]]:
    """Return the arguments for f, and the positions of those to check."""
    args: list[Any] = []
    for a in inputs:
        array = isinstance(a, (float, np.ndarray, np.floating)) and np.asarray(a).dtype.kind == "f"
        args.append(Tensor(a, requires_grad=True) if array else a)
    checked = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    if not checked:
        kinds = ", ".join(map(hints.kind, inputs)) or "nothing"
        raise ValueError(
            "no input is a floating-point array or a Tensor that requires a gradient: got "
            f"{kinds}; give each argument of f by itself, as in gradcheck(f, a, b)"
        )
    for i in checked:
        if args[i].dtype.itemsize < 8:
            raise TypeError(f"argument {i} is {args[i].dtype}: finite differences need float64")
        if args[i].op is not None:
            raise ValueError(f"argument {i} is a result: only a leaf can be moved; use .detach()")
        if not (args[i] * 1).requires_grad:
            raise RuntimeError("gradients cannot be checked inside no_grad")
    return args, checked


def _checked(y: Any) -> Tensor:
    """Return what the function under test has returned, if it can be checked."""
    if not isinstance(y, Tensor):
        raise TypeError(f"the function should return a Tensor, not a {hints.kind(y)}")
    if y.dtype.itemsize < 8:
        raise TypeError(f"the function returns {y.dtype}: finite differences need float64")
    return y


def _accepted(jacobian: Array, y: Tensor, atol: float, step: float) -> Array:
    """Return the absolute error accepted in each entry of the Jacobian."""
    largest = float(np.max(np.abs(jacobian), initial=0, where=np.isfinite(jacobian)))
    rounding = 16 * np.finfo(np.float64).eps / step * np.maximum(1, np.abs(y.data))
    per_output = atol * min(1.0, largest) + np.where(np.isfinite(rounding), rounding, 0)
    one_each: Array = per_output.reshape(y.shape + (1,) * (jacobian.ndim - y.ndim))
    return one_each


def _vjp(y: Tensor, xs: list[Tensor], upstream: Array) -> list[Array]:
    if not y.requires_grad:
        return [np.zeros(x.shape) for x in xs]
    return [g.data for g in grad(y, xs, upstream)]


def _jacobian(y: Tensor, x: Tensor) -> Array:
    """Return ∂y/∂x of shape (*y.shape, *x.shape), one backward pass per entry of y."""
    jacobian = np.zeros((*y.shape, *x.shape))
    for at in np.ndindex(y.shape):
        one = np.zeros(y.shape)
        one[at] = 1
        jacobian[at] = _vjp(y, [x], one)[0]
    return jacobian


def _confirmed(
    argument: int,
    exact: Array,
    f: Callable[[], Tensor],
    x: Tensor,
    y: Tensor,
    step: float,
    rtol: float,
    atol: float,
) -> Array:
    """Return the differences that confirm ``exact``, the Jacobian of f by x; raise GradcheckError."""
    left, right = _slopes(f, x, y.data, step)
    central = np.asarray((left + right) / 2)
    wrong = _disagreements(exact, central, rtol, _accepted(central, y, atol, step))
    if not wrong:
        return central
    near_left, near_right = _slopes(f, x, y.data, step / 64)
    near = np.asarray((near_left + near_right) / 2)
    # the error must have gone with the step, not in the rounding, which is larger here
    accepted = np.minimum(_accepted(near, y, atol, step / 64), np.abs(exact - central) / 8)
    still_wrong = set(_disagreements(exact, near, rtol, accepted))
    for at in wrong:
        if at in still_wrong:
            jump, near_jump = abs(right[at] - left[at]), abs(near_right[at] - near_left[at])
            message = (
                f"argument {argument}, d output{list(at[: y.ndim])} / d input{list(at[y.ndim :])}: "
                f"analytic {exact[at]:.10g}, numeric {central[at]:.10g}, "
                f"error {abs(exact[at] - central[at]):.3g}"
            )
            if near_jump > max(jump / 8, 1e-3 * (1 + abs(left[at]) + abs(right[at]))):
                message += (
                    f"; the slopes left {left[at]:.6g} and right {right[at]:.6g} differ: a kink"
                )
            raise GradcheckError(message)
        central[at] = near[at]
    return central


def _slopes(f: Callable[[], Tensor], x: Tensor, y: Array, step: float) -> tuple[Array, Array]:
    """Return the slopes of f to the left and to the right of x, shape (*y.shape, *x.shape)."""
    original: Any = x.data
    sides = np.zeros((2, *y.shape, *x.shape))
    try:
        for at in np.ndindex(x.shape):
            for side, sign in enumerate((-1, 1)):
                moved = original.copy()
                moved[at] += sign * step * max(1.0, abs(original[at]))
                x.data = moved
                with np.errstate(all="ignore"):  # infinite values have no slope, which is reported
                    slope = (f().data - y) / (moved[at] - original[at])
                    sides[(side, ..., *at)] = slope + 0.0  # not −0
    finally:
        x._data = original
    return sides[0], sides[1]


def _disagreements(a: Array, b: Array, rtol: float, atol: Array) -> list[tuple[int, ...]]:
    """Return the indices where a and b differ by more than the tolerance, the worst one first."""
    with np.errstate(all="ignore"):
        error = np.abs(a - b) - rtol * np.maximum(np.abs(a), np.abs(b))
    wrong = ~(error <= atol) & ~(np.isnan(a) & np.isnan(b))
    found = [tuple(int(k) for k in at) for at in np.argwhere(wrong)]
    return sorted(found, key=lambda at: -np.nan_to_num(error[at], nan=np.inf))
