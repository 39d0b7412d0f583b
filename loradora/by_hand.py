r"""LoRA's and DoRA's gradients, derived on paper and written in plain NumPy.

A trained layer computes y = x W0ᵀ + b.  To teach it something new, LoRA leaves its large weight W0 as it
is, and adds a correction s B A.  A and B are thin matrices, so they have few numbers, and only these are
trained.  DoRA also takes each row of the changed weight apart, into its length and its direction.  It
trains the lengths as numbers of their own, m, and B A then only turns the rows.

Training needs to know how a loss L, which is one number, changes with A, B and m.  This file works that
out.  Calculus is enough to follow it, and no engine is used.

Names and shapes are those of :mod:`loradora.adapters`: x (N, in), one example per row, W0 (out, in),
b (out,), A (r, in), B (out, r), m (out,), and s = α/r is a number that is chosen.

The method
==========

*A bar* marks a gradient: P̄ holds ∂L/∂P, one entry for each entry of P.  It is also called the cotangent
of P.  That of y is where we start.  The loss determines it, and we call it G = ȳ, shape (N, out).

*The inner product* ⟨U, V⟩ multiplies two matrices entry by entry and adds everything up:
⟨U, V⟩ = Σ U∘V = tr(UᵀV), where the trace tr is the sum of the diagonal.  With it the bar has a definition
in one line: if P changes by a little dP, then

    dL = ⟨P̄, dP⟩

So a gradient is what stands beside dP once dP stands alone.  Getting it there takes three steps, the same
as in ``minigrad.ops``: write down the differential of y, move every factor but dP across the inner
product, read off what stands beside dP.

*Moving across.*  Written with indices, ⟨U, P Q⟩ is the sum of all U_ij P_ik Q_kj.  We may collect
first what multiplies P_ik, namely Σ_j U_ij Q_kj = (U Qᵀ)_ik, or what multiplies Q_kj, namely
Σ_i P_ik U_ij = (Pᵀ U)_kj.  The sum stays the same.  So a factor moves to the other side transposed:

    ⟨U, P Q⟩ = ⟨U Qᵀ, P⟩ = ⟨Pᵀ U, Q⟩          ⟨U, Vᵀ⟩ = ⟨Uᵀ, V⟩

(With traces: tr(PQ) = tr(QP) and tr(P) = tr(Pᵀ).)

LoRA: y = x W0ᵀ + b + s h Bᵀ with h = x Aᵀ
===========================================

*Differential.*  W0 and b are frozen; A and B move.  So does x, which may be the output of an earlier
layer:

    dy = dx W0ᵀ + s h dBᵀ + s dh Bᵀ          dh = x dAᵀ + dx Aᵀ

*Inner product*, term by term, until the differential stands alone:

    ⟨G, s h dBᵀ⟩ = ⟨s hᵀ G, dBᵀ⟩ = ⟨s Gᵀ h, dB⟩
    ⟨G, s dh Bᵀ⟩ = ⟨s G B, dh⟩                              so h̄ = s G B, and with it
    ⟨h̄, x dAᵀ⟩   = ⟨xᵀ h̄, dAᵀ⟩   = ⟨h̄ᵀ x, dA⟩
    ⟨G, dx W0ᵀ⟩ + ⟨h̄, dx Aᵀ⟩     = ⟨G W0 + h̄ A, dx⟩

*Conclusion.*

    B̄ = s Gᵀ h          Ā = h̄ᵀ x          x̄ = G W0 + h̄ A          with h̄ = s G B

At the start B = 0, hence h̄ = 0 and Ā = 0: the first step moves B alone.

DoRA: y = x Wᵀ + b with row i of W being wᵢ = mᵢ v̂ᵢ, v̂ᵢ = vᵢ/nᵢ, nᵢ = ‖vᵢ‖, V = W0 + s B A
=======================================================================================

Row i of V is vᵢ, nᵢ is its length, and v̂ᵢ, of length 1, is its direction.  (Here the hat marks a
direction; a bar still marks a gradient.)

*Differential of y.*  dy = x dWᵀ + dx Wᵀ.  *Inner product.*  ⟨G, x dWᵀ⟩ = ⟨Gᵀ x, dW⟩ and
⟨G, dx Wᵀ⟩ = ⟨G W, dx⟩.  *Conclusion.*

    W̄ = Gᵀ x = Q          x̄ = G W

Each row of W depends on its own row of V only.  From here on we look at one row and leave out the index
i: w is a row of W (not of W0), and q is the row of Q.

*Differential of the norm.*  n² = ⟨v, v⟩ gives 2n dn = 2⟨v, dv⟩, so dn = ⟨v̂, dv⟩: to first order, only a
movement along v changes its length.

*Differential of the row* w = (m/n) v, with c = m/n:

    dw = (dm/n) v + (m/n) dv − (m/n²) v dn
       = dm v̂ + c (dv − v̂⟨v̂, dv⟩)

The bracket is dv without its part along v.  Taking that part away is an orthogonal projection, which is
its own transpose, so it moves across the inner product unchanged.

*Inner product.*

    ⟨q, dw⟩ = ⟨q, v̂⟩ dm + c (⟨q, dv⟩ − ⟨q, v̂⟩⟨v̂, dv⟩)
            = ⟨q, v̂⟩ dm + ⟨c (q − v̂⟨v̂, q⟩), dv⟩

*Conclusion* (arXiv:2402.09353, eq. 7 for m̄ and eq. 6 for v̄; the paper's ∇_{W′}L is our
Q, its V + ΔV is our V, and its columns are our rows):

    m̄ = ⟨q, v̂⟩                   the part of q along the row
    v̄ = c (q − v̂⟨v̂, q⟩)         c times the part of q across the row: ⟨v̄, v⟩ = 0

So q is divided between m and v without overlap.

*To the factors.*  dV = s dB A + s B dA, hence ⟨V̄, dV⟩ = ⟨s V̄ Aᵀ, dB⟩ + ⟨s Bᵀ V̄, dA⟩ and

    B̄ = s V̄ Aᵀ          Ā = s Bᵀ V̄

A row v = 0 has no direction: its v̂ and c are defined as 0, and then so are its gradients.

Why there are two gradients of B
================================

The paper treats the norm as a constant (§4.3, eq. 11).  The way back through the norm reads V, which has
the size of W0.  Without that way V need not be kept, which saves memory.  Above, it means that dn = 0.
So the term v̂⟨v̂, dv⟩ never appears, and

    v̄ = c q          which is the exact v̄ + c m̄ v̂

So the two differ by c m̄ v̂.  It lies along the row, and its length is |c| |m̄|, that is |c| times the size
of m's gradient.  It is gone where m̄ = 0, as for the m that is best for the examples at hand.  m̄ and x̄
are the same in both.

A small step against the held v̄ never raises the loss, to first order.  The step is dv = −ε held v̄, and
the loss changes by dL = ⟨exact v̄, dv⟩ = −ε ⟨held v̄, exact v̄⟩.  The exact v̄ is the part of the held
one across the row, and by Cauchy and Schwarz

    ⟨held v̄, exact v̄⟩ = ⟨c q, c (q − v̂⟨v̂, q⟩)⟩ = c² (‖q‖² − ⟨q, v̂⟩²) ≥ 0

B̄ has no such guarantee.  The row of B̄ is s v̄ Aᵀ, and in ⟨held v̄ Aᵀ, exact v̄ Aᵀ⟩ the factor AᵀA
stands between the two.  It stretches some directions, shrinks others, and no longer keeps "along" and
"across" apart.  Take v = (1, 0), q = (−2, 1), c = s = 1 and A = (1, 1).  The exact v̄ is (0, 1), the held
one is (−2, 1), and A adds up their entries: the exact gradient of B is 1, the held one −1.  They have
opposite signs.  (The same holds for Ā = s Bᵀ V̄, where B adds up several rows.)
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


class LoRAGradients(NamedTuple):
    """The cotangents x̄ (N, in), Ā (r, in) and B̄ (out, r)."""

    x: Array
    A: Array
    B: Array


class DoRAGradients(NamedTuple):
    """The cotangents x̄ (N, in), Ā (r, in), B̄ (out, r), m̄ (out,), and V̄ (out, in) on the way."""

    x: Array
    A: Array
    B: Array
    m: Array
    V: Array


@np.errstate(under="ignore")  # a product too small for the dtype is 0, without a warning
def lora_forward(x: Array, W0: Array, b: Array | float, A: Array, B: Array, s: float) -> Array:
    """Return y = x W0ᵀ + b + s (x Aᵀ) Bᵀ, shape (N, out) (arXiv:2106.09685, eq. 3).

    Parameters
    ----------
    x, W0, b, A, B, s
        Shapes (N, in), (out, in), (out,) or a number, (r, in), (out, r), a number; the arrays are of
        one floating dtype, which is also the result's.

    Raises
    ------
    ValueError
        From NumPy, for shapes that do not fit.

    Examples
    --------
    With B = 0 nothing is added; here W0 is the identity, and B A adds the first input to the second:

    >>> x, W0, A = np.array([[2.0, 3.0]]), np.eye(2), np.array([[1.0, 0.0]])
    >>> lora_forward(x, W0, 0, A, np.zeros((2, 1)), s=1)
    array([[2., 3.]])
    >>> lora_forward(x, W0, 0, A, np.array([[0.0], [1.0]]), s=1)
    array([[2., 5.]])
    """
    y: Array = x @ W0.T + b + s * (x @ A.T) @ B.T
    return y


@np.errstate(under="ignore")
def lora_gradients(G: Array, x: Array, W0: Array, A: Array, B: Array, s: float) -> LoRAGradients:
    """Return the cotangents of x, A and B for the cotangent G of y (derived above).

    Parameters
    ----------
    G
        ∂L/∂y, shape (N, out).
    x, W0, A, B, s
        As in :func:`lora_forward`.

    Raises
    ------
    ValueError
        From NumPy, for shapes that do not fit.

    Examples
    --------
    At the start, B = 0, only B has a gradient:

    >>> G, x, W0 = np.array([[1.0, -1.0]]), np.array([[2.0, 3.0]]), np.eye(2)
    >>> start = lora_gradients(G, x, W0, A=np.array([[1.0, 0.0]]), B=np.zeros((2, 1)), s=1)
    >>> start.A
    array([[0., 0.]])
    >>> start.B
    array([[ 2.],
           [-2.]])
    """
    h = x @ A.T  #               (N, r)
    h_bar = s * (G @ B)  #       (N, r)
    return LoRAGradients(x=G @ W0 + h_bar @ A, A=h_bar.T @ x, B=s * (G.T @ h))


@np.errstate(under="ignore")
def dora_forward(
    x: Array, W0: Array, b: Array | float, A: Array, B: Array, m: Array, s: float
) -> Array:
    """Return y = x Wᵀ + b with W = (m/‖V‖) ∘ V, V = W0 + s B A (arXiv:2402.09353, eq. 5).

    Parameters
    ----------
    x, W0, b, A, B, s
        As in :func:`lora_forward`.
    m
        The magnitudes, shape (out,).

    Raises
    ------
    ValueError
        From NumPy, for shapes that do not fit.

    Examples
    --------
    The length of a row of W is m, wherever B A turns it.  V = (3, 0) + (0, 4) = (3, 4) has the length 5,
    but W = (1.8, 2.4) has the length 3, as m says:

    >>> W0, A, B, m = np.array([[3.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[4.0]]), np.array([3.0])
    >>> dora_forward(np.eye(2), W0, 0, A, B, m, s=1).T.round(12)
    array([[1.8, 2.4]])
    """
    c, _, V = _directions(W0, A, B, m, s)
    y: Array = x @ (c[:, None] * V).T + b
    return y


@np.errstate(under="ignore")
def dora_gradients(
    G: Array,
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    m: Array,
    s: float,
    *,
    detach_norm: bool = True,
) -> DoRAGradients:
    """Return the cotangents of x, A, B, m and V for the cotangent G of y (derived above).

    Parameters
    ----------
    G
        ∂L/∂y, shape (N, out).
    x, W0, A, B, m, s
        As in :func:`dora_forward`.
    detach_norm
        Hold ‖V‖ constant (eq. 11); False gives the exact gradient (eq. 6).

    Raises
    ------
    ValueError
        From NumPy, for shapes that do not fit.

    Examples
    --------
    The row v = (3, 4) has the length 5, and m = 10, so c = 2.  The exact gradient of V is across v:

    >>> G, x, s = np.array([[1.0]]), np.array([[5.0, 10.0]]), 1
    >>> W0, A, B, m = np.array([[3.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[4.0]]), np.array([10.0])
    >>> exact = dora_gradients(G, x, W0, A, B, m, s, detach_norm=False)
    >>> exact.V.round(12), exact.m
    (array([[-3.2,  2.4]]), array([11.]))

    With the norm held constant it also pulls along v, by c m̄ v̂, which has the length 2 · 11:

    >>> held = dora_gradients(G, x, W0, A, B, m, s, detach_norm=True)
    >>> held.V, float(np.linalg.norm(held.V - exact.V).round(12))
    (array([[10., 20.]]), 22.0)

    The two gradients of B can have opposite signs, even at the start, B = 0:

    >>> x, W0, A = np.array([[-2.0, 1.0]]), np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])
    >>> for detach_norm in (False, True):
    ...     print(dora_gradients(G, x, W0, A, np.zeros((1, 1)), np.ones(1), s, detach_norm=detach_norm).B)
    [[1.]]
    [[-1.]]
    """
    c, unit, V = _directions(W0, A, B, m, s)
    Q = G.T @ x  #                                      W̄, (out, in)
    m_bar = np.sum(Q * unit, axis=1)  #                 eq. 7
    across = Q if detach_norm else Q - m_bar[:, None] * unit
    V_bar = c[:, None] * across  #                      eq. 11 or eq. 6
    x_bar = G @ (c[:, None] * V)
    return DoRAGradients(x=x_bar, A=s * (B.T @ V_bar), B=s * (V_bar @ A.T), m=m_bar, V=V_bar)


def _directions(W0: Array, A: Array, B: Array, m: Array, s: float) -> tuple[Array, Array, Array]:
    """Return c = m/‖V‖ (out,), V̂ (out, in) and V (out, in); c and V̂ are 0 in a row of zeros."""
    V = W0 + s * (B @ A)
    n = np.linalg.norm(V, axis=1)
    n[n == 0] = np.inf
    return m / n, V / n[:, None], V
