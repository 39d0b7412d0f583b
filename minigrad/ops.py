r"""The operations, each with its derivative derived beside it.

An operation is a function y = f(a, b, …) of arrays.  Reverse-mode differentiation needs one thing
from it: given the *cotangent* g = ȳ = ∂L/∂y of some scalar L further on, the cotangents ā, b̄, … of
its arguments.  The recipe is always the same three lines:

1. take the differential             dy  =  f_a(da) + f_b(db)
2. move it across the inner product  ⟨ȳ, dy⟩ = ⟨ȳ, f_a(da)⟩ + … = ⟨f_aᵀ(ȳ), da⟩ + …
3. read off                          ā  =  f_aᵀ(ȳ)          (a vector-Jacobian product, VJP)

Here ⟨u, v⟩ = Σ u∘v is the sum of elementwise products, f_a is a linear map, and f_aᵀ is the map for which
⟨u, f_a(v)⟩ = ⟨f_aᵀ(u), v⟩.  So ⟨ȳ, dy⟩ is dL, the change of L that dy causes.  Written as
⟨ā, da⟩ + ⟨b̄, db⟩ + …, it shows ∂L/∂a beside da.

Take y = a∘b, the elementwise product.  Its differential is dy = da∘b + a∘db.  The inner product with ȳ is
Σ ȳ∘da∘b + Σ ȳ∘a∘db = ⟨ȳ∘b, da⟩ + ⟨ȳ∘a, db⟩.  Hence ā = ȳ∘b and b̄ = ȳ∘a.  (So f_a is da ↦ da∘b here.  As
a matrix it is the Jacobian, and ā is the row vector ȳ times this matrix, hence the name VJP.  The matrix
itself is never formed.)

An op is one block: a forward on plain arrays, decorated with one rule per argument.  This is ``mul``::

    @op(
        lambda g, _y, _a, b: g * b,  # d(a∘b) = da∘b + a∘db   ⟹   ā = ȳ∘b
        lambda g, _y, a, _b: g * a,  #                            b̄ = ȳ∘a
    )
    def mul(a, b):
        return a * b

A rule is called as ``rule(g, y, *arguments)``: the cotangent g = ȳ, the result, and what the forward was
given.  It returns the cotangent of its own argument only, so the rule of a frozen argument is simply
never called.  An underscore in front of a name says that the rule does not read those numbers.  Then only
their shape and dtype are kept for the way back.

Two conventions keep the rules short:

- A rule need not undo broadcasting, by which NumPy repeats a smaller array to fit a larger one.  It may
  return a cotangent of the larger shape, and the engine sums it back to that of the argument.
- On g, y and the arguments, a rule uses what arrays and Tensors have in common: operators, methods, and
  the ops of this file.  ``exp(y)`` is always a Tensor.  ``exp.of(y)`` is an array if y is one, which is
  faster.  Fed with arrays, a rule computes a gradient.  Fed with Tensors, it also records how, so the
  gradient can be differentiated again.

At a kink the derivative is the one that PyTorch chooses.  Where several entries share the largest or
smallest value over an axis, they share the gradient, as in ``torch.amax``.

A function with an underscore in front helps the op below it.  Most of them choose a faster way to the
same numbers.  On a first reading, trust their docstrings and go on.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, overload

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from minigrad import adding, products, sums, taylor
from minigrad.operation import Array as Array
from minigrad.operation import Each, Rule
from minigrad.operation import Op as Op
from minigrad.sums import extreme, total
from minigrad.sums import like as like
from minigrad.sums import wide as wide

if TYPE_CHECKING:
    from minigrad.tensor import Operand

P = ParamSpec("P")

Axis: TypeAlias = int | Sequence[int] | None

#: Every operation by name.  The tests walk over this table.
OPS: dict[str, Op[...]] = {}


# four forms for type checkers; the decorator itself is below


@overload
def op(
    a: Rule, b: None = None, /, *more: Rule | None, each: Each = None
) -> Callable[[Callable[Concatenate[Any, P], Array]], Op[Concatenate[Operand, P]]]: ...


@overload
def op(
    a: Rule, b: Rule, /, *more: Rule | None, each: Each = None
) -> Callable[
    [Callable[Concatenate[Any, Any, P], Array]], Op[Concatenate[Operand, Operand, P]]
]: ...


@overload
def op(
    a: None, /, *more: Rule | None, each: Each = None
) -> Callable[[Callable[P, Array]], Op[P]]: ...


@overload
def op(*, each: Each) -> Callable[[Callable[P, Array]], Op[P]]: ...


def op(*vjps: Rule | None, each: Each = None) -> Callable[[Callable[..., Array]], Op[...]]:
    """Make the decorated forward an :class:`Op` with the given rules and enter it in :data:`OPS`.

    The derivative of arctan is 1/(1 + a²), so this is all of it, for derivatives of every order::

        @mg.op(lambda g, _y, a: g / (1 + a * a))
        def arctan(a):
            return np.arctan(a)

    There is one rule for each array.  A rule takes the gradient g of the result y, then y, then the
    arguments.  It returns the gradient of its own argument, in the shape of that argument or of y.
    ``mg.gradcheck(arctan, np.array([0.5, 2.0]))`` tells whether it is right.

    A parameter with an underscore in front is not read.  Such a result or constant is not kept for the
    way back.  The rule is given its outline instead, which has ``shape``, ``dtype``, ``ndim`` and
    ``size``.  (In place of y it is given None, since g has the shape of y.)

    The forward takes and returns plain arrays and calls only NumPy.  It must not write to its arguments
    or return one of them, because results are read-only.  A rule must not write to what it is given.  It
    must not return an array that is kept elsewhere, except g or a view of it, because what it returns may
    become the gradient of a leaf.

    For type checkers, the first array may be a Tensor, an array or a number, given by position, whatever
    the forward declares; so may the second, if both have a rule.  Everything else is as the forward
    declares it: annotate a third array, or an optional one, as ``Array``.

    An op of any number of arrays, such as ``concatenate``, has ``each``, which makes a rule for each.

    An op whose name begins with an underscore is not among the package's public names.  It is in OPS,
    without the underscore.
    """

    def register(forward: Callable[..., Array]) -> Op[...]:
        if not callable(forward):
            raise TypeError(
                f"an operation is made of a function, not of a {type(forward).__name__}: above the "
                "function write @mg.op(rule), with a rule for each array"
            )
        new = Op(forward, vjps, each)
        OPS[new.name] = new
        return new

    return register


# ----------------------------------------------------------------------------- arithmetic


@op(
    lambda g, _y, _a, _b: g,  # d(a + b) = da + db   ⟹   ā = ȳ
    lambda g, _y, _a, _b: g,  #                          b̄ = ȳ
)
def add(a: Array, b: Array) -> Array:
    """Return a + b, elementwise with broadcasting."""
    return a + b


@op(
    lambda g, _y, _a, _b: g,  # d(a − b) = da − db   ⟹   ā = ȳ
    lambda g, _y, _a, _b: -g,  #                         b̄ = −ȳ
)
def sub(a: Array, b: Array) -> Array:
    """Return a − b, elementwise with broadcasting."""
    return a - b


@op(
    lambda g, _y, _a, b: g * b,  # d(a∘b) = da∘b + a∘db   ⟹   ā = ȳ∘b
    lambda g, _y, a, _b: g * a,  #                            b̄ = ȳ∘a
)
def mul(a: Array, b: Array) -> Array:
    """Return a∘b, elementwise with broadcasting."""
    return a * b


@op(
    lambda g, _y, _a, b: g / b,  # d(a/b) = da/b − (a/b) db/b   ⟹   ā = ȳ/b
    lambda g, y, _a, b: -g * y / b,  #                             b̄ = −ȳ∘y/b
)
def div(a: Array, b: Array) -> Array:
    """Return a/b, elementwise with broadcasting; at b = 0 this is ±inf or NaN, as in IEEE 754."""
    return a / b


@op(lambda g, _y, _a: -g)  # d(−a) = −da   ⟹   ā = −ȳ
def neg(a: Array) -> Array:
    """Return −a."""
    return -a


# ----------------------------------------------------------------------------- matrix product

# Y = A B,  dY = dA B + A dB.  With ⟨U, V⟩ = tr(Uᵀ V), the sum of the diagonal of Uᵀ V:
#
#     ⟨Ȳ, dA B⟩ = tr(Ȳᵀ dA B) = tr(B Ȳᵀ dA) = ⟨Ȳ Bᵀ, dA⟩    ⟹   Ā = Ȳ Bᵀ
#     ⟨Ȳ, A dB⟩ = tr(Ȳᵀ A dB) = ⟨Aᵀ Ȳ, dB⟩                  ⟹   B̄ = Aᵀ Ȳ
#
# (In the code, a.mT is the transpose.)  The products in a stack are independent, and so are their
# cotangents.  A matrix that was broadcast along the stack gets the sum of its cotangents.  As in NumPy, a
# 1-D operand counts as one row on the left and as one column on the right.  For a column b, Ȳ Bᵀ has the
# entries ȳᵢbⱼ.


def _as_rows(a: Array) -> Array:
    """View (…, n) as a matrix of rows (N, n)."""
    return a if a.ndim == 2 else a.reshape((math.prod(a.shape[:-1]), a.shape[-1]))


def _product(a: Array, b: Array) -> Array:
    """Return a @ b.

    NumPy multiplies a stack matrix by matrix.  If b is one matrix or vector, all rows of the stack can be
    multiplied at once, which is faster.
    """
    n, m = getattr(a, "ndim", 0), getattr(b, "ndim", 0)  # a number has none; it is refused below
    if n > 2 and 0 < m < 3:
        return _product(_as_rows(a), b).reshape((*a.shape[:-1], *b.shape[1:]))
    known = n == m == 2 and isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return products.product(a, b) if known else a @ b


def _over_rows(a: Array, g: Array) -> Array:
    """Return AᵀG, which is a sum over the rows of both."""
    known = isinstance(a, np.ndarray) and isinstance(g, np.ndarray)
    return products.product_over_rows(a, g) if known else a.mT @ g


def _left_vjp(g: Array, a: Array, b: Array) -> Array:
    """Return Ȳ Bᵀ, the cotangent of a in a @ b."""
    if b.ndim == 1:
        return g[..., None] * b
    return _product(g[..., None, :] if a.ndim == 1 else g, b.mT)


def _right_vjp(g: Array, a: Array, b: Array) -> Array:
    """Return Aᵀ Ȳ, the cotangent of b in a @ b; if a stack shares one b, the sum over all rows."""
    if b.ndim < 3:
        rows = _as_rows(a)
        columns = 1 if b.ndim == 1 else b.shape[1]
        return _over_rows(rows, g.reshape((rows.shape[0], columns))).reshape(b.shape)
    return a[:, None] * g[..., None, :] if a.ndim == 1 else a.mT @ g


# here _a is only an outline: the rule reads its shape
@op(lambda g, _y, _a, b: _left_vjp(g, _a, b), lambda g, _y, a, _b: _right_vjp(g, a, _b))
def matmul(a: Array, b: Array) -> Array:
    """Return a @ b in all of NumPy's shapes: (…, n, k) @ (…, k, m) → (…, n, m), or 1-D operands.

    >>> from minigrad import Tensor, grad
    >>> A, b = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True), Tensor([5.0, 6.0])
    >>> grad(A @ b, A, gradient=[1.0, 10.0])  # ȳ bᵀ
    Tensor([[ 5.,  6.],
            [50., 60.]])
    """
    return _product(a, b)


#: The bytes of a page of memory, for :func:`_times`.
_PAGE = 4096

#: The rows up to which :func:`_times` exchanges its factors.
_FEW = 128


def _times(x: Array, w: Array) -> Array:
    """Return x wᵀ for x (…, in).

    If x has few rows and w at least twice as many, it is computed as (w xᵀ)ᵀ, which takes BLAS less time:
    half of it for 8 rows.  There are two exceptions.

    - The neighbours in a row of w may lie more than a page of memory apart, as in the transpose of a
      matrix with long rows.  Then it would take up to a third more.
    - With more than 128 rows it saves at most a tenth.  The result lies column by column in memory, and
      multiplying it by an array that lies row by row takes five times as long.

    To see it, compare ``x @ w.T`` and ``(w @ x.T).T`` by ``python -m timeit``.  (A Tensor has no strides,
    so it is multiplied as written.)
    """
    if x.ndim != 2:
        return _times(_as_rows(x), w).reshape((*x.shape[:-1], w.shape[0]))
    few = x.shape[0] <= builtins.min(_FEW, w.shape[0] // 2)
    if few and isinstance(w, np.ndarray) and w.strides[-1] <= _PAGE:
        return (w @ x.mT).mT
    return _product(x, w.mT)


# Y = X Wᵀ + b, with all leading axes of X as rows:  dY = dX Wᵀ + X dWᵀ + db   ⟹
@op(
    lambda g, _y, _x, w, _b=None: _times(g, w.mT),  #               X̄ = Ȳ W
    lambda g, _y, x, _w, _b=None: _over_rows(_as_rows(g), _as_rows(x)),  #  W̄ = Ȳᵀ X
    lambda g, _y, _x, _w, _b: g,  #                                  b̄ = Ȳ, summed to the shape of b
)
def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """Return x wᵀ + b for x (…, in), w (out, in), and b that broadcasts to (…, out).

    The same as ``x @ w.mT + b``, but b is added into the fresh product instead of making a third array.
    """
    if np.ndim(x) == 0 or np.ndim(w) != 2:
        raise ValueError(
            f"expected x (..., in) and w (out, in), got {np.shape(x)} and {np.shape(w)}"
        )
    y = _times(x, w)
    return y if b is None else _add_into(y, b)


def _add_into(y: Array, b: Array) -> Array:
    """Return y + b.  It takes the memory of y, a fresh result, if b is a number or has y's dtype."""
    fits = isinstance(y, np.ndarray) and getattr(b, "dtype", y.dtype) is y.dtype
    return np.add(y, b, out=y) if fits else y + np.broadcast_to(b, np.shape(y))


