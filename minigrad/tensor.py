"""Chapter 3: the bookkeeping.

A :class:`Tensor` is an array that remembers how it was made, so that chapter 2 can walk back.  The
whole of the bookkeeping is :func:`record`: apply an op to the arrays inside the arguments, and, if
some argument needs a gradient, note the op and its arguments on the result.  A result that needs no
gradient is a constant without memory: a frozen layer leaves no trace.

There are no in-place operations and no writable views: a result is read-only, and ``x += y`` binds
x to a new Tensor.  Only leaves, the tensors that a user makes, can be assigned to.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from minigrad import engine, ops
from minigrad.ops import Axis, Op

Operand: TypeAlias = "Tensor | npt.ArrayLike"

_births = itertools.count()


class _Thread(threading.local):
    """What every thread has for itself: whether it records, and a context in which NumPy is quiet.

    1/0 = inf is a value here, not an accident, so ops run with NumPy's floating-point warnings off.
    A prepared context costs a tenth of ``np.errstate``, which matters for small arrays.
    """

    def __init__(self) -> None:
        self.pauses = 0
        context = contextvars.copy_context()
        context.run(np.seterr, all="ignore")
        self.quietly = context.run


_thread = _Thread()


class no_grad(contextlib.ContextDecorator):
    """Record nothing inside: as ``with no_grad():`` or ``@no_grad()``.

    May be nested, ends on exceptions, and concerns the current thread only.
    """

    def __enter__(self) -> None:
        _thread.pauses += 1

    def __exit__(self, *exc: object) -> None:
        _thread.pauses -= 1


def record(op: Op[...], *args: Any) -> Tensor:
    """Apply ``op`` and return the result, which remembers ``op`` and its arguments if it must.

    Numbers and NumPy scalars take the dtype of the tensors beside them.  Arrays are kept, not copied: do
    not write to one before the backward pass.  A forward that fails raises what NumPy raises (ValueError,
    IndexError, TypeError), with the op and the shapes in front.
    """
    inputs: list[Any] = []
    parents: list[Tensor | None] = []
    needed, only_numbers = False, True
    for a, rule in zip(args, op.vjps):
        if type(a) is Tensor and rule:
            inputs.append(a._data)
            only_numbers = False
            if a._requires_grad:
                parents.append(a)
                needed = True
                continue
        elif rule:
            a = _plain(a, args)
            inputs.append(a)
            only_numbers = only_numbers and isinstance(a, (int, float))
        else:
            _refuse_tensors(op, a)
            inputs.append(a)
        parents.append(None)
    if only_numbers:
        inputs = [a if r is None else np.asarray(a, np.float64) for a, r in zip(inputs, op.vjps)]
    if len(args) > len(inputs):
        _refuse_tensors(op, *args[len(inputs) :])
        inputs += args[len(inputs) :]
    try:
        y = _thread.quietly(op.forward, *inputs)
    except (ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(str(a.shape) for a in inputs if isinstance(a, np.ndarray))
        kind = TypeError if isinstance(error, TypeError) else type(error)
        raise kind(f"{op.name} of shapes {shapes}: {error}") from error

    if type(y) is not np.ndarray:
        y = np.asarray(y)
    y.setflags(write=False)
    return _tensor(y, op, inputs, parents) if needed and not _thread.pauses else _tensor(y)


def _tensor(
    data: npt.NDArray[Any], op: Op[...] | None = None, inputs: Any = None, parents: Any = ()
) -> Tensor:
    """Return a result of ``op``, or a constant, that holds ``data`` itself, not a copy."""
    tensor = _new(Tensor)
    tensor._data = data
    tensor._requires_grad = op is not None
    tensor._birth = next(_births)
    tensor._op = op
    tensor._inputs = inputs
    tensor._parents = parents
    tensor.grad = None
    return tensor


_new = object.__new__


def apply(op: Op[...], *args: Any) -> Any:
    """Do what calling an op does: record it.  But a rule that is fed arrays wants arrays back."""
    if engine.rules.plain and Tensor not in map(type, args):
        return op.forward(*args)
    return record(op, *args)


Op.apply = apply


def _plain(a: Any, others: Sequence[Any]) -> Any:
    """Return an operand as a float array or, if it is a single number, as a Python number.

    NumPy gives a Python number the dtype of its neighbour (NEP 50); integer arrays get it here.
    """
    if type(a) is float or type(a) is int:
        return a
    if type(a) is Tensor:
        return a._data
    array = np.asarray(a)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"expected real numbers, got {type(a).__name__} of dtype {array.dtype}: {a!r}"
        )
    if array.ndim == 0:
        return array.item()
    if array.dtype.kind == "f":
        return array
    floats = [
        o.dtype for o in others if isinstance(o, (Tensor, np.ndarray)) and o.dtype.kind == "f"
    ]
    return array.astype(np.result_type(*floats) if floats else np.float64)


def _refuse_tensors(op: Op[...], *arguments: Any) -> None:
    """Raise TypeError for a Tensor where the op has no rule: its gradient would be lost silently."""
    for a in arguments:
        if isinstance(a, Tensor) or (
            isinstance(a, tuple) and any(isinstance(i, Tensor) for i in a)
        ):
            raise TypeError(
                f"{op.name} has no derivative for this argument, and a Tensor would lose its gradient: "
                "pass an array"
            )


class Tensor:
    """An array of floating-point numbers that can be differentiated with respect to.

    Parameters
    ----------
    data
        Anything ``np.array`` accepts; it is copied.  Float dtypes are kept, integers and bools
        become float64.
    requires_grad
        Make this a leaf whose ``.grad`` the backward pass fills.

    Raises
    ------
    TypeError
        For complex, object or string data, and for integer data with ``requires_grad``.

    Attributes
    ----------
    grad
        None, or an ndarray of this tensor's shape and dtype.  It adds up over backward passes.

    Examples
    --------
    >>> x = Tensor([3.0, 4.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([6., 8.])
    """

    __slots__ = (
        "__weakref__",
        "_birth",  # serial number: a tensor is younger than its parents
        "_data",
        "_inputs",  # what the op's forward was given
        "_op",  # which made it; None for a leaf or a constant
        "_parents",  # for each rule of the op, the tensor that it leads to or None; see chapter 2
        "_requires_grad",
        "grad",
    )

    _op: Op[...] | None
    _inputs: Sequence[Any] | None
    _parents: Sequence[Tensor | None] | None

    #: Makes ``ndarray + Tensor`` ask the Tensor (NEP 13) instead of looping over its entries.
    __array_ufunc__ = None

    def __init__(self, data: npt.ArrayLike | Tensor, requires_grad: bool = False) -> None:
        array = np.array(data)
        if array.dtype.kind in "iub":
            if requires_grad:
                raise TypeError(
                    f"only floating-point tensors can require a gradient, got {array.dtype}"
                )
            array = array.astype(np.float64)
        if array.dtype.kind != "f":
            raise TypeError(f"a Tensor holds floating-point numbers, not {array.dtype}")
        self._data = array
        self._requires_grad = bool(requires_grad)
        self._birth = next(_births)
        self._op, self._inputs, self._parents = None, None, ()
        self.grad: npt.NDArray[Any] | None = None

    # -- what it holds

    @property
    def data(self) -> npt.NDArray[Any]:
        """The array itself: writable for a leaf, read-only for a result.

        Assigning to a leaf sets a copy of the value, of the same shape and dtype (else ValueError or
        TypeError).  Graphs that were recorded before keep the old value.
        """
        return self._data

    @data.setter
    def data(self, value: npt.ArrayLike) -> None:
        self._check_leaf("assign to .data")
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ValueError(
                f"cannot set data of shape {self.shape} to an array of shape {array.shape}"
            )
        if array.dtype != self.dtype:
            raise TypeError(
                f"cannot set data of dtype {self.dtype} to an array of dtype {array.dtype}"
            )
        if array is not self._data:
            self._data = array.copy()

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor; can be set on a leaf."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._check_leaf("set requires_grad")
        self._requires_grad = bool(value)

    def _check_leaf(self, what: str) -> None:
        if self._op is not None:
            raise RuntimeError(
                f"cannot {what} of the result of {self._op.name}; use .detach() first"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self._data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of entries."""
        return self._data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype, always a floating-point one."""
        return self._data.dtype

    def numpy(self) -> npt.NDArray[Any]:
        """Return the array itself, without a copy."""
        return self._data

    def item(self) -> float:
        """Return the only entry as a Python number."""
        value: float = self._data.item()
        return value

    def detach(self) -> Tensor:
        """Return a constant that shares this tensor's memory and stops the gradient."""
        return _tensor(self._data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self._data, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        notes = "" if self.dtype == np.float64 else f", dtype={self.dtype}"
        if self._op is not None:
            notes += f", op={self._op.name}"
        elif self._requires_grad:
            notes += ", requires_grad=True"
        return f"Tensor({np.array2string(self._data, separator=', ', prefix='Tensor(')}{notes})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:
        self._check_leaf("copy or pickle the graph")
        return _rebuild, (self._data, self._requires_grad, self.grad)

    # -- differentiation

    def backward(self, gradient: Operand | None = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf), weighted by ``gradient``, to the ``.grad`` of every leaf.

        Parameters
        ----------
        gradient
            The cotangent of this tensor, of exactly its shape; 1 for a single number.
        retain_graph
            Keep the graph, so that it can be walked again.

        Raises
        ------
        RuntimeError
            If this tensor needs no gradient, is no single number and ``gradient`` is
            missing, or its graph was released by an earlier call.
        ValueError
            If ``gradient`` has another shape.
        """
        engine.backward(self, _cotangent(self, gradient)._data, retain_graph)

    # -- operators

    def __add__(self, other: Operand) -> Tensor:
        return record(ops.add, self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return record(ops.add, other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return record(ops.sub, self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return record(ops.sub, other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return record(ops.mul, self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return record(ops.mul, other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return record(ops.div, self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return record(ops.div, other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return record(ops.pow, self, other)

    def __rpow__(self, other: Operand) -> Tensor:
        return record(ops.pow, other, self)

    def __matmul__(self, other: Operand) -> Tensor:
        return record(ops.matmul, self, other)

    def __rmatmul__(self, other: Operand) -> Tensor:
        return record(ops.matmul, other, self)

    def __neg__(self) -> Tensor:
        return record(ops.neg, self)

    def __abs__(self) -> Tensor:
        return record(ops.abs, self)

    def __lt__(self, other: Operand) -> npt.NDArray[np.bool_]:
        return np.asarray(self._data < _plain(other, (self,)))

    def __le__(self, other: Operand) -> npt.NDArray[np.bool_]:
        return np.asarray(self._data <= _plain(other, (self,)))

    def __gt__(self, other: Operand) -> npt.NDArray[np.bool_]:
        return np.asarray(self._data > _plain(other, (self,)))

    def __ge__(self, other: Operand) -> npt.NDArray[np.bool_]:
        return np.asarray(self._data >= _plain(other, (self,)))

    def __getitem__(self, index: Any) -> Tensor:
        return record(ops.getitem, self, index)

    # -- methods, as ndarray has them

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the sum over ``axis``: see :func:`minigrad.sum`."""
        return record(ops.sum, self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the mean over ``axis``: see :func:`minigrad.mean`."""
        return record(ops.mean, self, axis, keepdims)

    def var(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
        """Return the variance over ``axis``: see :func:`minigrad.var`."""
        return record(ops.var, self, axis, ddof, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the largest entry over ``axis``: see :func:`minigrad.max`."""
        return record(ops.max, self, axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the smallest entry over ``axis``: see :func:`minigrad.min`."""
        return record(ops.min, self, axis, keepdims)

    def clip(self, min: float | None = None, max: float | None = None) -> Tensor:
        """Return the entries limited to [min, max]: see :func:`minigrad.clip`."""
        return record(ops.clip, self, min, max)

    def reshape(self, *shape: Any) -> Tensor:
        """Return the entries in another shape, given as one tuple or as several lengths."""
        return record(ops.reshape, self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """Return the tensor with its axes permuted (one tuple or several ints), or reversed."""
        return record(ops.transpose, self, axes[0] if len(axes) == 1 else axes or None)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """Return the tensor with two axes exchanged."""
        return record(ops.swapaxes, self, axis1, axis2)

    def astype(self, dtype: npt.DTypeLike) -> Tensor:
        """Return the tensor in another float dtype."""
        return record(ops.astype, self, dtype)

    @property
    def T(self) -> Tensor:
        """The tensor with its axes reversed."""
        return record(ops.transpose, self)

    @property
    def mT(self) -> Tensor:
        """The tensor with its last two axes exchanged: the transposes of a stack of matrices."""
        return record(ops.swapaxes, self, -1, -2)


def _rebuild(data: npt.NDArray[Any], requires_grad: bool, grad: npt.NDArray[Any] | None) -> Tensor:
    tensor = Tensor(data, requires_grad)
    tensor.grad = grad
    return tensor


def _cotangent(y: Tensor, gradient: Operand | None) -> Tensor:
    """Return the checked cotangent of ``y`` to start a backward pass with."""
    if not y.requires_grad:
        raise RuntimeError("this result does not depend on any tensor that requires a gradient")
    if gradient is None:
        if y.size != 1:
            raise RuntimeError(
                f"a result of shape {y.shape} needs a gradient of that shape to go back"
            )
        gradient = np.ones(y.shape, y.dtype)
    if not isinstance(gradient, Tensor):
        gradient = Tensor(gradient)
    if gradient.shape != y.shape:
        raise ValueError(f"gradient has shape {gradient.shape}, but the result has {y.shape}")
    return gradient if gradient.dtype == y.dtype else gradient.astype(y.dtype)


@overload
def grad(
    y: Tensor, xs: Tensor, gradient: Operand | None = None, create_graph: bool = False
) -> Tensor: ...


@overload
def grad(
    y: Tensor, xs: Sequence[Tensor], gradient: Operand | None = None, create_graph: bool = False
) -> list[Tensor]: ...


def grad(
    y: Tensor,
    xs: Tensor | Sequence[Tensor],
    gradient: Operand | None = None,
    create_graph: bool = False,
) -> Tensor | list[Tensor]:
    """Return the gradient of ``y`` with respect to ``xs``; write none and keep the graph.

    Parameters
    ----------
    y
        The result to differentiate.
    xs
        A tensor or several, leaves or intermediates.
    gradient
        The cotangent of ``y``, of exactly its shape; 1 for a single number.
    create_graph
        Record the backward pass, so that the gradients can be differentiated again.

    Returns
    -------
    Tensor or list of Tensor
        One for one, a list for several.  If ``y`` does not depend on one of them, its gradient is
        zeros, which is what the derivative of a constant is.

    Raises
    ------
    RuntimeError
        As for :meth:`Tensor.backward`, and if one of ``xs`` requires no gradient.

    Examples
    --------
    >>> x = Tensor(2.0, requires_grad=True)
    >>> slope = grad(x**3, x, create_graph=True)
    >>> slope.item(), grad(slope, x).item()
    (12.0, 12.0)
    """
    wanted = [xs] if isinstance(xs, Tensor) else list(xs)
    for i, x in enumerate(wanted):
        if not x.requires_grad:
            raise RuntimeError(f"tensor {i} of xs, of shape {x.shape}, does not require a gradient")
    start = _cotangent(y, gradient)
    found = engine.gradients(y, start if create_graph else start._data, wanted, create_graph)
    results = [
        g if isinstance(g, Tensor) else Tensor(np.zeros(x.shape, x.dtype) if g is None else g)
        for x, g in ((x, found.get(x)) for x in wanted)
    ]
    return results[0] if isinstance(xs, Tensor) else results
