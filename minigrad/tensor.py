"""Tensors: arrays that remember how they were made.

All of the bookkeeping is in :func:`record`.  It applies an op to the arrays inside the arguments.  If
some argument needs a gradient, the result gets a node, from which :mod:`minigrad.engine` can walk back.
If none does, the result is a constant without memory, so a frozen layer leaves no trace.

There are no in-place operations and no writable views: a result is read-only, and ``x += y`` binds
x to a new Tensor.  Only leaves, the tensors that a user makes, can be assigned to.
"""

from __future__ import annotations

import contextvars
import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
from numpy import ndarray

from minigrad import engine, foreign, hints, ops
from minigrad.engine import Node, Outline, Source, next_birth
from minigrad.hints import keywords
from minigrad.operation import Op
from minigrad.ops import Axis
from minigrad.scopes import NOWHERE, Scope, here, quietly

Array: TypeAlias = npt.NDArray[Any]

Mask: TypeAlias = npt.NDArray[np.bool_]

Operand: TypeAlias = "Tensor | npt.ArrayLike"

T = TypeVar("T")

#: What every operation accepts as it is.
_NUMBERS = frozenset({int, float})

#: Parameters of these types cannot hold a Tensor.
_PLAIN = frozenset({int, float, bool, type(None), str, slice, ndarray})


class no_grad(Scope):
    """Record nothing inside ``with no_grad():``, or in a function decorated with ``@no_grad()``.

    It can be nested, and it ends on exceptions and interrupts.  It holds for the current thread only, and
    within that for the current asyncio task.  A new thread records, including those of
    ``asyncio.to_thread``.  A task that is started inside stays inside for as long as the block lasts.

    Raises
    ------
    TypeError
        As a decorator of a generator or coroutine function, whose body runs after the call has ended:
        write ``with no_grad():`` inside it.
    RuntimeError
        If one object is entered by two threads or tasks at a time.
    """


def is_grad_enabled() -> bool:
    """Whether results are recorded: true outside of :class:`no_grad`."""
    return not no_grad.in_force()


def record(op: Op[...], *args: Any) -> Tensor:
    """Apply ``op`` and return the result.

    The result has a node if recording is on and one of the arguments needs a gradient.  The node keeps
    what the way back needs.

    Numbers and NumPy scalars take the dtype of the tensors beside them.  Arrays are kept, not copied: do
    not write to one before the backward pass.  A forward that fails raises what NumPy raises (ValueError,
    IndexError, TypeError), with the op and the shapes in front.
    """
    inputs: list[Any] = []
    parents: list[Source | None] = []
    no_tensors, wanted, bit = True, 0, 1
    for a in args:
        if isinstance(a, Tensor):
            no_tensors = False
            inputs.append(a._data)
            if a._requires_grad:
                parents.append(a._node or a)
                wanted += bit
            else:
                parents.append(None)
        else:
            as_it_is = type(a) in _NUMBERS or len(inputs) >= op.arrays
            inputs.append(a if as_it_is else _operand(op, len(inputs), args))
            parents.append(None)
        bit += bit
    if no_tensors:
        inputs = _without_tensors(op, inputs)
    if len(args) > op.ruled and not _PLAIN.issuperset(map(type, args[op.ruled :])):
        _refuse_tensors(op, args)

    place = here.get()
    try:
        y = place.quietly(op.forward, *inputs)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise _explained(error, op, inputs) from error
    if type(y) is not ndarray or y.dtype.kind != "f":
        y = _result(op, y)
    y.setflags(False)  # read-only

    if wanted and (place is NOWHERE or not no_grad.in_force()):
        return tensor_of(y, Node(op, y, inputs, parents, bit + wanted))  # a key of its plans
    return tensor_of(y)


def tensor_of(data: Array, node: Node | None = None) -> Tensor:
    """Return a Tensor that holds ``data`` itself: the result of a node, or a constant."""
    tensor = object.__new__(Tensor)
    tensor._data = data
    tensor._node = node
    tensor._requires_grad = node is not None
    tensor._birth = 0
    tensor.grad = None
    return tensor


Op.apply = record


# ----------------------------------------------------------------------------- what an op accepts