def _sum_of_products(g: Array, z: Array, c: Array) -> Array:
    """Return Σ g∘z over the rows, for a c of shape (n,) and arrays g and z (…, n), without making g∘z.

    For c of shape (1,) the engine sums the n numbers that are left.  In all other cases return g∘z.
    """
    g = wide(g)
    if np.ndim(c) == 1 and isinstance(g, np.ndarray) and g.shape == np.shape(z):
        return sums.over_rows(sums.of_products, _as_rows(g), _as_rows(wide(z)))
    return g * z


# y = z∘c + b,  dy = dz∘c + z∘dc + db   ⟹
@op(
    lambda g, _y, _z, c, _b=None: g * c,  #                        z̄ = ȳ∘c
    lambda g, _y, z, c, _b=None: _sum_of_products(g, z, c),  #    c̄ = ȳ∘z, summed over the rows
    lambda g, _y, _z, _c, _b: g,  #                                 b̄ = ȳ, likewise
)
def affine(z: Array, c: Array, b: Array | None = None) -> Array:
    """Return z∘c + b, elementwise with broadcasting; b must broadcast to z∘c.

    The same as ``z * c + b``, but b is added into the fresh product.

    >>> affine(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([10.0, 100.0]), np.array([1.0, 2.0]))
    Tensor([[ 11., 202.],
            [ 31., 402.]])
    """
    y = np.multiply(z, c)
    return y if b is None else _add_into(y, b)


