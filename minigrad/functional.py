"""Losses and other functions that are composed of operations.

Nothing here needs a rule of its own: the chain rule makes the derivative from those in ``ops.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_index

from minigrad import hints, ops
from minigrad.hints import keywords
from minigrad.ops import Axis
from minigrad.tensor import Operand, Tensor, as_array, as_tensors

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def gelu(x: Operand, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """Return x·Φ(x), where Φ(x) is the probability that a normally distributed number is below x.

    Φ(x) = ½ + ½ erf(x/√2).  With ``approximate="tanh"`` it is ½ + ½ tanh(√(2/π) (x + 0.044715 x³)), with
    which GPT-2 was trained.  The two results differ by less than 5e-4.

    Source: Hendrycks & Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, §2.

    Raises
    ------
    ValueError
        For another ``approximate``.

    Notes
    -----
    Far to the left, where Φ is smaller than the last digit of ½, the result is 0.  At −inf the result and
    the gradient are 0.  (PyTorch has NaN there.)  At +inf the result is inf, and the gradient is NaN.

    Examples
    --------
    >>> gelu([-3.0, 0.0, 3.0]).data.round(3)
    array([-0.004,  0.   ,  2.996])
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', not {approximate!r}")
    (given,) = as_tensors([x])
    a: Tensor = ops.wide(given)  # in float16 the cube of 41 is infinite
    if not np.min(a.data, initial=0) > _NO_DENSITY:
        a = ops.maximum(a, _NO_DENSITY)  # because −∞·0 would be NaN
    if approximate == "none":
        y = ops._gelu(a)
    else:
        k = math.sqrt(2 / math.pi)
        twice = ops.tanh(a * ops.affine(a * a, 0.044715 * k, k))  # of x (k + 0.044715 k x²)
        y = a * ops.affine(twice, 0.5, 0.5)
    return cast(Tensor, ops.like(y, given))


#: To the left of this both Φ and its derivative are 0: e^(−x²/2) is smaller than any float64.
_NO_DENSITY = -40.0


def mse_loss(prediction: Operand, target: Operand, reduction: Reduction = "mean") -> Tensor:
    """Return the squared error (prediction − target)²: its mean, its sum, or entry by entry.

    Raises
    ------
    ValueError
        If the shapes differ (there is no silent broadcast) or ``reduction`` is unknown.

    Examples
    --------
    >>> mse_loss([1.0, 2.0], [1.0, 4.0]).item()
    2.0
    """
    _check_reduction(reduction)
    shape, wanted = _shape(prediction), _shape(target)
    if shape != wanted:
        raise ValueError(f"prediction has shape {shape}, but target has {wanted}")
    error = ops.sub(prediction, target)
    wide = ops.wide(error)  # in float16 the square of 256 is infinite
    return cast(Tensor, ops.like(_reduce(wide**2, reduction), error))


