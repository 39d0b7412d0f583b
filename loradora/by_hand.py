r"""LoRA's and DoRA's gradients, derived on paper and written in plain NumPy.

No engine is used here.  The chain rule is applied by hand, in the three lines of ``minigrad.ops``:
take the differential, move it across the inner product ⟨U, V⟩ = Σ U∘V = tr(UᵀV), read off.  The moves
are always these, because tr(PQ) = tr(QP) and tr(P) = tr(Pᵀ):

    ⟨U, P Q⟩ = ⟨U Qᵀ, P⟩ = ⟨Pᵀ U, Q⟩          ⟨U, Vᵀ⟩ = ⟨Uᵀ, V⟩

Names and shapes are those of :mod:`loradora.adapters`: x (N, in), W0 (out, in), A (r, in),
B (out, r), m (out,), s a number; G = ȳ (N, out) is the cotangent of y, that is ∂L/∂y for some scalar
loss L, and a bar marks the others.

LoRA: y = x W0ᵀ + b + s h Bᵀ with h = x Aᵀ
===========================================

*Differential.*  W0 and b are frozen; x, A and B move:

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

*Differential of y.*  dy = x dWᵀ + dx Wᵀ.  *Inner product.*  ⟨G, x dWᵀ⟩ = ⟨Gᵀ x, dW⟩ and
⟨G, dx Wᵀ⟩ = ⟨G W, dx⟩.  *Conclusion.*

    W̄ = Gᵀ x = Q          x̄ = G W

From here on each row lives by itself; the index i is left out, w is a row of W (not of W0), and q the row
of Q.

*Differential of the norm.*  n² = ⟨v, v⟩ gives 2n dn = 2⟨v, dv⟩, so dn = ⟨v̂, dv⟩: only a movement along v
changes its length.

*Differential of the row* w = (m/n) v, with c = m/n:

    dw = (dm/n) v + (m/n) dv − (m/n²) v dn
       = dm v̂ + c (dv − v̂⟨v̂, dv⟩)

The bracket is the projection of dv onto the plane across v.  A projection is its own transpose, so it
moves across the inner product unchanged.

*Inner product.*

    ⟨q, dw⟩ = ⟨q, v̂⟩ dm + c (⟨q, dv⟩ − ⟨q, v̂⟩⟨v̂, dv⟩)
            = ⟨q, v̂⟩ dm + ⟨c (q − v̂⟨v̂, q⟩), dv⟩

*Conclusion* (arXiv:2402.09353, eq. 7 and 6; the paper's ∇_{W′}L is our Q):

    m̄ = ⟨q, v̂⟩                   the part of q along the row
    v̄ = c (q − v̂⟨v̂, q⟩)         the part of q across the row: ⟨v̄, v⟩ = 0

So q is divided between m and v without overlap.  If the norm is *held constant* (§4.3, eq. 11), dn = 0
above, the term with v̂ never appears, and

    v̄ = c q          which is the exact v̄ + c m̄ v̂

The exact gradient has the term −c m̄ v̂, which takes away the part along the row; holding the norm leaves
it out.  What is left out has the length c|m̄|: it is small once m has nearly converged.

*To the factors.*  dV = s dB A + s B dA, hence ⟨V̄, dV⟩ = ⟨s V̄ Aᵀ, dB⟩ + ⟨s Bᵀ V̄, dA⟩ and

    B̄ = s V̄ Aᵀ          Ā = s Bᵀ V̄

A row v = 0 has no direction: its v̂ and c are defined as 0, and then so are its gradients.
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


@np.errstate(under="ignore")
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
    """Return the cotangents of x, A and B for the cotangent G of y: see the derivation above.

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
    The length of a row of W is m, wherever B A turns it: (3, 0) + (0, 4) = (3, 4) points elsewhere,
    but still has the length 3.

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
    """Return the cotangents of x, A, B, m and V for the cotangent G of y: see the derivation above.

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
    Exactly differentiated, V is pulled only across its row; with the norm held constant, also along it:

    >>> G, x, s = np.array([[1.0]]), np.array([[5.0, 10.0]]), 1
    >>> W0, A, B, m = np.array([[3.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[4.0]]), np.array([5.0])
    >>> exact = dora_gradients(G, x, W0, A, B, m, s, detach_norm=False)
    >>> exact.V.round(12), exact.m
    (array([[-1.6,  1.2]]), array([11.]))
    >>> dora_gradients(G, x, W0, A, B, m, s, detach_norm=True).V  # more by c m̄ v̂, with c = 1
    array([[ 5., 10.]])
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