# ----------------------------------------------------------------------------- choice


def _mask(condition: Array) -> Array:
    """Return ``condition`` as an array of bools; what is not 0 is true."""
    mask = np.asarray(condition)
    if mask.dtype.kind not in "biuf":
        raise TypeError(f"a condition is made of bools or numbers, not {mask.dtype}")
    return mask.astype(bool, copy=False)


# d where(c, a, b) = where(c, da, db)   ⟹   each side gets ȳ where it was chosen
@op(None, lambda g, _y, c, _a, _b: _keep(g, _mask(c)), lambda g, _y, c, _a, _b: _keep(g, ~_mask(c)))
def where(condition: Array, a: Array, b: Array) -> Array:
    """Return a where ``condition`` holds and b elsewhere; all three broadcast."""
    return np.where(_mask(condition), a, b)


def _keep(g: Array, mask: Array) -> Array:
    """Return g where ``mask`` holds, 0 elsewhere: where(mask, g, 0).

    The product g∘mask would not do, because ∞·0 is NaN, and np.where takes as long as eight products.  So
    the bits of g are read as an integer.  Times 1 it keeps its bits, times 0 it is 0, whatever g was.
    """
    if type(g) is np.ndarray and g.itemsize <= 8:
        shape = g.shape if g.shape == mask.shape else np.broadcast(g, mask).shape
        kept = np.empty_like(g if g.shape == shape else mask, g.dtype, shape=shape)
        integers = f"i{g.itemsize}"
        np.multiply(g.view(integers), mask.view(np.int8), out=kept.view(integers))
        return kept
    return where.of(mask, g, 0)


# ----------------------------------------------------------------------------- elementwise functions


@op(lambda g, y, _a: g * y)  # d(eᵃ) = eᵃ da   ⟹   ā = ȳ∘y
def exp(a: Array) -> Array:
    """Return eᵃ."""
    return np.exp(a)


@op(lambda g, _y, a: g / a)  # d(log a) = da/a   ⟹   ā = ȳ/a
def log(a: Array) -> Array:
    """Return the natural logarithm: −inf at 0, NaN below."""
    return np.log(a)


def _one_where(rare: Array, also: Callable[[], Array], a: Array) -> Array:
    """Return ``a`` with 1 where ``rare`` and ``also()`` hold; ``also`` is asked only if there is any."""
    return where.of(rare & also(), 1, a) if np.count_nonzero(rare) else a


def _one_power_less(a: Array, b: Array, g: Array) -> Array:
    """Return aᵇ⁻¹ in the dtype of g, and a finite number where b = 0."""
    if not hasattr(b, "dtype"):  # a number
        return pow.of(a, b - 1 if b else b)
    a = like(a, g)
    base = _one_where(b == 0, lambda: ~np.isfinite(1 / np.asarray(a)), a)
    return base ** (like(b, g) - 1)


def _logarithm(a: Array, b: Array, y: Array) -> Array:
    """Return log a in the dtype of y, or in float32 if that is float16, and 0 where a = 0, b ≥ 0."""
    base = like(a, y) if hasattr(a, "dtype") else a  # a number has all its digits
    return like(log.of(_one_where(a == 0, lambda: b >= 0, base)), wide(y))