def _operand(op: Op[...], i: int, args: Sequence[Any]) -> Any:
    """Return what the forward is given for ``args[i]``, which is no Tensor and no Python number.

    A NumPy scalar or 0-d array becomes a Python number, because NumPy gives that the dtype of its
    neighbours (NEP 50); arrays of integers are given it here.
    """
    a = args[i]
    if (type(a) is ndarray and a.ndim and a.dtype.kind == "f") or not op.has_rule(i):
        return a
    array = as_reals(a)
    if not array.ndim:
        return array.item()
    return array if array.dtype.kind == "f" else _cast(array, _float_dtype(args))


def _without_tensors(op: Op[...], inputs: list[Any]) -> list[Any]:
    """Return the inputs of an op without Tensors; numbers become float64 if there is no array, either."""
    for i, a in enumerate(inputs):
        if isinstance(a, ndarray) and op.has_rule(i):
            return inputs
    return [np.asarray(a, np.float64) if op.has_rule(i) else a for i, a in enumerate(inputs)]


def _refuse_tensors(op: Op[...], args: Sequence[Any]) -> None:
    """Raise TypeError for a Tensor where the op has no rule: its gradient would be lost silently."""
    for i in range(op.ruled, len(args)):
        a = args[i]
        if isinstance(a, (Tensor, list, tuple)) and not op.has_rule(i) and _holds_tensor(a):
            raise TypeError(
                f"{op.name} has no derivative by its argument {i}, and a Tensor would lose its "
                "gradient there: pass an array"
            )


def _result(op: Op[...], y: Any) -> Array:
    """Return the result of a forward as an array; TypeError unless it holds floating-point numbers."""
    if isinstance(y, (float, np.floating)):
        return np.asarray(y)
    known = isinstance(y, (np.generic, ndarray, Tensor))
    if not known or np.asarray(y).dtype.kind != "f":
        what = f"an array of {y.dtype}" if isinstance(y, ndarray) else f"a {type(y).__name__}"
        raise TypeError(f"{op.name} returned {what}, not an array of floating-point numbers")
    return np.asarray(y)


def _explained(error: Exception, op: Op[...], inputs: list[Any]) -> Exception:
    """Return the error of a forward with the op and the shapes of its arrays in front."""
    shapes = ", ".join(str(a.shape) for a in inputs if isinstance(a, ndarray))
    of_shapes = f" of shapes {shapes}" if shapes else ""
    # not all of NumPy's TypeErrors can be made from a message alone
    kind = TypeError if isinstance(error, TypeError) else type(error)
    return kind(f"{op.name}{of_shapes}: {error}")


def as_array(a: Any, name: str = "") -> Array:
    """Return ``a`` as an array.

    Raises
    ------
    ValueError
        With its name, for lists in a list that differ in length.
    TypeError
        With its name, for a tensor of PyTorch in bfloat16.
    """
    called = f"{name}: " if name else ""
    try:
        return np.asarray(a)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        words = "lists in a list, such as the texts of a batch, must be equally long"
        raise ValueError(f"{called}{words}") from error
    except TypeError as error:
        if "BFloat16" not in str(error):
            raise
        words = "NumPy has no bfloat16: give float32, as by .float() in PyTorch"
        raise TypeError(f"{called}{words}") from error


def as_reals(a: Any) -> Array:
    """Return ``a`` as an array of real numbers.

    Raises
    ------
    TypeError
        For anything else, for a list with Tensors in it, which would lose their gradients, and for masked
        arrays and ``np.matrix``.
    ValueError
        As :func:`as_array`.
    """
    if _holds_tensor(a) and not isinstance(a, Tensor):
        raise TypeError("a list of Tensors would lose their gradients: use stack or concatenate")
    if isinstance(a, np.matrix) or (isinstance(a, ndarray) and hasattr(a, "mask")):
        raise TypeError(
            f"expected an array, got a {type(a).__name__}, whose mask or * would be lost"
        )
    array = as_array(a)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"expected real numbers, got {type(a).__name__} of dtype {array.dtype}: {a!r}"
        )
    return array


