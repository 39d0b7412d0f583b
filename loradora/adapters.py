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

Section 4.3 of the paper and PEFT hold ‖V‖ constant, because that needs less memory and costs no
accuracy; so ``detach_norm=True`` is the default.  It is *not* the derivative of the loss, and finite
differences disagree with it, unless they, too, hold the norm where it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.init import Scheme, initial_factors
from loradora.nn import Dropout, Linear, Module, check_positive
from minigrad import Tensor


class LowRankLinear(Module):
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
        base: Linear | LoRALinear,
        *,
        r: int,
        lora_alpha: float,
        use_rslora: bool = False,
        lora_dropout: float = 0.0,
        init_lora_weights: Scheme = True,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not isinstance(base, (Linear, LoRALinear)):
            raise TypeError(
                f"{type(self).__name__} adapts a Linear layer, not {type(base).__name__}"
            )
        check_positive(r=r)
        if isinstance(lora_alpha, bool) or not math.isfinite(lora_alpha):
            raise ValueError(f"lora_alpha must be a finite number, not {lora_alpha!r}")
        if init_lora_weights in ("pissa", "olora") and isinstance(base, LoRALinear):
            raise ValueError(
                f"{init_lora_weights!r} takes a part out of W0, which others share here"
            )
        rng = np.random.default_rng() if rng is None else rng
        self.lora_dropout = Dropout(lora_dropout, rng=rng)
        self.scaling = float(lora_alpha) / (math.sqrt(r) if use_rslora else r)
        W0 = base.weight.data
        A, B, residual = initial_factors(init_lora_weights, W0, r, self.scaling, rng)
        self.base_layer = base if isinstance(base, LoRALinear) else frozen(base, residual)
        self.A = Tensor(A.astype(W0.dtype), requires_grad=True)
        self.B = Tensor(B.astype(W0.dtype), requires_grad=True)

    @property
    def r(self) -> int:
        """The rank of the correction."""
        return self.A.shape[0]

    @property
    def weight(self) -> Tensor:
        """The weight that this layer acts with, (out, in), as a constant."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer."""
        return self.base_layer.bias

    def reduced(self, x: Tensor) -> Tensor:
        """Return h = s x Aᵀ, shape (…, r): the smallest array that the scale can meet."""
        return self.scaling * mg.linear(x, self.A)

    def correct(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y + h Bᵀ = y + s (x Aᵀ) Bᵀ."""
        return mg.linear(self.reduced(x), self.B, y)

    def as_input(self, x: Tensor | npt.ArrayLike) -> Any:
        """Return x, checked; an array takes the dtype of the layer."""
        x = x if isinstance(x, Tensor) else np.asarray(x, self.A.dtype)
        if x.shape[-1:] != self.A.shape[1:]:
            raise ValueError(f"expected x of shape (…, {self.A.shape[1]}), got {x.shape}")
        return x

    def merge(self) -> Linear:
        """Return a plain Linear with the weight that this layer acts with; change nothing.

        Raises
        ------
        ValueError
            If an adapter tensor holds NaN or infinity, which would spread to all of W.
        """
        layers = [layer for _, layer in self.named_modules() if isinstance(layer, LowRankLinear)]
        for name, p in (part for layer in layers for part in layer._parts()):
            if isinstance(p, Tensor) and not np.all(np.isfinite(p.data)):
                raise ValueError(f"cannot merge: {name} holds NaN or infinity")
        bias = None if self.bias is None else Tensor(self.bias.data)
        return plain_linear(Tensor(self.weight.data), bias)

    def _describe(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}"


class LoRALinear(LowRankLinear):
    """y = x W0ᵀ + b + s (x Aᵀ) Bᵀ (arXiv:2106.09685, eq. 3).

    Parameters
    ----------
    base
        The layer to adapt; itself a LoRALinear, if corrections are to add up.
    lora_bias
        B has a trained bias, too: the correction is s (x Aᵀ Bᵀ + B_bias).
    **options
        Those of :class:`LowRankLinear`.
    """

    def __init__(
        self, base: Linear | LoRALinear, *, lora_bias: bool = False, **options: Any
    ) -> None:
        super().__init__(base, **options)
        out_features, dtype = self.B.shape[0], self.B.dtype
        self.B_bias = (
            Tensor(np.zeros(out_features, dtype), requires_grad=True) if lora_bias else None
        )

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        x = self.as_input(x)
        y = self.correct(self.lora_dropout(x), self.base_layer(x))
        return y if self.B_bias is None else y + self.scaling * self.B_bias

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer, and with ``lora_bias`` that of the correction."""
        b = self.base_layer.bias
        if self.B_bias is None:
            return b
        if b is None:
            raise ValueError("cannot merge a lora_bias into a layer without a bias")
        return Tensor(b.data + self.scaling * self.B_bias.data)

    @property
    def weight(self) -> Tensor:
        """V = W0 + s B A, as a constant."""
        return Tensor(self.base_layer.weight.data + self.scaling * (self.B.data @ self.A.data))


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
    """

    base_layer: Linear

    def __init__(
        self, base: Linear, *, detach_norm: bool = True, norm_axis: int = 1, **options: Any
    ) -> None:
        if not isinstance(base, Linear):
            raise TypeError(f"DoRALinear adapts a Linear layer, not {type(base).__name__}")
        if norm_axis not in (0, 1):
            raise ValueError(f"norm_axis must be 1 (rows) or 0 (columns), not {norm_axis!r}")
        super().__init__(base, **options)
        self.detach_norm, self.norm_axis = detach_norm, norm_axis
        self._squares: tuple[Any, Any] = (None, None)  # W0 and the squares of its rows
        self._evaluated: tuple[Any, Any, Any] = (None, None, None)  # W0, values of A and B, ‖V‖
        self.m = Tensor(self.norm().data, requires_grad=True)

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        x = self.as_input(x)
        W0, b = self.base_layer.weight, self.base_layer.bias
        dropped = self.lora_dropout(x)
        if self.norm_axis == 1:
            y, AW0 = self.product(dropped)
            c = self.scale(AW0)
            y = y * c if b is None else mg.affine(y, c, b)
        else:
            scaled = dropped * self.scale()
            y = self.correct(scaled, self.base_layer(scaled))
        return y if dropped is x else mg.linear(x - dropped, W0, y)

    def product(self, x: Any) -> tuple[Tensor, Any]:
        """Return x Vᵀ, and A W0ᵀ for the norm (None: not needed, or left to the norm to compute).

        One product of W0 with the rows of x and of A gives both.  The few rows of A cost little beside
        those of x; alone they would cost a third as much, for W0 must be read again.  While B = 0 the
        norm is that of W0, and x W0ᵀ is computed by itself, bit for bit as in the base.
        """
        W0 = self.base_layer.weight
        if self.training and self.detach_norm and x.ndim == 2 and self.B.data.any():
            AW0 = np.empty((self.r, W0.shape[0]), W0.dtype)
            return linear_beside(x, W0.data, self.reduced(x), self.B, self.A.data, AW0), AW0
        return self.correct(x, mg.linear(x, W0)), None

    def scale(self, AW0: Any = None) -> Tensor:
        """Return m/‖V‖; where V has no length it has no direction, and the scale is 0."""
        norm = self.norm(AW0)
        return self.m / (norm if norm.data.all() else mg.where(norm > 0, norm, np.inf))

    def norm(self, AW0: Any = None) -> Tensor:
        """Return ‖V‖ per row (``norm_axis=1``) or column (0): a constant if ``detach_norm``.

        In evaluation mode the constant is computed once for the values that W0, A and B have.
        """
        W0, A, B = self.base_layer.weight.data, self.A.data, self.B.data
        if not self.detach_norm:
            return self._norm(W0, self.A, self.B)
        if self.training:
            return self._norm(W0, A, B, AW0)
        values = A.tobytes(), B.tobytes()
        if self._evaluated[0] is not W0 or self._evaluated[1] != values:
            self._evaluated = W0, values, self._norm(W0, A, B)
        norm: Tensor = self._evaluated[2]
        return norm

    def _norm(self, W0: Any, A: Any, B: Any, AW0: Any = None) -> Tensor:
        if self._squares[0] is not W0:
            self._squares = W0, row_squares(W0 if self.norm_axis == 1 else W0.mT)
        if self.norm_axis == 0:  # the columns of V are the rows of Vᵀ = W0ᵀ + s Aᵀ Bᵀ
            W0, A, B = W0.mT, B.mT, A.mT
        with np.errstate(all="ignore"):
            return row_norm(W0, A, B, self.scaling, self._squares[1], AW0)

    @property
    def weight(self) -> Tensor:
        """(m/‖V‖) ∘ V, as a constant."""
        V = self.base_layer.weight.data + self.scaling * (self.B.data @ self.A.data)
        c = self.scale().data
        return Tensor(c[:, None] * V if self.norm_axis == 1 else V * c)


@mg.op(
    lambda g, y, x, W0, h, B, A, AW0: g @ W0,  #    d(x W0ᵀ + h Bᵀ) = dx W0ᵀ + dh Bᵀ + h dBᵀ
    None,
    lambda g, y, x, W0, h, B, A, AW0: g @ B,
    lambda g, y, x, W0, h, B, A, AW0: g.mT @ h,
    None,
    None,
)
def linear_beside(x: Any, W0: Any, h: Any, B: Any, A: Any, AW0: Any) -> Any:
    """Return x W0ᵀ + h Bᵀ for x (N, in) and h (N, r), and on the way write A W0ᵀ into the array AW0."""
    both = np.concatenate([x, A]) @ W0.T
    AW0[...] = both[len(x) :]
    y = both[: len(x)]
    y += h @ B.T
    return y


def row_norm(
    W0: npt.NDArray[Any], A: Any, B: Any, s: float, squares: npt.NDArray[Any], AW0: Any = None
) -> Tensor:
    """Return ‖W0 + s B A‖ for each row, without forming B A.

    The definition is ``mg.norm(W0 + s * (B @ A), axis=1)``.  Multiplied out, row i is

        ‖wᵢ + s bᵢA‖² = ‖wᵢ‖² + 2s ⟨wᵢAᵀ, bᵢ⟩ + s² ⟨bᵢ(AAᵀ), bᵢ⟩ = ‖wᵢ‖² + 2s ⟨wᵢAᵀ + s/2 bᵢ(AAᵀ), bᵢ⟩

    which needs r columns where B A needs ``in``.  Where its terms nearly cancel, because s bᵢA is close
    to −wᵢ or bᵢA is much shorter than bᵢ and A let expect, the sum keeps few digits and may even be
    negative; such rows are computed by the definition.

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
    AW0
        A W0ᵀ, shape (r, out), if it is known.

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
    W0A = W0 @ A.mT if AW0 is None else AW0.mT
    gram = A @ A.mT
    change = W0A + B @ (s / 2 * gram)
    square = squares + 2 * s * (change * B).sum(axis=1)
    a, b = np.asarray(A), np.asarray(B)
    longest = s * s * np.vdot(a, a) * np.vecdot(b, b)  # ‖s bᵢA‖² ≤ s² ‖A‖² ‖bᵢ‖²
    sound = square > 0.05 * (squares + longest)
    if sound.all():
        return mg.sqrt(square)
    lost = ~sound
    rows = np.flatnonzero(lost)
    direct = mg.norm(W0[rows] + s * (B[rows] @ A), axis=1)
    return mg.where(lost, mg.scatter(direct, rows, lost.shape), mg.sqrt(mg.where(lost, 1, square)))


def row_squares(W0: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ‖wᵢ‖² for each row, and infinity where that under- or overflows, to be told apart."""
    squares = np.einsum("ij,ij->i", W0, W0)
    limits = np.finfo(W0.dtype)
    return np.where(squares >= limits.tiny / limits.eps, squares, np.inf).astype(W0.dtype)


def frozen(layer: Linear, weight: npt.NDArray[Any] | None = None) -> Linear:
    """Return a Linear that shares the arrays of ``layer`` as constants, or has another weight.

    The arrays become read-only, because whoever shares them relies on their values.
    """
    constants = [None if t is None else t.detach() for t in (layer.weight, layer.bias)]
    if weight is not None:
        constants[0] = Tensor(weight)
    for t in constants:
        if t is not None:
            t.data.setflags(write=False)
    W0, b = constants
    assert W0 is not None
    return plain_linear(W0, b)


def plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return a Linear made of the given tensors."""
    linear = Linear.__new__(Linear)
    linear.weight, linear.bias = weight, bias
    return linear