# d(aᵇ) = b aᵇ⁻¹ da + aᵇ log(a) db.  Two conventions hold where a factor is infinite or undefined.
# At b = 0 the first term is 0, because a⁰ is constant, even for a = 0 or NaN.  There the base is taken as
# 1, and so it is where a is so small that a⁻¹ overflows.  (If b is a number, 0∘a⁰ is computed instead.)
# At a = 0 and b ≥ 0 the second term is 0, because 0ᵇ is constant except for its jump at b = 0.  There the
# logarithm is taken of 1.
@op(
    lambda g, _y, a, b: g * b * _one_power_less(a, b, g),
    lambda g, y, a, b: g * y * _logarithm(a, b, y),
)
def pow(a: Array, b: Array) -> Array:
    """Return aᵇ, elementwise with broadcasting; NaN for a negative base with a fractional power.

    >>> from minigrad import Tensor, grad
    >>> a = Tensor([0.0, 2.0], requires_grad=True)
    >>> grad((a**2).sum(), a), grad((a**0).sum(), a)
    (Tensor([0., 4.]), Tensor([0., 0.]))
    """
    # NumPy is quick at −1, 0, 1 and 2; at other whole numbers it is slow, and fifty times so for a < 0
    if type(b) not in (int, float) or b % 1 or -2 < b < 3:
        return a**b
    if b in (-2, 3):
        return a * a * a if b == 3 else (1 / a) ** 2
    y = np.abs(a) ** b
    return np.copysign(y, a) if b % 2 else y


@op(lambda g, y, _a: g / (2 * y))  # y² = a,  2y dy = da   ⟹   ā = ȳ/2y
def sqrt(a: Array) -> Array:
    """Return √a: NaN below 0, gradient +inf at 0."""
    return np.sqrt(a)


@op(lambda g, y, _a: g * (1 - y * y))  # d(tanh a) = (1 − tanh² a) da   ⟹   ā = ȳ∘(1 − y²)
def tanh(a: Array) -> Array:
    """Return the hyperbolic tangent."""
    return np.tanh(a)


# σ = (1 + e⁻ᵃ)⁻¹,  dσ = σ² e⁻ᵃ da = σ(1 − σ) da, since σ e⁻ᵃ = 1 − σ   ⟹   ā = (1 − y)∘y∘ȳ
@op(lambda g, y, _a: (1 - y) * y * g)
def sigmoid(a: Array) -> Array:
    """Return σ(a) = 1/(1 + e⁻ᵃ) = eᵃ/(1 + eᵃ); the last form keeps its digits where it is close to 0."""
    # ∞/∞ is NaN: where eᵃ overflows, the largest number there is takes its place, and the quotient is 1
    e = np.minimum(np.exp(a), np.finfo(a.dtype).max)
    e /= 1 + e
    return e


def _times_bell(g: Array, a: Array) -> Array:
    """Return ȳ∘2/√π e^(−a²)."""
    a = wide(a)
    slope = exp.of(-(a * a))
    slope *= 2 / math.sqrt(math.pi)
    slope *= g
    return slope


# d erf a = 2/√π e^(−a²) da, because an integral grows by its integrand   ⟹   ā = ȳ∘2/√π e^(−a²)
@op(lambda g, _y, a: _times_bell(g, a))
def erf(a: Array) -> Array:
    """Return the error function 2/√π ∫ e^(−t²) dt, from 0 to a.

    A normally distributed number is below a with the probability Φ(a) = ½ + ½ erf(a/√2).  NumPy has no
    such function: see :mod:`minigrad.taylor`.

    >>> erf([0.0, 0.5, 9.0])
    Tensor([0.        , 0.52049988, 1.        ])
    """
    return like(taylor.erf(wide(a)), a)


def _gelu_vjp(g: Array, a: Array) -> Array:
    """Return ȳ∘(Φ(a) + a φ(a))."""
    if type(g) is np.ndarray and type(a) is np.ndarray and g.shape == a.shape:
        return taylor.gelu_vjp(wide(g), wide(a))
    cdf = 0.5 + 0.5 * erf.of(a * math.sqrt(1 / 2))
    bell = exp.of(-0.5 * (a * a)) * (1 / math.sqrt(2 * math.pi))
    return g * (cdf + a * bell)


# y = a Φ(a) and Φ′ = φ, the bell e^(−a²/2)/√(2π):  dy = (Φ(a) + a φ(a)) da   ⟹   ā = ȳ∘(Φ(a) + a φ(a))
@op(lambda g, _y, a: _gelu_vjp(g, a))
def _gelu(a: Array) -> Array:
    """Return a Φ(a) in the exact form, see ``gelu`` in :mod:`minigrad.functional`; NaN at −inf."""
    return like(taylor.gelu(wide(a)), a)


# ----------------------------------------------------------------------------- kinks


@op(lambda g, y, _a: _keep(g, ~(y <= 0)))  # d relu = da where a > 0; relu′(0) = 0, NaN passes
def relu(a: Array) -> Array:
    """Return max(a, 0)."""
    return np.maximum(a, 0)


# d|a| = sign(a) da, with sign(0) = 0: the difference of two indicators.
@op(lambda g, _y, a: g * np.subtract(a > 0, a < 0, dtype=a.dtype))
def abs(a: Array) -> Array:
    """Return |a|; the gradient at 0 is 0."""
    return np.abs(a)


def _larger(g: Array, a: Array, b: Array) -> Array:
    """Pass g where a > b (or not comparable: NaN), half of it at a tie, nothing where a < b."""
    return _keep(g, ~(a < b)) / np.add(1, a == b, dtype=g.dtype)


# d max(a, b) = da where a > b, db where b > a, and (da + db)/2 at a tie
@op(lambda g, _y, a, b: _larger(g, a, b), lambda g, _y, a, b: _larger(g, b, a))
def maximum(a: Array, b: Array) -> Array:
    """Return the larger of a and b, elementwise with broadcasting; NaN if either is.

    >>> from minigrad import Tensor, grad
    >>> a = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> grad(maximum(a, 2).sum(), a)
    Tensor([0. , 0.5, 1. ])
    """
    return np.maximum(a, b)