def _holds_tensor(a: Any) -> bool:
    """Whether ``a`` is a Tensor or a sequence with one inside."""
    if isinstance(a, Sequence) and not isinstance(a, (str, bytes, range, memoryview)):
        return any(map(_holds_tensor, a))
    return isinstance(a, Tensor)


def _cast(array: Array, dtype: npt.DTypeLike) -> Array:
    """Return ``array`` in another dtype; what is too large becomes infinity without a warning."""
    return array if array.dtype == dtype else quietly(array.astype, dtype)


def _float_dtype(args: Sequence[Any]) -> np.dtype[Any]:
    """Return the float dtype that NumPy gives the Tensors and arrays in ``args`` together, or float64."""
    arrays = [a for a in args if isinstance(a, (Tensor, ndarray)) and a.dtype.kind == "f"]
    dtypes = [a.dtype for a in arrays if isinstance(a, Tensor) or a.ndim]
    return np.result_type(*dtypes) if dtypes else np.dtype(np.float64)


def as_tensors(operands: Sequence[Operand]) -> list[Tensor]:
    """Return all as Tensors; numbers and arrays of integers take the dtype of the others."""
    if all(isinstance(a, Tensor) for a in operands):
        return list(cast(Sequence[Tensor], operands))
    dtype = _float_dtype(operands)

    def converted(a: Any) -> Array:
        array = as_reals(a)
        return array if array.ndim and array.dtype.kind == "f" else _cast(array, dtype)

    return [a if isinstance(a, Tensor) else tensor_of(converted(a)) for a in operands]


def _compared(compare: np.ufunc, *pair: Any) -> Mask:
    """Return what ``compare`` says of two operands, entry by entry."""

    def plain(i: int) -> Any:
        x = pair[i]
        if isinstance(x, Tensor):
            return x._data
        return x if type(x) in _NUMBERS else _operand(ops.sub, i, pair)

    return np.asarray(quietly(compare, plain(0), plain(1)))


def _is_comparable(a: object) -> bool:
    """Whether ``a`` holds numbers; == and != can be asked of any object."""
    numbers = isinstance(a, (Number, Sequence)) and not isinstance(a, (str, bytes))
    return numbers or (hasattr(a, "__array__") and not isinstance(a, Outline))


