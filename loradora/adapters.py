r"""LoRA and DoRA: a frozen linear layer and a small trained correction.

LoRA (Hu et al., arXiv:2106.09685, eq. 3) leaves the weight W0 of a layer as it is, and adds a product of
two thin matrices to it.  Only these two are trained:

    V = W0 + s B A                                       the changed weight
    y = x Vᵀ + b = x W0ᵀ + b + s (x Aᵀ) Bᵀ               what the layer computes

Everywhere the names and shapes are these:

    W0  (out, in)   the frozen weight        r       the rank, small
    A   (r, in)     trained, starts random   s       the scaling, α/r (rsLoRA: α/√r)
    B   (out, r)    trained, starts at 0     V       W0 + s B A, (out, in)
    m   (out,)      trained, DoRA only       ‖V‖     the lengths of the rows of V, (out,)
    b   (out,)      the frozen bias

A forward computes only the last form of y.  B A would be as large as W0, and x Aᵀ has only r columns.  α
sets the strength of the correction.  Dividing it by r is meant to let one learning rate serve several
ranks (LoRA, §4.1).  At high ranks the steps then become too small, so rsLoRA divides by √r.

DoRA (Liu et al., arXiv:2402.09353, eq. 5) takes each row of V apart into a length and a direction.  It
trains the lengths as m, and leaves only the directions to B A:

    y = c ∘ (x Vᵀ) + b = c ∘ (x W0ᵀ + s (x Aᵀ) Bᵀ) + b   with c = m/‖V‖

c has one entry per output.  It multiplies the columns of x Vᵀ, which is the same as multiplying the rows
of V.  (The paper speaks of columns.  In its authors' code, as here, they are the rows of a weight
(out, in).  Our V is the paper's V + ΔV.)

At the start B = 0 and m = ‖W0‖, so both layers equal the frozen one.  Other starts are in
:mod:`loradora.init`.  The class :class:`~loradora.low_rank.LowRankLinear` makes A, B and s, and has V.
Its ``as_input`` and ``as_base`` only check x and set a dtype.  ``mg.linear(x, w, b)`` is x wᵀ + b, and
``mg.affine(z, c, b)`` is z∘c + b.

The engine differentiates the formulas as they stand here.  One choice is left: does ‖V‖ count as a
function of A and B on the way back, or as a plain number?  The paper (§4.3) and PEFT treat it as a
number.  This saves memory where V is formed, and in the paper's experiments it costs at most 0.2 points
of accuracy, so ``detach_norm=True`` is the default.  The result is *not* the derivative of the loss, and
finite differences disagree with it unless they hold the norm, too.  :mod:`loradora.by_hand` derives both
gradients, step by step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.low_rank import LowRankLinear
from loradora.nn import Linear
from loradora.norms import LowRankNorm
from minigrad import Tensor


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
    Tensor([[3., 4.]], dtype=float32, op=add, requires_grad=True)
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
        # h comes first to save memory: the walk back needs it last, when ȳ is gone
        h = mg.linear(self.lora_dropout(x), self.A)  #   x Aᵀ
        y0 = self.base_layer(x)  #                       x W0ᵀ + b
        y = mg.linear(self.scaling * h, self.B, y0)  #   y0 + s h Bᵀ
        return y if self.B_bias is None else y + self.scaling * self.B_bias

    @property
    def weight(self) -> Tensor:
        """V = W0 + s B A."""
        return self.as_base(self.V)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer, and with ``lora_bias`` that of the correction."""
        b = self.base_layer.bias
        if self.B_bias is None:
            return b
        correction = self.scaling * self.B_bias
        return self.as_base(correction if b is None else b + correction)