# min(a, b) picks a where b is the larger
@op(lambda g, _y, a, b: _larger(g, b, a), lambda g, _y, a, b: _larger(g, a, b))
def minimum(a: Array, b: Array) -> Array:
    """Return the smaller of a and b, elementwise with broadcasting; NaN if either is."""
    return np.minimum(a, b)


def _inside(a: Array, lower: Array | None, upper: Array | None) -> Array:
    above = np.True_ if lower is None else a >= lower
    return above & (np.True_ if upper is None else a <= upper)


# d clip = da on the closed interval, 0 outside and at NaN.
@op(lambda g, _y, a, min=None, max=None: _keep(g, _inside(a, min, max)))
def clip(a: Array, min: Array | None = None, max: Array | None = None) -> Array:
    """Return ``a`` limited to the closed interval [min, max]; ``None`` leaves a side open."""
    if min is None and max is None:
        return np.positive(a)
    return a.clip(min, max, dtype=a.dtype)


# ----------------------------------------------------------------------------- shapes


@op(lambda g, _y, _a, shape: g.reshape(_a.shape))  # the entries stay, only their places are renamed
def reshape(a: Array, shape: int | Sequence[int]) -> Array:
    """Return the entries of a in the given shape; one length may be −1."""
    return a.reshape(shape)


def _inverse(axes: Sequence[int] | None, n: int) -> list[int] | None:
    """Return the permutation of n axes that undoes ``axes``; None if n < 2, where nothing is permuted."""
    return None if axes is None or n < 2 else sorted(range(n), key=lambda i: axes[i] % n)


# ⟨Ȳ, dAᵀ⟩ = ⟨Ȳᵀ, dA⟩: permute back, by the inverse permutation
@op(lambda g, _y, _a, axes=None: g.transpose(_inverse(axes, _a.ndim)))
def transpose(a: Array, axes: Sequence[int] | None = None) -> Array:
    """Return a with its axes permuted; reversed for None."""
    if axes is not None and a.ndim > 1 and np.size(axes) != a.ndim:
        raise ValueError(f"expected all {a.ndim} axes, not {axes}: swapaxes exchanges two")
    return a.transpose(axes)


@op(lambda g, _y, _a, axis1, axis2: g.swapaxes(axis1, axis2))  # swapping twice is the identity
def swapaxes(a: Array, axis1: int, axis2: int) -> Array:
    """Return a with two axes exchanged."""
    return a.swapaxes(axis1, axis2)


@op(lambda g, _y, _a, shape: g)  # dy repeats da; the engine sums the repetitions, as for every op
def broadcast_to(a: Array, shape: int | Sequence[int]) -> Array:
    """Return a repeated along new or length-1 axes to the given shape."""
    return np.broadcast_to(a, shape)


@op(lambda g, _y, _a, dtype: g)  # the engine returns every cotangent in its argument's dtype
def astype(a: Array, dtype: Any) -> Array:
    """Return a in another float dtype."""
    if not np.issubdtype(dtype, np.floating):
        raise TypeError(f"a Tensor holds floating-point numbers, not {np.dtype(dtype)}")
    return a.astype(dtype)