def cross_entropy(
    logits: Operand,
    labels: npt.ArrayLike,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Return −log softmax(logits)[n, labels[n]]: the mean or the sum over all n, or one by one.

    The gradient of the sum by the logits is softmax minus one-hot, row by row.

    Parameters
    ----------
    logits
        Shape (N, C), or (…, C) for any number of axes in front.  The classes are always on the last axis;
        PyTorch has them on the second.
    labels
        Integers 0 … C−1, shape (N,), or (…).
    reduction
        "mean", "sum" or "none".
    ignore_index
        A row with this label does not count: its gradient is 0, and so is its loss for "none".  The mean
        is over the other rows, and NaN if there are none, as in PyTorch.

    Raises
    ------
    ValueError
        For other shapes or an unknown reduction.
    TypeError
        For labels, or an ``ignore_index``, that are not integers.
    IndexError
        For a label outside 0 … C−1.

    Examples
    --------
    >>> from minigrad import grad
    >>> logits = Tensor([[0.0, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(logits, [1])
    >>> loss.item() - math.log(2), grad(loss, logits)
    (0.0, Tensor([[ 0.5, -0.5]]))
    """
    _check_reduction(reduction)
    (rows,), labels = as_tensors([logits]), as_array(labels, "labels")
    shape = labels.shape
    if rows.shape[:-1] != shape or not rows.ndim:
        raise ValueError(_no_rows_of_classes(rows.shape, shape))
    if rows.ndim != 2:
        rows, labels = rows.reshape(labels.size, rows.shape[-1]), labels.reshape(-1)
    counted = _counted(labels, ignore_index)
    if counted is not None:
        rows, labels = rows[counted], labels[counted]
    losses = ops.nll(rows, labels)
    if reduction != "none":
        return _reduce(losses, reduction)
    if counted is not None:
        losses = ops.scatter(losses, counted, counted.shape)
    return losses if losses.shape == shape else losses.reshape(shape)


def _counted(labels: npt.NDArray[Any], ignore_index: int) -> npt.NDArray[np.bool_] | None:
    """Return for each label whether it counts, None if all do."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
        raise TypeError(f"ignore_index is a label, an integer, not {ignore_index!r}")
    if labels.dtype.kind not in "iu":
        return None  # these are refused
    # NumPy 2.0 may crash where unsigned numbers are compared with a negative int (numpy#28117)
    ignored = labels == np.asarray(ignore_index)
    return ~ignored if np.count_nonzero(ignored) else None


def _no_rows_of_classes(logits: tuple[int, ...], labels: tuple[int, ...]) -> str:
    """Return in words what is wrong with two shapes that do not belong together."""
    said = (
        f"expected logits (N, C) and labels (N,), or (..., C) and (...), got {logits} and {labels}"
    )
    if len(logits) > 2 and logits[:1] + logits[2:] == labels:
        axes = (0, *range(2, len(logits)), 1)
        said += f"; if the classes are on axis 1, as in PyTorch, give logits.transpose{axes}"
    return said


@keywords
def logsumexp(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return log Σeˣ over ``axis``; finite also for entries of ±1e4.  Its gradient is softmax(x).

    Of no entries, or of −inf alone, it is −inf.

    Examples
    --------
    >>> logsumexp([[1e4, 1e4], [-1e4, -1e4]], axis=1).data - [1e4, -1e4]  # log 2
    array([0.69314718, 0.69314718])
    """
    (given,) = as_tensors([x])
    a: Tensor = ops.wide(given)
    axis = tuple(axis) if isinstance(axis, Iterable) else axis
    largest = _named("logsumexp", _LARGEST, a.data, axis)  # log Σeˣ = m + log Σeˣ⁻ᵐ
    m = np.where(np.isfinite(largest), largest, a.dtype.type(0))
    y = ops.log(ops.exp(a - m).sum(axis, keepdims))
    return cast(Tensor, ops.like(y + m.reshape(y.shape), given))


_LARGEST = partial(np.max, keepdims=True, initial=-np.inf)


@keywords
def std(x: Operand, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """Return the standard deviation over ``axis``: √(Σ(x − μ)²/(n − ``ddof``)).

    NumPy's ddof is 0.  PyTorch's is 1, under the name ``correction`` or ``unbiased=True``.

    It is computed as ‖x − μ‖/√(n − ddof), so its gradient is 0 where all entries equal their mean.  (The
    gradient of √var would be NaN there.)  If n ≤ ``ddof``, it is infinite or NaN, and its gradient is
    NaN.

    Examples
    --------
    >>> std([-3.0, 3.0, -3.0, 3.0]).item(), std([2.0, 3.0, 4.0], ddof=1).item()
    (3.0, 1.0)
    """
    (given,) = as_tensors([x])
    a: Tensor = ops.wide(given)
    mean = _named("std", partial(ops.mean, keepdims=True), a, axis)
    length = ops.norm(a - mean, axis, keepdims)
    n = a.size // max(length.size, 1)
    return cast(Tensor, ops.like(length / math.sqrt(max(n - ddof, 0)), given))


@keywords
def squeeze(x: Operand, axis: Axis = None) -> Tensor:
    """Return x without the axes of length 1, or without those of them that ``axis`` names.

    Raises
    ------
    ValueError
        For an axis of another length.

    Examples
    --------
    >>> squeeze([[[1.0], [2.0]]]).shape, squeeze([[[1.0], [2.0]]], axis=0).shape
    ((2,), (2, 1))
    """
    return _reshaped("squeeze", x, np.squeeze, axis)


@keywords
def expand_dims(x: Operand, axis: int | tuple[int, ...]) -> Tensor:
    """Return x with a new axis of length 1 at ``axis`` of the result, or with several.

    Examples
    --------
    >>> expand_dims([1.0, 2.0], 0).shape, expand_dims([1.0, 2.0], -1).shape
    ((1, 2), (2, 1))
    """
    return _reshaped("expand_dims", x, np.expand_dims, axis)


def flatten(x: Operand, start_dim: int = 0) -> Tensor:
    """Return x with all axes from ``start_dim`` on made into one.

    As in PyTorch, ``start_dim=1`` keeps the examples of a batch apart.

    Examples
    --------
    >>> flatten([[1.0, 2.0], [3.0, 4.0]])
    Tensor([1., 2., 3., 4.])
    >>> flatten(np.zeros((5, 28, 28)), start_dim=1).shape
    (5, 784)
    """
    return _reshaped("flatten", x, _flat, start_dim)


def _flat(a: npt.NDArray[np.floating], start: int) -> npt.NDArray[np.floating]:
    if isinstance(start, bool):
        raise TypeError("'bool' object is no number of an axis")
    start = normalize_axis_index(start, max(a.ndim, 1))
    return a.reshape((*a.shape[:start], math.prod(a.shape[start:])))


def _reshaped(
    name: str, x: Operand, f: Callable[..., npt.NDArray[np.floating]], axis: object
) -> Tensor:
    """Return x in the shape that f gives to an array."""
    (given,) = as_tensors([x])
    return given.reshape(_named(name, f, given.data, axis).shape)


def _named(name: str, f: Callable[..., Any], x: Any, axis: object) -> Any:
    """Return f(x, axis); errors begin with the name of the function that was called, and its shape."""
    try:
        return f(x, axis)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name} of shape {x.shape}: {error}") from error


def _shape(x: Operand) -> tuple[int, ...]:
    """Return ``np.shape(x)``, which is slow for a Tensor."""
    return x.shape if isinstance(x, Tensor) else np.shape(x)


def _check_reduction(reduction: Reduction) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


@keywords
def concatenate(tensors: Iterable[Operand], axis: int | None = 0) -> Tensor:
    """Return the tensors one after the other along an existing axis; flattened first for None.

    Raises
    ------
    ValueError
        For no tensors, or shapes that differ in another axis.

    Examples
    --------
    >>> concatenate([[1.0, 2.0], [3.0]])
    Tensor([1., 2., 3.])
    """
    return _joined(_parts("concatenate", tensors), axis)


def _joined(parts: list[Tensor], axis: int | None) -> Tensor:
    """Return the parts one after the other.

    Many parts are first joined in groups.  The rule of each part asks for the lengths of those before it,
    which would take seconds for 10,000 at once.
    """
    join, n = ops._concatenate, 32
    while len(parts) > n:
        parts = [join(axis, *parts[i : i + n]) for i in range(0, len(parts), n)]
    return join(axis, *parts)


@keywords
def stack(tensors: Iterable[Operand], axis: int = 0) -> Tensor:
    """Return the tensors, all of one shape, side by side along a new axis.

    Raises
    ------
    ValueError
        For no tensors, or shapes that differ.

    Examples
    --------
    >>> stack([[1.0, 2.0], [3.0, 4.0]], axis=1)
    Tensor([[1., 3.],
            [2., 4.]])
    """
    parts = _parts("stack", tensors)
    shapes = [t.shape for t in parts]
    if len(set(shapes)) != 1:
        raise ValueError(f"stack needs tensors of one shape, got {shapes}")
    n, shape = len(parts), shapes[0]
    axis = normalize_axis_index(axis, len(shape) + 1, "stack")
    if not shape:
        return _joined(parts, None)
    if axis < len(shape):  # joined along their own axis, which is then split in two
        return _joined(parts, axis).reshape(*shape[:axis], n, *shape[axis:])
    return _joined([t.reshape(*shape, 1) for t in parts], axis)


def _parts(name: str, tensors: Iterable[Operand]) -> list[Tensor]:
    """Return what the function called ``name`` is to join, as Tensors."""
    if not isinstance(tensors, Iterable):
        raise TypeError(f"{name} needs a sequence of tensors, not {type(tensors).__name__}")
    parts = as_tensors(list(tensors))
    if not parts:
        raise ValueError(f"{name} needs at least one tensor")
    return parts


if not TYPE_CHECKING:  # for those who write minigrad.functional as F
    __getattr__ = hints.attributes_of(__name__, hints.of_minigrad)
