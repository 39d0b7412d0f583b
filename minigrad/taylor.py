"""erf and the exact GELU by tables and Taylor's formula: the trick of both.

The definition of erf is Python's ``math.erf``, entry by entry; NumPy has none.  It is

    erf x = 2/√π ∫₀ˣ e^(−t²) dt,   with the derivatives   erf′ = 2/√π e^(−x²),   erf″ = −2x erf′,   …

Each further derivative is erf′ times a polynomial: erf‴ = (4x² − 2) erf′, and so on.  (These are the
Hermite polynomials with alternating signs.)  So a table of erf and erf′ at the points a of a grid is
enough.  From the nearest point, Taylor's formula takes the small step d to x = a + d:

    erf(a + d) = erf a + erf′ a d + erf″ a d²/2 + erf‴ a d³/6 + …
               = erf a + erf′ a (d − a d² + (2a² − 1)/3 d³ − …)

With 4096 points per unit, d is at most 2⁻¹³.  Then the terms from d⁴ on are below 5e-17.  In float32 the
term with d³ can also be left off: it is below 1e-12, and near 0 below 1e-8 of the result.  From 6 on, erf
is 1 to the last digit.

The exact GELU is x Φ(x).  Here Φ(x) = ½ + ½ erf(x/√2) is the probability that a normally distributed
number is below x, and φ = Φ′ is the bell e^(−x²/2)/√(2π).  The derivative is Φ(x) + x φ(x).  In float64
both are computed as written.

In float32 Φ and Φ + x φ have tables of their own.  There the term with d² can be left off as well: it is
below 6e-9.  What remains is the tangent at a.  As a function of x it is α + β x, so the table holds α and
β.  That takes half the operations.  The table ends where the result differs from 0 or 1 by less than the
last digit of ½.

``math.erf`` fills a table when it is first needed, which takes some hundredths of a second, so there are
no constants to trust.  An evaluation takes six to twelve operations of NumPy.  They go over blocks of
numbers that fit into the processor's cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

#: Points of the grid for each unit, and where it ends.
POINTS, END = 2**12, 6

#: The numbers in a block.
BLOCK = 2**14


def erf(x: Array) -> Array:
    """Return ``math.erf`` of each entry, for float32 or wider.

    It is within 1.2e-16 of ``math.erf`` in float64 and 6e-8 in float32, and also within 4 units in the
    last place, so that small numbers keep their digits.  A wider dtype has the digits of float64.
    """
    return _in_blocks(_erf_into, x)


def gelu(x: Array) -> Array:
    """Return x Φ(x), for float32 or wider.

    Φ is within 1e-7 of its value in float32, and within 3e-16 in float64.
    """

    def into(y: Array, x: Array) -> None:
        _phi_into(y, x)
        y *= x

    return _in_blocks(into, x)


def gelu_vjp(g: Array, x: Array) -> Array:
    """Return ȳ∘(Φ(x) + x φ(x)), the cotangent of x Φ(x), for g and x of one shape and dtype.

    The factor is within 2e-7 of its value in float32, and within 5e-16 in float64.
    """

    def into(y: Array, g: Array, x: Array) -> None:
        _slope_into(y, x)
        y *= g

    return _in_blocks(into, g, x)


def _in_blocks(into: Callable[..., None], *arrays: Array) -> Array:
    """Return what ``into`` writes for the numbers of arrays of one shape, block by block."""
    last = arrays[-1]
    y = np.empty(last.shape, last.dtype)
    flat = [a.reshape(-1) for a in (y, *arrays)]
    for i in range(0, last.size, BLOCK):
        into(*(a[i : i + BLOCK] for a in flat))
    return y


# ----------------------------------------------------------------------------- a step of Taylor's formula


def _erf_into(y: Array, x: Array) -> None:
    """Write erf x to y."""
    values, slopes = _table(x.dtype)
    size = np.minimum(np.abs(x), x.dtype.type(END))  # NaN stays NaN
    a = np.rint(size * POINTS)
    nearest = a.astype(np.intp)  # of NaN it is any number: take clips it, and d is NaN
    a /= POINTS
    d = size - a
    if x.dtype.itemsize > 4:
        d -= d * d * (a - d * (2 * a * a - 1) / 3)
    else:
        d -= d * d * a
    d *= slopes.take(nearest, mode="clip")
    d += values.take(nearest, mode="clip")
    np.copysign(d, x, out=y)


@functools.cache
def _table(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return erf and erf′ at 0, 1/4096, 2/4096, …, 6."""
    grid = [k / POINTS for k in range(END * POINTS + 1)]
    slope = 2 / math.sqrt(math.pi)
    values, slopes = [math.erf(a) for a in grid], [slope * math.exp(-a * a) for a in grid]
    return np.array(values, dtype), np.array(slopes, dtype)


# ----------------------------------------------------------------------------- tangents, for float32


def _phi_into(y: Array, x: Array) -> None:
    """Write Φ(x) to y."""
    if x.dtype.itemsize > 4:
        _erf_into(y, x * math.sqrt(1 / 2))
        y *= 0.5
        y += 0.5
    else:
        near = np.clip(x, -END, END)
        _by_tangents(y, near, near, *_tangents(_phi))


def _slope_into(y: Array, x: Array) -> None:
    """Write Φ(x) + x φ(x) to y."""
    if x.dtype.itemsize > 4:
        _phi_into(y, x)
        y += x * np.exp(x * x * -0.5) * _TOP
    else:
        # not near in the place of x: at infinity the result is NaN, as it is in float64
        _by_tangents(y, x, np.clip(x, -END, END), *_tangents(_slope))


def _by_tangents(y: Array, x: Array, near: Array, alphas: Array, betas: Array) -> None:
    """Write α + β x to y, with the α and β of the point nearest to ``near``, which lies in the table."""
    nearest = (near * POINTS + (END * POINTS + 0.5)).astype(np.intp)  # of NaN it is any number
    betas.take(nearest, mode="clip", out=y)
    y *= x
    y += alphas.take(nearest, mode="clip")


@functools.cache
def _tangents(function: Callable[[float], tuple[float, float]]) -> tuple[Array, Array]:
    """Return α and β of the tangents at −6, −6 + 1/4096, …, 6; those at the ends are 0 and 1."""
    grid = [k / POINTS for k in range(1 - END * POINTS, END * POINTS)]
    inner = [(value - a * slope, slope) for a, (value, slope) in zip(grid, map(function, grid))]
    alphas, betas = np.array([(0, 0), *inner, (1, 0)], np.float32).T.copy()
    return alphas, betas


#: The largest value of φ, in the middle of the bell.
_TOP = 1 / math.sqrt(2 * math.pi)


def _phi(a: float) -> tuple[float, float]:
    """Return Φ(a) and its derivative φ(a)."""
    return 0.5 + 0.5 * math.erf(a * math.sqrt(1 / 2)), _TOP * math.exp(-a * a / 2)


def _slope(a: float) -> tuple[float, float]:
    """Return Φ(a) + a φ(a) and its derivative (2 − a²) φ(a), because φ′ = −a φ."""
    phi, bell = _phi(a)
    return phi + a * bell, (2 - a * a) * bell