# y[i] += a:  ⟨ȳ, dy⟩ = ⟨ȳ[i], da⟩
@op(lambda g, _y, _a, index, shape: g[index], None)
def scatter(a: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """Return zeros of the given shape with ``a`` added at ``index``; repeated indices add up."""
    if adding.never_repeats(index):
        return adding.placed(a, index, shape)
    return like(adding.added(wide(a), index, shape), a)


def _put_back(g: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """Return zeros with g at ``index``.  If possible, they are not made until they are added up."""
    if type(g) is np.ndarray and shape and adding.never_repeats(index):
        return adding.Placed(g, index, shape)
    return scatter.of(g, index, shape)


# y = a[i] copies entry i of a, and ȳ goes back to where it came from: the transpose of scatter.
@op(lambda g, _y, _a, index: _put_back(g, index, _a.shape), None)
def getitem(a: Array, index: Any) -> Array:
    """Return a[index] for any index NumPy accepts.

    >>> from minigrad import Tensor, grad
    >>> a = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> grad(a[[0, 2, 2]].sum(), a)
    Tensor([1., 0., 2.])
    """
    return a[index]


def _cut(g: Array, i: int, axis: int | None, arrays: tuple[Array, ...]) -> Array:
    """Return the part of g that lies where array ``i`` has come to lie."""
    lengths = [a.size if axis is None else a.shape[axis] for a in arrays[: i + 1]]
    stop = builtins.sum(lengths)
    part = g.swapaxes(0, axis or 0)[stop - lengths[i] : stop]
    return part.reshape(arrays[i].shape) if axis is None else part.swapaxes(0, axis)


# y holds each array in a place of its own, and there is its own part of ȳ
@op(None, each=lambda i: lambda g, _y, axis, *_arrays: _cut(g, i, axis, _arrays))
def _concatenate(axis: int | None, *arrays: Array) -> Array:
    """Return the arrays, any number of them, one after the other along ``axis``; flat for None."""
    return np.concatenate(arrays, None if axis is None else operator.index(axis))


# ----------------------------------------------------------------------------- reductions


def _axes(a: Array, axis: Axis) -> tuple[int, ...]:
    """Return the axes that a reduction over ``axis`` removes, as non-negative numbers.

    A number, which has no axis, may be reduced over 0 or −1, as in NumPy and PyTorch.
    """
    if axis is None:
        return tuple(range(a.ndim))
    if type(axis) is int and -a.ndim <= axis < a.ndim:
        return (axis % a.ndim,)
    axes = normalize_axis_tuple(axis, builtins.max(a.ndim, 1))
    return axes if a.ndim else ()


def _restore(g: Array, a: Array, axis: Axis) -> Array:
    """Put the axes that a reduction of ``a`` removed back as length 1, so that g broadcasts with a."""
    if axis is None:
        return g  # one number
    axes = _axes(a, axis)
    return g.reshape(tuple([1 if i in axes else n for i, n in enumerate(a.shape)]))


def _spread(g: Array, a: Array, axis: Axis) -> Array:
    """Return ``g`` repeated over ``axis`` to the shape of ``a``.

    The repetitions are written out.  A view that repeats by a stride of 0 makes the matmul of NumPy 2.0
    40 times slower, and short rows are slow everywhere.
    """
    g = _restore(g, a, axis)
    known = isinstance(g, (np.ndarray, np.generic))
    return np.full(a.shape, g, g.dtype) if known else broadcast_to.of(g, a.shape)


def _scaled(x: Array, c: Array, axis: Axis = None) -> Array:
    """Return x∘c, for a c that was reduced over ``axis`` and an x that nobody else holds.

    The result takes the memory of x if x lies row by row, as c does; otherwise that would be slower.
    """
    c = _restore(c, x, axis)
    return np.multiply(x, c, out=x) if type(x) is np.ndarray and x.flags.c_contiguous else x * c


def _count(a: Array, axis: Axis) -> int:
    """Return how many numbers of ``a`` go into one result."""
    return a.size if axis is None else math.prod([a.shape[i] for i in _axes(a, axis)])


# d Σa = Σ da,  ⟨ȳ, Σ da⟩ = ⟨ȳ stretched over axis, da⟩
@op(lambda g, _y, _a, axis=None, keepdims=False: _spread(g, _a, axis))
def sum(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return the sum over ``axis`` (an int, a tuple, or None for all)."""
    return like(total(a, _axes(a, axis), keepdims), a)


# d(Σa / n) = Σ da / n
@op(lambda g, _y, _a, axis=None, keepdims=False: _spread(wide(g) / _count(_a, axis), _a, axis))
def mean(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return the mean over ``axis``; NaN over nothing."""
    return like(total(a, _axes(a, axis), keepdims) / _count(a, axis), a)


def _degrees(a: Array, axis: Axis, ddof: int) -> float:
    """Return N = n − ddof, the degrees of freedom of n numbers, as a float; 0 if there are none."""
    return float(builtins.max(_count(a, axis) - ddof, 0))


def _deviation(a: Array, axis: Axis) -> Array:
    """Return a − μ, in float32 if a is float16."""
    a = wide(a)
    return a - mean.of(a, axis, True)


# v = Σ(a − μ)²/N with N = n − ddof:  dv = 2/N Σ(a − μ)(da − dμ) = 2/N Σ(a − μ) da,
# since Σ(a − μ) dμ = 0   ⟹   ā = (a − μ) 2ȳ/N
@op(
    lambda g, _y, a, axis=None, ddof=0, keepdims=False: _scaled(
        _deviation(a, axis), 2 * wide(g) / _degrees(a, axis, ddof), axis
    )
)
def var(a: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    """Return the variance over ``axis``: the sum of squared deviations over n − ``ddof``.

    NumPy's ddof is 0, PyTorch's is 1 (there it is called ``correction``, or ``unbiased=True``).
    """
    deviation = _deviation(a, axis)
    square = total(deviation, _axes(a, axis), keepdims, deviation)
    return like(square / _degrees(a, axis, ddof), a)


def _share(g: Array, a: Array, axis: Axis, ties: Array) -> Array:
    """Divide g evenly among the entries of ``a`` that attain the result; NaN entries take it all."""
    g, ties = wide(g), ties | ~(a <= a)
    count = np.sum(ties, axis=_axes(a, axis), keepdims=True).astype(g.dtype)
    return _keep(_restore(g, a, axis) / count, ties)


# d max(a) = da at the largest entry; where k entries tie, each has the slope 1/k
@op(lambda g, y, a, axis=None, keepdims=False: _share(g, a, axis, a >= _restore(y, a, axis)))
def max(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return the largest entry over ``axis``; a tie shares its gradient evenly.

    Unlike ``torch.max(a, dim)`` it returns no indices: those are ``np.argmax(a, axis)``.
    """
    return extreme(np.maximum, a, _axes(a, axis), keepdims)


@op(lambda g, y, a, axis=None, keepdims=False: _share(g, a, axis, a <= _restore(y, a, axis)))
def min(a: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return the smallest entry over ``axis``; a tie shares its gradient evenly."""
    return extreme(np.minimum, a, _axes(a, axis), keepdims)


def _direction(x: Array, y: Array, axis: Axis) -> Array:
    """Return x/‖x‖, or 0 where x = 0: there it is x/(0 + ∞), whose derivative is also 0."""
    x, length = wide(x), _restore(wide(y), x, axis)
    infinity, zero = x.dtype.type(np.inf), x.dtype.type(0)
    return x / (length + np.where(length <= 0, infinity, zero))


# y² = Σx²,  2y dy = Σ 2x dx   ⟹   x̄ = ȳ x/y,  the unit vector along x; 0 where y = 0
@op(lambda g, y, x, axis=None, keepdims=False: _scaled(_direction(x, y, axis), wide(g), axis))
def norm(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return the 2-norm √Σx² over ``axis`` (of all entries for None, Frobenius for a pair).

    The gradient at the zero vector is 0.

    >>> from minigrad import Tensor, grad
    >>> x = Tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    >>> grad(norm(x, axis=1).sum(), x)
    Tensor([[0.6, 0.8],
            [0. , 0. ]])
    """
    x_wide, axes = wide(x), _axes(x, axis)
    square, (low, high) = total(x_wide, axes, keepdims, x_wide), _safe_squares(x_wide.dtype)
    safe = ((square >= low) & (square <= high)).all()
    return like(np.sqrt(square) if safe else _scaled_norm(x_wide, axes).reshape(square.shape), x)


@functools.cache
def _safe_squares(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return the range in which no digit is lost to squares that underflow or overflow."""
    limits = np.finfo(dtype)
    return limits.tiny / limits.eps, limits.max


def _scaled_norm(x: Array, axes: tuple[int, ...]) -> Array:
    """Return √Σx² over ``axes``, which are kept, where squares overflow or lose digits by underflow.

    The entries are first divided by the power of two above the largest of them.  That only changes
    exponents: no digit is lost.
    """
    _, exponent = np.frexp(np.max(np.abs(x), axis=axes, keepdims=True, initial=0))
    x = np.ldexp(x, -exponent)
    return np.ldexp(np.sqrt(total(x, axes, True, x)), exponent)


def _inner(a: Array, b: Array, axis: Axis) -> Array:
    """Return Σa∘b over ``axis``, which stays with length 1, for a and b of one shape."""
    if type(a) is np.ndarray and type(b) is np.ndarray:
        return total(a, _axes(a, axis), True, b)
    return sum.of(a * b, axis, True)


def _inverse_spread(d: Array, axis: Axis, eps: float) -> Array:
    """Return 1/√(v + eps) for the deviations d, whose squares have the mean v; NaN if they overflow."""
    number = isinstance(eps, (int, float, np.integer, np.floating)) and not isinstance(eps, bool)
    if not (number and 0 <= eps < math.inf):
        raise ValueError(
            f"eps is a number that is added to a variance, finite and >= 0, not {eps!r}"
        )
    v = _inner(d, d, axis) / _count(d, axis)
    v = v + (v - v)  # NaN for ∞, whose inverse would be 0, as if y were a constant
    return (v + float(eps)) ** -0.5


def _layer_norm_vjp(g: Array, x: Array, axis: Axis, eps: float) -> Array:
    """Return (ȳ − mean ȳ − y mean(y∘ȳ))/σ, with y = d/σ for the deviations d."""
    g, d = wide(g), _deviation(x, axis)
    inverse = _inverse_spread(d, axis, eps)
    d *= _inner(d, g, axis) / _count(d, axis) * inverse**2  # d is an array that nobody else has
    d += mean.of(g, axis, True)
    d -= g
    d *= -inverse
    return d


# y = d/σ with d = x − μ, σ = √(v + eps), v = Σd²/n.  Of these  dv = 2/n Σd∘dx, as above for var,  so that
# dσ = dv/2σ = mean(y∘dx)  and  dy = (dx − dμ)/σ − y dσ/σ = P dx/σ  with  P u = u − mean(u) − y mean(y∘u).
# As a matrix P is I − 11ᵀ/n − yyᵀ/n, with 1 the vector of ones.  It is symmetric   ⟹   x̄ = P ȳ/σ
# (For eps = 0 it projects: 1/√n and y/√n are then two unit vectors at a right angle, because Σy = 0 and
# Σy² = n, and P takes away what lies along them.  Neither a shift nor a scaling of x changes y.)
@op(lambda g, _y, x, axis=-1, eps=1e-5: _layer_norm_vjp(g, x, axis, eps))
def layer_norm(x: Array, axis: Axis = -1, eps: float = 1e-5) -> Array:
    """Return (x − μ)/√(v + eps), with the mean μ and the variance v over ``axis``.

    A layer goes on with ``affine(layer_norm(x), weight, bias)``.

    Where x does not vary, the result is 0, or NaN if ``eps`` is 0.  A row with an infinity or a NaN in it
    becomes NaN.  (PyTorch does the same in both cases.)  So does a row whose squares overflow.

    Source: Ba, Kiros & Hinton, "Layer Normalization", arXiv:1607.06450, eq. 3.

    Raises
    ------
    ValueError
        Unless ``eps`` is a finite number, and not negative.

    >>> layer_norm(np.array([[1.0, 3.0], [5.0, 5.0]]), eps=0.01).data.round(3)
    array([[-0.995,  0.995],
           [ 0.   ,  0.   ]])
    """
    d = _deviation(x, axis)
    return like(_scaled(d, _inverse_spread(d, axis, eps)), x)


# ----------------------------------------------------------------------------- softmax


def _below_largest(x: Array, axis: int, where: Array | None = None) -> Array:
    """Return z = x − max x, a new array, in float32 if x is float16.  Now no eᶻ overflows.

    Masked entries are −inf.  If there are no others, the lowest finite number stands for the largest
    entry, so z stays −inf.
    """
    x = wide(x)
    z = x if where is None else _chosen(x, where)
    largest = extreme(np.maximum, z, _axes(z, axis), True, _lowest(z.dtype))
    return np.asarray(np.subtract(z, largest, out=None if where is None else z))


@functools.cache
def _lowest(dtype: np.dtype[Any]) -> Array:
    """Return the lowest finite number."""
    return np.finfo(dtype).min


def _sum_of_powers(powers: Array, axis: int) -> Array:
    """Return Σeᶻ for the powers eᶻ of z = x − max x, or 1 if all of x is −inf.

    The sum is at least 1, except where all of x is −inf.  There it would be 0.  With 1 in its place,
    eᶻ/Σeᶻ is 0, and z − log Σeᶻ is −inf.
    """
    return np.maximum(total(powers, _axes(powers, axis), keepdims=True), 1)


def _softmax_vjp(g: Array, p: Array, axis: int) -> Array:
    """Return the cotangent of x for that of p = eˣ/Σeˣ."""
    g, p = wide(g), wide(p)
    c = g - _inner(p, g, axis)
    c *= p
    return c


def _chosen(x: Array, where: Array) -> Array:
    """Return a copy of x with −inf where the mask is false, even in place of NaN.

    np.fmin(x, limit) is the smaller of the two, and the limit if x is NaN.  (A NaN that is chosen
    therefore becomes +inf.  Either one makes its whole row NaN.)
    """
    mask = np.asarray(where)
    if mask.dtype != bool:
        raise TypeError(
            f"where is made of bools, not {mask.dtype}: true means that an entry counts"
        )
    infinity = x.dtype.type(np.inf)
    limit = np.where(mask, infinity, -infinity)
    try:
        return np.fmin(x, limit, out=np.empty_like(x))
    except ValueError:
        raise ValueError(
            f"where has shape {mask.shape}, which does not broadcast to {x.shape}"
        ) from None


# p = eˣ/Σeˣ,  dp = p∘dx − p Σ p∘dx   ⟹   x̄ = p∘p̄ − p Σ p∘p̄ = p∘(p̄ − Σ p∘p̄)
# A masked entry has p = 0, so its x̄ is 0.
@op(lambda g, y, _x, axis=-1, where=None: _softmax_vjp(g, y, axis))
def softmax(x: Array, axis: int = -1, where: Array | None = None) -> Array:
    """Return p = eˣ / Σeˣ over ``axis``; finite also for entries of ±1e4 and −inf.

    If all entries are −inf or masked, nothing can be chosen: p is 0, and so is its gradient.  PyTorch's
    softmax is NaN there; its ``scaled_dot_product_attention`` is 0, as here.

    Parameters
    ----------
    x
        Any numbers.
    axis
        Along it p adds up to 1.
    where
        Bools that broadcast to x, true for the entries that take part, as in NumPy and in
        ``scaled_dot_product_attention``.  Elsewhere p is 0, and so is the gradient, whatever x is.
        (A NaN or +inf that does take part makes its whole row NaN.)

    Raises
    ------
    TypeError
        If ``where`` is not made of bools.
    ValueError
        If it does not broadcast to x.

    >>> softmax([-1e4, 0.0, 0.0])
    Tensor([0. , 0.5, 0.5])
    >>> softmax(np.zeros((3, 3)), where=np.tri(3, dtype=bool)).data.round(2)
    array([[1.  , 0.  , 0.  ],
           [0.5 , 0.5 , 0.  ],
           [0.33, 0.33, 0.33]])
    """
    y = _below_largest(x, axis, where)
    np.exp(y, out=y)
    y /= _sum_of_powers(y, axis)
    return like(y, x)


# y = x − log Σeˣ,  dy = dx − Σ p dx with p = softmax(x) = eʸ   ⟹   x̄ = ȳ − p Σȳ
@op(lambda g, y, _x, axis=-1: wide(g) - exp.of(wide(y)) * sum.of(wide(g), axis, True))
def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return log(eˣ / Σeˣ) over ``axis``; finite also where eˣ itself rounds to 0.

    Where all entries are −inf it is −inf, the logarithm of the 0 that :func:`softmax` gives there.

    >>> log_softmax(np.array([-1e4, 0.0, 0.0]))
    Tensor([-1.00006931e+04, -6.93147181e-01, -6.93147181e-01])
    """
    y = _below_largest(x, axis)
    y -= np.log(_sum_of_powers(np.exp(y), axis))
    return like(y, x)


def no_classes(labels: Array) -> str:
    """Return in words what is wrong with labels that are not integers."""
    return (
        f"labels are class numbers of an integer dtype, not {labels.dtype}, in an array or a list; a "
        "Tensor has no integers"
    )


def check_labels(labels: Array, classes: int) -> None:
    """Raise TypeError unless ``labels`` are integers, IndexError unless they are 0 … classes − 1."""
    if labels.dtype.kind not in "iu":
        raise TypeError(no_classes(labels))
    wrong = outside(labels, classes)
    if wrong is not None:
        raise IndexError(f"label {wrong} is out of range for {classes} classes")


def outside(numbers: Array, n: int) -> int | None:
    """Return one of the integers that is not in 0 … n − 1, None if there is none.

    Only two of them are compared with n.  That makes no masks; and NumPy 2.0 may crash where an array of
    unsigned numbers is compared with one that its dtype cannot hold (numpy#28117).
    """
    if not numbers.size:
        return None
    low, high = int(numbers.min()), int(numbers.max())
    return low if low < 0 else high if high >= n else None


def _at_labels(x: Array, labels: Array) -> tuple[Array, Array]:
    """Return the index of each row's label in x (N, C), for labels (N,)."""
    if x.ndim != 2 or np.shape(labels) != x.shape[:1]:
        raise ValueError(
            f"expected one label for each row of (N, C), got {np.shape(labels)} for {x.shape}"
        )
    # NumPy makes an empty list an array of floats
    labels = np.asarray(labels) if len(labels) else np.zeros(0, np.intp)
    check_labels(labels, x.shape[1])
    return np.arange(x.shape[0]), labels


# y = w∘(p − onehot) row by row, with p = softmax(x):  dy = w∘dp + dw∘(p − onehot)
# ⟹   x̄ as softmax has it for p̄ = w∘ȳ,   w̄ = Σ ȳ∘(p − onehot) = Σ ȳ∘p − ȳ[label]
@op(
    lambda g, _y, x, w, labels: _softmax_vjp(wide(g) * w[:, None], softmax.of(wide(x), 1), 1),
    lambda g, _y, x, _w, labels: (
        sum.of(wide(g) * softmax.of(wide(x), 1), 1) - g[_at_labels(x, labels)]
    ),
    None,
)
def nll_grad(x: Array, w: Array, labels: Array) -> Array:
    """Return w∘(softmax(x) − onehot(labels)) row by row, for x (N, C), w and labels (N,).

    Labels are refused as by :func:`nll`.

    >>> nll_grad(np.array([[0.0, 0.0]]), np.array([1.0]), np.array([1]))
    Tensor([[ 0.5, -0.5]])
    """
    at_labels = _at_labels(x, labels)
    if np.shape(w) != x.shape[:1]:
        raise ValueError(
            f"expected one weight for each row of (N, C), got {np.shape(w)} for {x.shape}"
        )
    powers = _below_largest(x, 1)
    np.exp(powers, out=powers)
    share = w[:, None] / _sum_of_powers(powers, 1)
    y = np.multiply(powers, share, out=powers if share.dtype is powers.dtype else None)
    y[at_labels] -= w
    return like(y, w) if x.dtype == w.dtype else y


# y = log Σeˣ − x[label] row by row,  dy = Σ p dx − dx[label] with p = softmax(x)
# ⟹   x̄ = ȳ∘(p − onehot)
@op(lambda g, _y, x, labels: nll_grad.of(x, g, labels), None)
def nll(x: Array, labels: Array) -> Array:
    """Return −log softmax(x)[n, labels[n]] for each row n of x (N, C): how unexpected its label was.

    Labels that are not integers are a TypeError, those outside 0 … C − 1 an IndexError.  A row of −inf
    gives no label a chance: there the result is +inf, as for every label whose own logit is −inf.

    >>> nll(np.array([[0.0, 0.0], [0.0, 1e4]]), np.array([0, 1]))
    Tensor([0.69314718, 0.        ])
    """
    z = _below_largest(x, 1)
    of_label = z[_at_labels(z, labels)]  # before z is overwritten
    return like(np.log(_sum_of_powers(np.exp(z, out=z), 1)[:, 0]) - of_label, x)


if not TYPE_CHECKING:  # type checkers cannot evaluate it, and see all names that are public
    #: What ``from minigrad.ops import *`` brings: every operation that has a name here.
    __all__ = ["OPS", "Op", "op", *(name for name in OPS if name in globals())]
