r"""LoRA and DoRA: a frozen linear layer and a trained low-rank correction.

Everywhere the same names and shapes:

    W0  (out, in)   the frozen weight        r       the rank, small
    A   (r, in)     trained                  s       the scaling, α/r (rsLoRA: α/√r)
    B   (out, r)    trained, starts at 0     V       W0 + s B A, what both layers are about
    m   (out,)      DoRA's magnitudes        ‖V‖     the norms of the rows of V, shape (out,)

LoRA (Hu et al., arXiv:2106.09685, eq. 3) acts with the weight V:

    y = x Vᵀ + b = x W0ᵀ + b + s (x Aᵀ) Bᵀ

DoRA (Liu et al., arXiv:2402.09353, eq. 5) separates each row of V into its length and its direction,
trains the length as m, and lets B A change only the direction:

    y = (m/‖V‖) ∘ (x Vᵀ) + b = (m/‖V‖) ∘ (x W0ᵀ + s (x Aᵀ) Bᵀ) + b

The paper draws its weights as (in, out) and therefore speaks of columns.  At the start B = 0 and
m = ‖W0‖, and both layers equal the frozen one.

**The gradients**, with G = Ȳ, the cotangent of y, of shape (N, out) for N rows of x.  For LoRA
dy = s (x dAᵀ) Bᵀ + s (x Aᵀ) dBᵀ, hence

    B̄ = s Gᵀ (x Aᵀ)        Ā = s (G B)ᵀ x        x̄ = G W0 + s (G B) A

For DoRA let c = m/‖V‖, and V̂ the rows of V at unit length.  The weight it acts with is c ∘ V (row i
times cᵢ), whose cotangent is Gᵀx.  The magnitude sees how far that points along each row,

    m̄ = ⟨Gᵀx, V̂⟩ per row                                                      (eq. 7)

and V can move both in itself and in its norm, d‖V‖ = ⟨V̂, dV⟩ per row:

    V̄ = c ∘ (Gᵀx − V̂ ⟨V̂, Gᵀx⟩)         exact: the part of Gᵀx across each row  (eq. 6)
    V̄ = c ∘ Gᵀx                         ‖V‖ held constant                      (eq. 11)

after which the chain rule through V = W0 + s B A gives, in both cases,

    B̄ = s V̄ Aᵀ              Ā = s Bᵀ V̄

Section 4.3 of the paper and PEFT hold ‖V‖ constant, because that needs less memory and costs at most
0.2 points of accuracy there; so ``detach_norm=True`` is the default.  It drops −c ∘ m̄ ∘ V̂ from V̄, a term
along the rows.  What remains is *not* the derivative of the loss, and finite differences disagree with
it, unless they, too, hold the norm where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.init import Scheme, initial_factors
from loradora.nn import Dropout, Linear, Module, check_finite, check_positive
from minigrad import Tensor
from minigrad.ops import add_into, as_rows


class Adapted(Module):
    """A layer that acts as a Linear with a ``weight`` of its own making, and a ``bias``."""

    @property
    def weight(self) -> Tensor:
        """The weight that this layer acts with, (out, in), as a constant."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """The bias that this layer acts with, (out,), or None."""
        raise NotImplementedError

    def merge(self, safe_merge: bool = True) -> Linear:
        """Return a plain Linear with this weight and bias; change nothing.

        Raises
        ------
        ValueError
            If NaN or infinity has got into them, naming the tensors it came from; not with
            ``safe_merge=False``.
        """
        with np.errstate(all="ignore"):
            weight, bias = self.weight, self.bias
        parts = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        if safe_merge and not all(np.isfinite(t.data).all() for t in parts.values()):
            sources = [n for n, p in self.named_parameters() if not np.isfinite(p.data).all()]
            results = [n for n, t in parts.items() if not np.isfinite(t.data).all()]
            raise ValueError(f"cannot merge: {', '.join(sources or results)} holds NaN or infinity")
        return plain_linear(Tensor(weight.data), None if bias is None else Tensor(bias.data))


class LowRankLinear(Adapted):
    """What LoRA and DoRA share: the frozen layer, A, B and their scale.

    Parameters
    ----------
    base
        The layer to adapt.  Its arrays are shared and become read-only; it is not changed.
    r
        The rank, at least 1.
    lora_alpha
        α; the correction is scaled by s = α/r.
    use_rslora
        Scale by α/√r instead (Kalajdzievski, arXiv:2312.03732).
    lora_dropout
        Dropout rate on the input of the correction, in [0, 1).
    init_lora_weights
        How A and B start: see :mod:`loradora.init`.
    rng
        The source of randomness; a fresh, unseeded one by default.

    Raises
    ------
    TypeError
        If ``base`` is not a Linear, or ``r`` not an int.
    ValueError
        For r < 1, an α that is not finite, a dropout rate outside [0, 1).
    """

    def __init__(
        self,
        base: Linear,
        *,
        r: int,
        lora_alpha: float,
        use_rslora: bool = False,
        lora_dropout: float = 0.0,
        init_lora_weights: Scheme = True,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not isinstance(base, Linear):
            raise TypeError(
                f"{type(self).__name__} adapts a Linear layer, not {type(base).__name__}"
            )
        check_positive(r=r)
        check_finite(lora_alpha=lora_alpha)
        rng = np.random.default_rng() if rng is None else rng
        self.lora_dropout = Dropout(lora_dropout, rng=rng)
        self.scaling = float(lora_alpha) / (math.sqrt(r) if use_rslora else r)
        W0 = base.weight.data
        A, B, residual = initial_factors(init_lora_weights, W0, r, self.scaling, rng)
        self.base_layer = frozen(base, residual)
        self.A = Tensor(A.astype(W0.dtype), requires_grad=True)
        self.B = Tensor(B.astype(W0.dtype), requires_grad=True)

    @property
    def r(self) -> int:
        """The rank of the correction."""
        return self.A.shape[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer."""
        return self.base_layer.bias

    def correct(self, y: Tensor, x: Any) -> Tensor:
        """Return y + s (x Aᵀ) Bᵀ."""
        return plus_product(y, mg.linear(x, self.A), self.B, self.scaling)

    def as_input(self, x: Tensor | npt.ArrayLike) -> Any:
        """Return x, checked; an array takes the dtype of the layer."""
        x = x if isinstance(x, Tensor) else np.asarray(x, self.A.dtype)
        if x.shape[-1:] != self.A.shape[1:]:
            raise ValueError(f"expected x of shape (…, {self.A.shape[1]}), got {x.shape}")
        return x

    def _describe(self) -> str:
        return f"{self.base_layer._describe()}, r={self.r}, scaling={self.scaling:g}"