class Tensor:
    """An array of floating-point numbers.  Results can be differentiated with respect to it.

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

    Notes
    -----
    All comparisons, ``==`` among them, go entry by entry and give arrays of bools.  A Tensor hashes by
    identity, so it can be a key of a dict or a member of a set.  Look for one in a list with ``is``,
    because
    ``tensor in [a, b]`` asks ``tensor == a`` and gets an array.  In a test,
    ``np.testing.assert_array_equal`` compares Tensors; ``assert_equal`` cannot.

    Operators take arrays and Tensors side by side.  NumPy's functions know no gradients, so they refuse a
    Tensor and name the function of minigrad to use.  Those that only ask about values, such as
    ``np.argmax`` and ``np.allclose``, answer.  ``float(x)`` and ``math.exp(x)`` warn if ``x`` needs a
    gradient; ``x.item()`` does not.

    Code that asks a Tensor for its array gets the array, and the gradient silently ends there.  This
    happens in ``np.asarray(x)``, ``np.array([x, y])``, ``np.mean([x, y])``, ``array[:] = x``,
    ``array.dot(x)``, ``np.full(3, x)``, ``np.r_[x, y]``, ``np.vectorize(f)(x)`` and with masked arrays.

    Examples
    --------
    >>> x = Tensor([3.0, 4.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([6., 8.])
    """

    __slots__ = (
        "__weakref__",
        "_birth",  # serial number of a leaf: see engine.py
        "_data",
        "_node",  # how it was made; None for a leaf or a constant
        "_requires_grad",
        "grad",
    )

    _node: Node | None

    def __init__(self, data: npt.ArrayLike | Tensor, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data._warn_that_the_gradient_ends("Tensor(x) is a new tensor", "x, or x.detach()")
        array = as_reals(data)
        if array.dtype.kind != "f" and requires_grad:
            raise TypeError(
                f"only floating-point tensors can require a gradient, got {array.dtype}: give floats, "
                "such as 1.0 or a.astype(float)"
            )
        self._data = np.array(array, dtype=array.dtype if array.dtype.kind == "f" else np.float64)
        self._requires_grad = bool(requires_grad)
        self._birth = next_birth()
        self._node = None
        self.grad: Array | None = None

    # -- what it holds

    @property
    def data(self) -> Array:
        """The array itself: writable for a leaf, read-only for a result.

        Assigning to a leaf sets a copy of the value, which must have the same shape and dtype (else
        ValueError or TypeError).  A graph that was recorded before keeps the old value.  Writing *into*
        the array, as in ``x.data -= 1``, changes that graph as well: do so only when it is no longer
        needed.
        """
        return self._data

    @data.setter
    def data(self, value: npt.ArrayLike) -> None:
        array = as_array(value)
        self.assign(array if array is self._data else np.array(array))

    def assign(self, array: Array) -> None:
        """Set a leaf to ``array`` itself, without a copy; do not write to the array afterwards.

        For optimizers, which make a new array in each step.

        Raises
        ------
        RuntimeError
            For the result of an operation.
        ValueError, TypeError
            For another shape or dtype than the leaf has.
        """
        self._check_leaf("assign to .data")
        array = np.asarray(array)
        if array.shape != self.shape:
            raise ValueError(
                f"cannot set data of shape {self.shape} to an array of shape {array.shape}"
            )
        if array.dtype != self.dtype:
            raise TypeError(
                f"cannot set data of dtype {self.dtype} to an array of dtype {array.dtype}"
            )
        self._data = array

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor; can be set on a leaf."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._check_leaf("set requires_grad")
        if value and not self._birth:  # it has been a constant up to now
            self._birth = next_birth()
        self._requires_grad = bool(value)

    def _check_leaf(self, what: str) -> None:
        if self._node is not None:
            raise RuntimeError(
                f"cannot {what} of the result of {self._node.op.name}; use .detach() first"
            )

    # -- how it was made

    @property
    def op(self) -> Op[...] | None:
        """The operation that this is the result of; None for a leaf or a constant."""
        return self._node.op if self._node else None

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the forward of :attr:`op` was given; nothing once a backward pass has released it.

        An array that the backward pass does not need is represented by its shape and dtype.
        """
        return tuple(self._node.inputs or ()) if self._node else ()

    @property
    def parents(self) -> tuple[Source | None, ...]:
        """For each input the leaf or the node whose value it is, or None where no gradient flows."""
        return tuple(self._node.parents or ()) if self._node else ()

    # -- its looks

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

    def numpy(self) -> Array:
        """Return the array itself, without a copy."""
        return self._data

    #: The name by which matplotlib and pandas ask for it.
    to_numpy = numpy

    def tolist(self) -> Any:
        """Return the entries as Python numbers in nested lists; a number itself for no axes."""
        return self._data.tolist()

    def numel(self) -> int:
        """Return the number of entries, as :attr:`size` does; the name is PyTorch's."""
        return self._data.size

    @keywords
    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Return the index of the largest entry along ``axis``, by default in the flat array.

        Among equals it is the first.  Indices are integers, so they have no gradient.
        """
        return np.argmax(self._data, axis, keepdims=keepdims)

    def item(self) -> float:
        """Return the only entry as a Python number."""
        return float(self._data.item())

    def detach(self) -> Tensor:
        """Return a constant that shares this tensor's memory and stops the gradient."""
        return tensor_of(self._data)

    # generic, and not Any: type checkers would take ``ndarray + Tensor`` for a sum of two arrays
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        return np.array(self._data, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **params: Any) -> Any:
        """Do what NumPy asks in place of ``ufunc`` (NEP 13); ``ndarray + Tensor`` arrives here."""
        if method == "__call__" and not params:
            if ufunc in foreign.OPERATIONS:
                return record(foreign.OPERATIONS[ufunc], *inputs)
            if ufunc in foreign.COMPARISONS:
                return _compared(ufunc, *inputs)
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        if ufunc in foreign.WITHOUT_GRADIENT or _loses_nothing(name, (inputs, params)):
            return getattr(ufunc, method)(*_plain(inputs), **_plain(params))
        raise foreign.refusal(name, " (and x = x + y instead of x += y)" if "out" in params else "")

    def __array_function__(self, function: Any, types: Any, args: Any, params: Any) -> Any:
        """Do what NumPy asks in place of ``function``, which was given a Tensor (NEP 18)."""
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if function in foreign.WITHOUT_GRADIENT or _loses_nothing(name, (args, params)):
            return function(*_plain(args), **_plain(params))
        raise foreign.refusal(name)

    def __repr__(self) -> str:
        notes = f", shape={self.shape}" if self.size == 0 and self.ndim > 1 else ""
        notes += "" if self.dtype == np.float64 else f", dtype={self.dtype}"
        notes += "" if self.op is None else f", op={self.op.name}"
        notes += ", requires_grad=True" if self._requires_grad else ""
        return f"Tensor({np.array2string(self._data, separator=', ', prefix='Tensor(')}{notes})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __float__(self) -> float:
        number = self.item()
        self._warn_that_the_gradient_ends(
            "float(x) is a Python number",
            "minigrad's functions (mg.exp, not math.exp), or x.item() if the number is all you need",
        )
        return number

    def _warn_that_the_gradient_ends(self, where: str, instead: str) -> None:
        if self._requires_grad and is_grad_enabled():
            warnings.warn(f"{where}, and the gradient ends there: use {instead}", stacklevel=3)

    def __bool__(self) -> bool:
        return bool(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return value in self._data

    def __copy__(self) -> Tensor:
        return copy.deepcopy(self)

    def __reduce__(self) -> Any:
        self._check_leaf("copy or pickle the graph")
        writeable = self._data.flags.writeable
        return _rebuild, (type(self), self._data, writeable, self._requires_grad, self.grad)

    if not TYPE_CHECKING:  # a type checker would take it to mean that every attribute exists

        def __getattr__(self, name: str) -> Any:
            """Raise AttributeError; for names of other libraries, say what they are called here."""
            return hints.missing(self, name, hints.of_tensor)

    # -- differentiation

    def backward(self, gradient: Operand | None = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf), weighted by ``gradient``, to the ``.grad`` of every leaf.

        An error or an interrupt leaves the ``.grad`` of all leaves as they were, or adds to all of them.

        Threads may share leaves and use :func:`grad`, which writes nothing.  If two threads add to the
        ``.grad`` of one leaf at the same time, a gradient may be lost.

        Parameters
        ----------
        gradient
            The cotangent of this tensor, of exactly its shape; 1 for a single number.
        retain_graph
            Keep the graph, so that it can be walked again.

        Raises
        ------
        RuntimeError
            If this tensor needs no gradient, if ``gradient`` is missing and this is not a single number,
            or if an earlier call has released the graph.
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

    def __iadd__(self, other: Operand) -> Tensor:
        return self._rebound(ops.add, "+", other)

    def __isub__(self, other: Operand) -> Tensor:
        return self._rebound(ops.sub, "-", other)

    def __imul__(self, other: Operand) -> Tensor:
        return self._rebound(ops.mul, "*", other)

    def __itruediv__(self, other: Operand) -> Tensor:
        return self._rebound(ops.div, "/", other)

    def __ipow__(self, other: Operand) -> Tensor:
        return self._rebound(ops.pow, "**", other)

    def __imatmul__(self, other: Operand) -> Tensor:
        return self._rebound(ops.matmul, "@", other)

    def _rebound(self, op: Op[...], sign: str, other: Operand) -> Tensor:
        """Return what ``x += y`` binds x to: a new result, as in ``x = x + y``."""
        if not is_grad_enabled() and self._requires_grad and self._node is None:
            warnings.warn(
                f"x {sign}= y binds the name x to a new tensor, and leaves the leaf as it is: to train "
                f"it, set x.data = x.data {sign} y; else write x = x {sign} y",
                stacklevel=3,
            )
        return record(op, self, other)

    def __pos__(self) -> Tensor:
        return self

    def __neg__(self) -> Tensor:
        return record(ops.neg, self)

    def __abs__(self) -> Tensor:
        return record(ops.abs, self)

    def __lt__(self, other: Operand) -> Mask:
        return _compared(np.less, self, other)

    def __le__(self, other: Operand) -> Mask:
        return _compared(np.less_equal, self, other)

    def __gt__(self, other: Operand) -> Mask:
        return _compared(np.greater, self, other)

    def __ge__(self, other: Operand) -> Mask:
        return _compared(np.greater_equal, self, other)

    def __eq__(self, other: object) -> Any:  # None equals no Tensor
        return _compared(np.equal, self, other) if _is_comparable(other) else NotImplemented

    def __ne__(self, other: object) -> Any:
        return _compared(np.not_equal, self, other) if _is_comparable(other) else NotImplemented

    if TYPE_CHECKING:  # type checkers want it declared

        def __hash__(self) -> int: ...
    else:
        __hash__ = object.__hash__  # a Tensor is itself as a key, whatever its entries

    def __getitem__(self, index: Any) -> Tensor:
        return record(ops.getitem, self, index)

    # -- methods, as ndarray has them

    @keywords
    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the sum over ``axis``: see :func:`minigrad.sum`."""
        return record(ops.sum, self, axis, keepdims)

    @keywords
    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the mean over ``axis``: see :func:`minigrad.mean`."""
        return record(ops.mean, self, axis, keepdims)

    @keywords
    def var(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
        """Return the variance over ``axis``: see :func:`minigrad.var`.

        Without ``ddof`` the sum of squares is divided by n, as in NumPy; PyTorch divides by n − 1.
        """
        return record(ops.var, self, axis, ddof, keepdims)

    @keywords
    def std(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
        """Return the standard deviation over ``axis``: see :func:`minigrad.std`."""
        from minigrad import functional  # which needs this file

        return functional.std(self, axis, ddof, keepdims)

    @keywords
    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the largest entry over ``axis``: see :func:`minigrad.max`.

        As in NumPy, these are the values alone.  PyTorch also gives their places: see :meth:`argmax`.
        """
        return record(ops.max, self, axis, keepdims)

    @keywords
    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the smallest entry over ``axis``: see :func:`minigrad.min`."""
        return record(ops.min, self, axis, keepdims)

    def clip(self, min: npt.ArrayLike | None = None, max: npt.ArrayLike | None = None) -> Tensor:
        """Return the entries limited to [min, max]: see :func:`minigrad.clip`."""
        return record(ops.clip, self, min, max)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """Return the entries in another shape, given as one tuple or as several lengths."""
        return record(ops.reshape, self, shape[0] if len(shape) == 1 else shape)

    def flatten(self, start_dim: int = 0) -> Tensor:
        """Return the entries with all axes from ``start_dim`` on in one: see :func:`minigrad.flatten`."""
        from minigrad import functional

        return functional.flatten(self, start_dim)

    @keywords
    def squeeze(self, axis: Axis = None) -> Tensor:
        """Return the tensor without axes of length 1: see :func:`minigrad.squeeze`."""
        from minigrad import functional

        return functional.squeeze(self, axis)

    def transpose(self, *axes: int | Sequence[int] | None) -> Tensor:
        """Return the tensor with its axes permuted (one tuple or several ints), or reversed.

        As in NumPy, the axes are named in their new order, so ``x.transpose(0, 1)`` leaves a matrix as it
        is.  PyTorch's ``x.transpose(0, 1)``, which exchanges two axes, is ``x.swapaxes(0, 1)`` here.
        """
        return record(ops.transpose, self, axes[0] if len(axes) == 1 else axes or None)

    @keywords
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


Op.tensor = Tensor

sys.modules[__name__].__class__ = hints.NotAFunction


def _loses_nothing(name: str, given: Any) -> bool:
    """Whether NumPy may run a function: minigrad has none of that name, and no gradient would be lost."""
    return hints.own_name(name) is None and not (is_grad_enabled() and _needs_gradient(given))


def _needs_gradient(a: Any) -> bool:
    """Whether ``a`` is a Tensor that requires a gradient, or has one inside."""
    if isinstance(a, (list, tuple, dict)):
        return any(map(_needs_gradient, a.values() if isinstance(a, dict) else a))
    return isinstance(a, Tensor) and a._requires_grad


def _plain(a: Any) -> Any:
    """Return ``a`` with arrays in place of Tensors, also inside lists, tuples and dicts."""
    if isinstance(a, dict):
        return {name: _plain(value) for name, value in a.items()}
    if isinstance(a, (list, tuple)):
        items = map(_plain, a)
        return type(a)(*items) if hasattr(a, "_fields") else type(a)(items)
    return a._data if isinstance(a, Tensor) else a


def _rebuild(
    cls: type[Tensor], data: Array, writeable: bool, requires_grad: bool, grad: Array | None
) -> Tensor:
    tensor = object.__new__(cls)
    Tensor.__init__(tensor, (), requires_grad)
    # a read-only array is not copied, so tensors that share it still do so in a deep copy or a pickle
    tensor._data = np.array(data) if writeable else data
    tensor._data.setflags(write=writeable)
    tensor.grad = grad
    return tensor


def _cotangent(y: Tensor, gradient: Operand | None) -> Tensor:
    """Return the checked cotangent of ``y`` to start a backward pass with."""
    if not isinstance(y, Tensor):
        raise TypeError(f"expected a Tensor to differentiate, not a {hints.kind(y)}")
    if not y.requires_grad:
        raise RuntimeError("this result does not depend on any tensor that requires a gradient")
    if gradient is None:
        if y.size != 1:
            raise RuntimeError(
                f"a result of shape {y.shape} needs a gradient of that shape to go back; or take its "
                "sum() or mean() first"
            )
        return tensor_of(np.ones(y.shape, y.dtype))
    if not isinstance(gradient, Tensor):
        gradient = Tensor(gradient)
        gradient._data.setflags(write=False)  # a rule that writes to it fails, and spoils nothing
    if gradient.shape != y.shape:
        raise ValueError(f"gradient has shape {gradient.shape}, but the result has {y.shape}")
    return gradient if gradient.dtype == y.dtype else gradient.astype(y.dtype)


def _recorded(walk: Callable[..., T], *args: Any) -> T:
    """Return ``walk(*args)``, recorded even within ``no_grad``: the caller asked for the graph."""
    context = contextvars.copy_context()  # leaving no_grad in a copy changes nothing here
    for scope in no_grad.in_force():
        context.run(scope.leave)
    return context.run(walk, *args)


def _as_tensors(node: Node) -> tuple[Any, list[Any]]:
    """Return what a node has kept, its result and its inputs, as Tensors where a gradient flows.

    Raises
    ------
    RuntimeError
        If one of them is a leaf that has been assigned another value since.
    """
    known = []
    for x, parent in zip(node.inputs, node.parents):
        if parent is None or type(x) is not ndarray:
            known.append(x)
        elif isinstance(parent, Node):
            known.append(tensor_of(x, parent))
        elif parent._data is x:
            known.append(parent)
        else:
            raise RuntimeError(
                f"a leaf of shape {parent.shape} was assigned to after it was used: the graph of "
                "its gradient would mix the old and the new value"
            )
    return None if node.y is None else tensor_of(node.y, node), known


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
    """Return the gradient of ``y`` with respect to ``xs``; write no ``.grad`` and keep the graph.

    Parameters
    ----------
    y
        The result to differentiate.
    xs
        A tensor or several, leaves or intermediates.
    gradient
        The cotangent of ``y``, of exactly its shape; 1 for a single number.
    create_graph
        Record the backward pass, so that the gradients can be differentiated again.  Not possible
        after a leaf of the graph was assigned to.

    Returns
    -------
    Tensor or list of Tensor
        A Tensor for one, a list for several.  If ``y`` does not depend on one of them, its gradient is
        zero, the derivative of a constant.

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
        if not isinstance(x, Tensor):
            raise TypeError(f"gradients are taken with respect to Tensors, not a {hints.kind(x)}")
        if not x.requires_grad:
            raise RuntimeError(f"tensor {i} of xs, of shape {x.shape}, does not require a gradient")
    start = _cotangent(y, gradient)
    if create_graph:
        found = _recorded(engine.gradients, y, start, wanted, _as_tensors)
    else:
        found = engine.gradients(y, start._data, wanted, None)
    results = [
        g if isinstance(g, Tensor) else Tensor(np.zeros(x.shape, x.dtype) if g is None else g)
        for x, g in zip(wanted, found)
    ]
    return results[0] if isinstance(xs, Tensor) else results