class DoRALinear(LowRankLinear):
    """y = (m/‖V‖) ∘ (x Vᵀ) + b with V = W0 + s B A (arXiv:2402.09353, eq. 5).

    Dropout sets some inputs to 0 while training.  With it, the base sees x and the change of the weight
    sees drop(x), as in PEFT: y = x W0ᵀ + b + drop(x) (c∘V − W0)ᵀ with c = m/‖V‖.

    Parameters
    ----------
    base
        The layer to adapt.
    detach_norm
        Hold ‖V‖ constant in the backward pass (§4.3 of the paper; PEFT); False gives
        the exact gradient.
    norm_axis
        1 takes the norm of each row of V, one per output, as the authors' code and PEFT do; m is
        (out,).  0 makes a :class:`ColumnDoRALinear`.
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

    norm_axis = 1

    def __init__(
        self, base: Linear, *, detach_norm: bool = True, norm_axis: int = 1, **options: Any
    ) -> None:
        if norm_axis != self.norm_axis:  # 0 has become a ColumnDoRALinear in __new__, below
            kind = f"{self.norm_axis} (1 for rows, 0 for columns) in {type(self).__name__}"
            raise ValueError(f"norm_axis must be {kind}, not {norm_axis!r}")
        super().__init__(base, **options)
        self.detach_norm = detach_norm
        self.low_rank_norm = LowRankNorm(self.norm_axis)
        self.m = Tensor(self.norm().data, requires_grad=True)

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        x = self.as_input(x)
        dropped = self.lora_dropout(x)
        W0, b = self.base_layer.weight, self.base_layer.bias
        h = mg.linear(dropped, self.A)  #                                   x Aᵀ
        z = mg.linear(self.scaling * h, self.B, mg.linear(dropped, W0))  #  x W0ᵀ + s h Bᵀ = x Vᵀ
        c = self.m / nonzero(self.norm())  #                                m/‖V‖
        y = mg.affine(z, c, b)  #                                           c ∘ (x Vᵀ) + b
        # the base sees x, not drop(x)
        return y if dropped is x else mg.linear(x - dropped, W0, y)

    def norm(self) -> Tensor:
        """Return ‖V‖, of the shape of m; a constant if ``detach_norm`` or within ``no_grad``.

        A first reading may take this as ``mg.norm(V, axis=norm_axis)``.  The same number is computed
        without forming a large V, and where it is a constant only once in evaluation: see
        :mod:`loradora.norms`.
        """
        W0, A, B, s = self.base_layer.weight.data, self.A, self.B, self.scaling
        if not self.detach_norm and mg.is_grad_enabled():
            return self.low_rank_norm(W0, A, B, s)
        compute = self.low_rank_norm if self.training else self.low_rank_norm.remembered
        return compute(W0, A.data, B.data, s)

    @property
    def weight(self) -> Tensor:
        """(m/‖V‖) ∘ V; with ``detach_norm``, ‖V‖ is a constant.

        Here V is formed anyway, so its norm is taken directly.
        """
        V = self.V
        norm = mg.norm(V, axis=self.norm_axis, keepdims=True)
        c = self.m.reshape(norm.shape) / nonzero(norm.detach() if self.detach_norm else norm)
        return self.as_base(c * V)

    def extra_repr(self) -> str:
        """Return the base layer's, rank and scaling, and what is unusual about the norm."""
        exact = "" if self.detach_norm else ", exact norm"
        return super().extra_repr() + exact + ("" if self.norm_axis == 1 else ", norm of columns")

    def __new__(cls, *args: Any, **options: Any) -> DoRALinear:
        """Return an instance of the class that goes with ``norm_axis``."""
        columns = cls is DoRALinear and options.get("norm_axis", 1) == 0
        return super().__new__(ColumnDoRALinear if columns else cls)


def nonzero(norm: Tensor) -> Tensor:
    """Return ‖V‖ as a divisor, with infinity for 0, so that m/‖V‖ is 0.

    A row of zeros has no direction: its output is b, and it has no gradient.
    """
    return norm if norm.data.all() else mg.where(norm <= 0, np.inf, norm)


class ColumnDoRALinear(DoRALinear):
    """y = ((m/‖V‖) ∘ x) Vᵀ + b, with the norm of each *column* of V: a length for each input.

    m has the shape (in,).  This is not the authors' DoRA.  It is sometimes found under that name, because
    the paper speaks of columns.
    """

    norm_axis = 0

    def __init__(self, base: Linear, *, norm_axis: int = 0, **options: Any) -> None:
        super().__init__(base, norm_axis=norm_axis, **options)

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        x = self.as_input(x)
        dropped = self.lora_dropout(x)
        c = (self.m / nonzero(self.norm())).astype(dropped.dtype)  #      m/‖V‖
        z = c * dropped
        h = mg.linear(z, self.A)  #                                      z Aᵀ
        y = mg.linear(self.scaling * h, self.B, self.base_layer(z))  #   z W0ᵀ + b + s h Bᵀ
        return y if dropped is x else mg.linear(x - dropped, self.base_layer.weight, y)

    weight = DoRALinear.weight  # a class with a forward of its own inherits none