class LoRALinear(LowRankLinear):
    """y = x W0ᵀ + b + s (x Aᵀ) Bᵀ (arXiv:2106.09685, eq. 3).

    Parameters
    ----------
    base
        The layer to adapt.
    lora_bias
        B has a trained bias, too: the correction is s (x Aᵀ Bᵀ + B_bias).
    **options
        Those of :class:`LowRankLinear`.

    Raises
    ------
    TypeError, ValueError
        As :class:`LowRankLinear`.

    Examples
    --------
    >>> base = Linear(2, 1, bias=False)
    >>> base.weight.data = np.float32([[3, 0]])
    >>> layer = LoRALinear(base, r=1, lora_alpha=1)
    >>> layer.A.data, layer.B.data = np.float32([[0, 1]]), np.float32([[4]])
    >>> layer.weight  # W0 + s B A
    Tensor([[3., 4.]], dtype=float32)
    >>> layer(np.float32([1, 10])).item()
    43.0
    """

    def __init__(self, base: Linear, *, lora_bias: bool = False, **options: Any) -> None:
        super().__init__(base, **options)
        zeros = np.zeros(self.B.shape[0], self.B.dtype)
        self.B_bias = Tensor(zeros, requires_grad=True) if lora_bias else None

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        x = self.as_input(x)
        return self.correct(self.base_layer(x), self.lora_dropout(x))

    def correct(self, y: Tensor, x: Any) -> Tensor:
        """Return y + s (x Aᵀ Bᵀ + B_bias)."""
        y = super().correct(y, x)
        return y if self.B_bias is None else y + self.scaling * self.B_bias

    @property
    def weight(self) -> Tensor:
        """V = W0 + s B A, as a constant."""
        return Tensor(self.base_layer.weight.data + self.scaling * (self.B.data @ self.A.data))

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer, and with ``lora_bias`` that of the correction."""
        b = self.base_layer.bias
        if self.B_bias is None:
            return b
        if b is None:
            raise ValueError("cannot merge a lora_bias into a layer without a bias")
        return Tensor(b.data + self.scaling * self.B_bias.data)


class DoRALinear(LowRankLinear):
    """y = (m/‖V‖) ∘ (x Vᵀ) + b with V = W0 + s B A (arXiv:2402.09353, eq. 5).

    With dropout the dropped input also meets W0, as in PEFT: the base sees x, and the change of the
    weight, c∘V − W0, sees drop(x).

    Parameters
    ----------
    base
        The layer to adapt.
    detach_norm
        Hold ‖V‖ constant in the backward pass (§4.3 of the paper; PEFT); False gives
        the exact gradient.
    norm_axis
        1 takes the norm of each row of V, per output (the authors' code, PEFT), and m is
        (out,); 0 that of each column, per input, and m is (in,).
    **options
        Those of :class:`LowRankLinear`.

    Raises
    ------
    TypeError, ValueError
        As :class:`LowRankLinear`; ValueError also for another ``norm_axis``.

    Examples
    --------
    B A turns the rows of the weight, and m says how long they are:

    >>> base = Linear(2, 1, bias=False)
    >>> base.weight.data = np.float32([[3, 0]])
    >>> layer = DoRALinear(base, r=1, lora_alpha=1)
    >>> layer.A.data, layer.B.data = np.float32([[0, 1]]), np.float32([[4]])
    >>> layer.weight.data.round(4)  # V = (3, 4), at the length m = 3
    array([[1.8, 2.4]], dtype=float32)
    """

    def __init__(
        self, base: Linear, *, detach_norm: bool = True, norm_axis: int = 1, **options: Any
    ) -> None:
        if norm_axis not in (0, 1):
            raise ValueError(f"norm_axis must be 1 (rows) or 0 (columns), not {norm_axis!r}")
        super().__init__(base, **options)
        self.detach_norm, self.norm_axis = detach_norm, norm_axis
        self._squares: tuple[Any, Any] = (None, None)  # W0, and the squares of its rows
        self._evaluated: tuple[Any, Any, Any] = (None, None, None)  # W0; s, A and B; the divisor
        self.m = Tensor(self._lengths(self.A.data, self.B.data).data, requires_grad=True)

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        x = self.as_input(x)
        dropped = self.lora_dropout(x)
        if self.norm_axis == 1:
            z, W0A = self.product(dropped)
            y = rescale(z, self.m, self.divisor(W0A), self.bias)
        else:
            scaled = dropped * (self.m / self.divisor())
            y = self.correct(self.base_layer(scaled), scaled)
        return y if dropped is x else mg.linear(x - dropped, self.base_layer.weight, y)

    def product(self, x: Any) -> tuple[Tensor, Any]:
        """Return x Vᵀ and, if it comes at little cost, the W0 Aᵀ that the norm needs; else None.

        To multiply W0 by the r rows of A alone costs a third of what 64 rows of x cost, because W0 has to
        be read for it; beside the few rows of x it is nearly free.  (While B = 0 it is not needed: then
        x W0ᵀ is computed as in the base, to be the same bit for bit.)
        """
        W0, h, s = self.base_layer.weight, mg.linear(x, self.A), self.scaling
        if W0.requires_grad:
            return plus_product(mg.linear(x, W0), h, self.B, s), None
        few = x.ndim == 2 and 4 * len(x) <= len(W0)
        if few and self.training and self.detach_norm and self.B.data.any():
            W0A = np.empty((len(W0), self.r), W0.dtype)
            return frozen_product(x, W0.data, h, self.B, s, self.A.data, W0A), W0A
        return frozen_product(x, W0.data, h, self.B, s), None

    def norm(self, W0A: Any = None) -> Tensor:
        """Return ‖V‖ per row (``norm_axis=1``) or column (0).

        A constant if ``detach_norm`` or within ``no_grad``; only then is ``W0A`` of use: W0 Aᵀ, if known.
        """
        if not self.detach_norm and mg.is_grad_enabled():
            return self._lengths(self.A, self.B)
        return self._lengths(self.A.data, self.B.data, W0A)

    def divisor(self, W0A: Any = None) -> Tensor:
        """Return ‖V‖, with infinity for 0: without length there is no direction, and m/‖V‖ is to be 0.

        In evaluation a constant is computed once, and again when s, A, B or W0 have changed.
        """
        if self.training or (not self.detach_norm and mg.is_grad_enabled()):
            return _or_infinity(self.norm(W0A))
        W0, values = self.base_layer.weight.data, (self.scaling, *map(_bytes, (self.A, self.B)))
        if self._evaluated[0] is not W0 or self._evaluated[1] != values:
            self._evaluated = W0, values, _or_infinity(self.norm())
        divisor: Tensor = self._evaluated[2]
        return divisor

    def _lengths(self, A: Any, B: Any, W0A: Any = None) -> Tensor:
        W0 = self.base_layer.weight.data
        if self._squares[0] is not W0:
            W0.setflags(write=False)  # what is remembered of it must stay true
            self._squares = W0, row_squares(W0 if self.norm_axis == 1 else W0.mT)
        if self.norm_axis == 0:  # the columns of V are the rows of Vᵀ = W0ᵀ + s Aᵀ Bᵀ
            W0, A, B = W0.mT, B.mT, A.mT
        return row_norm(W0, A, B, self.scaling, self._squares[1], W0A)

    def _describe(self) -> str:
        exact = "" if self.detach_norm else ", exact norm"
        return super()._describe() + exact + ("" if self.norm_axis == 1 else ", norm of columns")

    @property
    def weight(self) -> Tensor:
        """(m/‖V‖) ∘ V, as a constant."""
        V = self.base_layer.weight.data + self.scaling * (self.B.data @ self.A.data)
        c = self.m.data / self.divisor().data
        return Tensor(c[:, None] * V if self.norm_axis == 1 else V * c)


def _bytes(t: Tensor) -> bytes:
    return t.data.tobytes()


def _or_infinity(norm: Tensor) -> Tensor:
    return norm if norm.data.all() else mg.where(norm <= 0, np.inf, norm)


class LoRASum(Adapted):
    """Several LoRAs of one layer, whose corrections add up: y = x W0ᵀ + b + Σ sᵢ (x Aᵢᵀ) Bᵢᵀ."""

    def __init__(self, layers: Sequence[LoRALinear]) -> None:
        self.layers = list(layers)

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        first, *others = self.layers
        x, y = first.as_input(x), first(x)
        for layer in others:
            y = layer.correct(y, layer.lora_dropout(x))
        return y

    @property
    def weight(self) -> Tensor:
        """W0 + Σ sᵢ Bᵢ Aᵢ, as a constant."""
        W = self.layers[0].weight.data
        return Tensor(sum((a.scaling * (a.B.data @ a.A.data) for a in self.layers[1:]), start=W))

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer."""
        return self.layers[0].bias


# ----------------------------------------------------------------------------- the two formulas


# y = y0 + s h Bᵀ,  dy = dy0 + s dh Bᵀ + s h dBᵀ   ⟹   h̄ = s ȳ B,  B̄ = s ȳᵀ h
@mg.op(
    lambda g, y, y0, h, B, s: g,
    lambda g, y, y0, h, B, s: s * (g @ B),
    lambda g, y, y0, h, B, s: as_rows(g).mT @ (s * as_rows(h)),
)
def plus_product(y0: Any, h: Any, B: Any, s: float) -> Any:
    """Return y0 + s h Bᵀ for y0 (…, out), h (…, r) and B (out, r).

    The scale meets only arrays with r columns, the smallest there are.
    """
    return mg.linear.forward(s * h, B, y0)


def _total(g: Any, z: Any) -> Any:
    """Return Σ g∘z over the rows; of arrays, without making the product."""
    if isinstance(g, np.ndarray):
        return np.einsum("ni,ni->i", as_rows(g), as_rows(z))
    return as_rows(g * z).sum(axis=0)


# y = z∘c + b with c = m/n,  dy = dz∘c + z∘(dm/n − c dn/n) + db   ⟹
@mg.op(
    lambda g, y, z, m, n, b=None: g * (m / n),  #                    z̄ = ȳ∘c
    lambda g, y, z, m, n, b=None: _total(g, z) / n,  #               m̄ = Σ ȳ∘z/n over the rows
    lambda g, y, z, m, n, b=None: -_total(g, z) / n * (m / n),  #    n̄ = −Σ ȳ∘z∘c/n
    lambda g, y, z, m, n, b: g,  #                                   b̄ = ȳ, summed by the engine
)
def rescale(z: Any, m: Any, n: Any, b: Any = None) -> Any:
    """Return (m/n) ∘ z + b for z (…, out) and m, n, b (out,): DoRA's y, if z = x Vᵀ and n = ‖V‖."""
    y = z * (m / n)
    return y if b is None else add_into(y, b)


# the rules of x W0ᵀ + s h Bᵀ, as in linear and plus_product; W0 is frozen
@mg.op(
    lambda g, y, x, W0, h, B, s, *beside: mg.linear(g, W0.T),
    None,
    lambda g, y, x, W0, h, B, s, *beside: s * (g @ B),
    lambda g, y, x, W0, h, B, s, *beside: as_rows(g).mT @ (s * as_rows(h)),
)
def frozen_product(
    x: Any, W0: Any, h: Any, B: Any, s: float, A: Any = None, W0A: Any = None
) -> Any:
    """Return x W0ᵀ + s h Bᵀ for x (…, in) and h (…, r).

    On the way, for x (N, in), W0 is also multiplied by the rows of A.  The array ``W0A`` (out, r) is no
    argument but room for this second result, W0 Aᵀ, through which no gradient goes.
    """
    if A is None:
        return mg.linear.forward(s * h, B, mg.linear.forward(x, W0))
    both = W0 @ np.concatenate([x.T, A.T], axis=1)
    W0A[...] = both[:, len(x) :]
    return mg.linear.forward(s * h, B, both[:, : len(x)].T)


# ----------------------------------------------------------------------------- the norm of V


@np.errstate(all="ignore")
def row_norm(
    W0: npt.NDArray[Any], A: Any, B: Any, s: float, squares: npt.NDArray[Any], W0A: Any = None
) -> Tensor:
    """Return ‖W0 + s B A‖ for each row, without forming B A.

    The definition is ``mg.norm(W0 + s * (B @ A), axis=1)``.  Multiplied out, row i is

        ‖wᵢ + s bᵢA‖² = ‖wᵢ‖² + 2s ⟨wᵢAᵀ, bᵢ⟩ + s² ⟨bᵢ(AAᵀ), bᵢ⟩ = ‖wᵢ‖² + 2s ⟨wᵢAᵀ + s/2 bᵢ(AAᵀ), bᵢ⟩

    which needs r columns where B A needs ``in``.  Where its terms nearly cancel, because s bᵢA is close
    to −wᵢ, or because bᵢA is much shorter than its bound ‖bᵢA‖² ≤ ‖AAᵀ‖ ‖bᵢ‖², the sum keeps few digits
    and may even be negative; such rows are computed by the definition.

    Parameters
    ----------
    W0
        Shape (out, in).
    A
        Shape (r, in), an array or, to be differentiated, a Tensor.
    B
        Shape (out, r), likewise.
    s
        The scaling.
    squares
        :func:`row_squares` of W0, which is computed once.
    W0A
        W0 Aᵀ, shape (out, r), if it is known.

    Returns
    -------
    Tensor
        Shape (out,).

    Examples
    --------
    >>> W0, A, B = np.diag([3.0, 1.0]), np.array([[0.0, 2.0]]), np.array([[2.0], [0.0]])
    >>> row_norm(W0, A, B, 1.0, row_squares(W0))  # of V = [[3, 4], [0, 1]]
    Tensor([5., 1.])
    """
    W0A = W0 @ A.mT if W0A is None else W0A
    gram = A @ A.mT
    change = W0A + B @ (s / 2 * gram)
    ones = np.ones(B.shape[1], W0.dtype)  # adds up short rows faster than sum(axis=1)
    square = squares + 2 * s * ((change * B) @ ones)
    b, G = np.asarray(B), np.asarray(gram)
    longest = s * s * math.sqrt(np.vdot(G, G))
    sound = square > 0.03 * (squares + longest * ((b * b) @ ones))
    if sound.all():
        return mg.sqrt(square)
    rows = np.flatnonzero(~sound)
    direct = mg.norm(W0[rows] + s * (B[rows] @ A), axis=1)
    square = mg.where(sound, square, 1)
    return mg.where(sound, mg.sqrt(square), mg.scatter(direct, rows, sound.shape))


def row_squares(W0: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ‖wᵢ‖² for each row, and infinity where that under- or overflows, to be told apart."""
    squares = np.einsum("ij,ij->i", W0, W0)
    limits = np.finfo(W0.dtype)
    return np.where(squares >= limits.tiny / limits.eps, squares, np.inf).astype(W0.dtype)


# ----------------------------------------------------------------------------- plain layers


def frozen(layer: Linear, weight: npt.NDArray[Any] | None = None) -> Linear:
    """Return a Linear that shares the arrays of ``layer`` as constants, or has another weight.

    The arrays become read-only, because whoever shares them relies on their values.
    """
    W0 = freeze(layer.weight) if weight is None else freeze(Tensor(weight))
    return plain_linear(W0, None if layer.bias is None else freeze(layer.bias))


def freeze(t: Tensor) -> Tensor:
    """Return a constant that shares the array of ``t``, which becomes read-only."""
    t.data.setflags(write=False)
    return t.detach() if t.requires_grad else t


def plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return a Linear made of the given tensors."""
    linear = Linear.__new__(Linear)
    linear.weight, linear.bias = weight, bias
    return linear
