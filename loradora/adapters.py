r"""LoRA and DoRA: a frozen linear layer and a trained correction of low rank.

Everywhere the same names and shapes:

    W0  (out, in)   the frozen weight        r       the rank, small
    A   (r, in)     trained                  s       the scaling, α/r (rsLoRA: α/√r)
    B   (out, r)    trained, starts at 0     V       W0 + s B A, the changed weight
    m   (out,)      DoRA's magnitudes        ‖V‖     the norms of the rows of V, shape (out,)

LoRA (Hu et al., arXiv:2106.09685, eq. 3) acts with the weight V:

    y = x Vᵀ + b = x W0ᵀ + b + s (x Aᵀ) Bᵀ

DoRA (Liu et al., arXiv:2402.09353, eq. 5) separates each row of V into its length and its direction,
trains the length as m, and lets B A change only the direction:

    y = (m/‖V‖) ∘ (x Vᵀ) + b = (m/‖V‖) ∘ (x W0ᵀ + s (x Aᵀ) Bᵀ) + b

Here c = m/‖V‖ has one entry per output: it multiplies the columns of x Vᵀ, or the rows of V.  α sets the
strength of the correction; dividing it by r lets one learning rate do for several ranks.

The paper draws its weights as (in, out) and therefore speaks of columns; our V is its V + ΔV.  At the
start m = ‖V‖ and, unless :mod:`loradora.init` is asked for something else, B = 0.  Then both layers equal
the frozen one.

The engine differentiates what stands here.  What it arrives at is derived by hand in
:mod:`loradora.by_hand`, step by step.  One choice is left to make: whether ‖V‖ moves with V in the
backward pass.  The paper (§4.3) and PEFT treat it as a plain number there.  That needs less memory, and
in the paper's experiments it costs at most 0.2 points of accuracy, so ``detach_norm=True`` is the
default.  The direction it gives is *not* the derivative of the loss.  Finite differences disagree
with it, unless they, too, hold the norm where it is.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.init import Scheme, initial_factors
from loradora.nn import (
    Dropout,
    Linear,
    Module,
    Rng,
    as_operand,
    check_finite,
    check_formula,
    check_positive,
    generator,
    short,
)
from loradora.norms import LowRankNorm
from minigrad import Tensor
from minigrad.scopes import quietly


class Adapted(Module):
    """A layer that acts as a Linear, its ``base_layer``, with another ``weight`` and ``bias``."""

    base_layer: Linear

    def __call__(self, x: Tensor | npt.ArrayLike, *args: Any, **options: Any) -> Tensor:
        """Return ``forward(x)`` in the dtype of the base layer's own result.

        Only over a float16 base is that another one, because there A and B are float32.
        """
        y, dtype = self.forward(x, *args, **options), self.base_layer.weight.dtype
        if y.dtype == dtype:
            return y
        return y.astype(np.result_type(x.dtype, dtype) if isinstance(x, Tensor) else dtype)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)

        def depth(name: str) -> int:
            """Return how far from ``cls`` among its ancestors the class is that defines this."""
            return next(i for i, kind in enumerate(cls.__mro__) if name in vars(kind))

        # with a newer formula, the weight that is inherited would be merged, silently wrong
        if any(hasattr(cls, name) and depth(name) < depth("weight") for name in FORMULA):
            type.__setattr__(cls, "weight", Adapted.weight)

    def as_base(self, t: Tensor) -> Tensor:
        """Return t in the dtype of the base layer; t itself if it has that."""
        dtype = self.base_layer.weight.dtype
        return t if t.dtype == dtype else t.astype(dtype)

    @property
    def weight(self) -> Tensor:
        """The weight that this layer acts with, (out, in), to be differentiated as any result."""
        raise NotImplementedError(f"{type(self).__name__} does not define its weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias that this layer acts with, (out,), or None."""
        raise NotImplementedError

    @mg.no_grad()
    def merge(self, safe_merge: bool = True) -> Linear:
        """Return the base layer with this weight and bias, a copy; change nothing.

        Raises
        ------
        ValueError
            If NaN or infinity has got into them, naming the tensors it came from; not with
            ``safe_merge=False``.  Also if there would be a bias where the base layer has none.
        NotImplementedError
            If a class has a ``forward`` of its own, but no ``weight`` that goes with it.
        TypeError
            If this instance has a ``forward`` of its own.
        """
        if not vars(self).keys().isdisjoint(FORMULA):
            raise TypeError(f"cannot merge a {type(self).__name__} whose forward was replaced")
        # a subclass may compute its weight in plain NumPy
        weight, bias = quietly(lambda: (self.weight, self.bias))
        if bias is not None and self.base_layer.bias is None:
            raise ValueError("cannot merge a lora_bias into a layer without a bias")
        parts = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        bad = [name for name, t in parts.items() if not np.isfinite(t.data).all()]
        if safe_merge and bad:
            sources = [n for n, p in self.named_parameters() if not np.isfinite(p.data).all()]
            raise ValueError(f"cannot merge: {', '.join(sources or bad)} holds NaN or infinity")
        return _with(self.base_layer, **{n: Tensor(self.as_base(t).data) for n, t in parts.items()})


#: What makes up the formula of a layer: who replaces one of these has another weight.
FORMULA = ("__call__", "forward", "as_input", "norm", "V", "bias")


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
        The source of randomness, or a seed; a fresh, unseeded one by default.
    autocast_adapter_dtype
        Over a float16 base the adapter is float32, because training in float16 loses most of what
        small steps add up to.  The result is float16 in any case, as that of the base.  False makes the
        adapter float16, too.

    Raises
    ------
    TypeError
        If ``base`` is not a Linear or has a ``forward`` of its own, or ``r`` is not an int.
    ValueError
        For r < 1, an α that is not finite or too large or small for s in the dtype of the adapter, a
        dropout rate outside [0, 1).
    """

    @np.errstate(under="ignore")
    def __init__(
        self,
        base: Linear,
        *,
        r: int,
        lora_alpha: float,
        use_rslora: bool = False,
        lora_dropout: float = 0.0,
        init_lora_weights: Scheme = True,
        rng: Rng = None,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        if not isinstance(base, Linear):
            raise TypeError(
                f"{type(self).__name__} adapts a Linear layer, not {type(base).__name__}"
            )
        check_formula(base, f"the {type(base).__name__}")
        check_positive(r=r)
        check_finite(lora_alpha=lora_alpha)
        rng = generator(rng)
        self.lora_dropout = Dropout(lora_dropout, rng=rng)
        W0 = base.weight.data
        dtype = np.float32 if W0.dtype == np.float16 and autocast_adapter_dtype else W0.dtype
        self.scaling = float(lora_alpha) / (math.sqrt(r) if use_rslora else r)
        _check_scaling(self.scaling, lora_alpha, r, dtype)
        # for "pissa" and "olora" the residual is frozen in place of W0, else it is None
        A, B, residual = initial_factors(init_lora_weights, W0, r, self.scaling, rng)
        self.base_layer: Linear = frozen(base, residual)
        self.A = Tensor(A.astype(dtype), requires_grad=True)
        self.B = Tensor(B.astype(dtype), requires_grad=True)
        self.train(base.training)

    @property
    def r(self) -> int:
        """The rank of the correction."""
        return self.A.shape[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer."""
        return self.base_layer.bias

    @property
    def V(self) -> Tensor:
        """W0 + s B A, shape (out, in)."""
        return self.base_layer.weight + (self.scaling * self.B) @ self.A

    def as_input(self, x: Tensor | npt.ArrayLike) -> Any:
        """Return x, checked; an array takes the dtype of the layer."""
        checked = as_operand(x, self.base_layer.weight.dtype)
        if checked.shape[-1:] != self.A.shape[1:]:
            raise ValueError(f"expected x of shape (..., {self.A.shape[1]}), got {checked.shape}")
        return checked

    def extra_repr(self) -> str:
        """Return the base layer's, rank and scaling."""
        return f"{self.base_layer.extra_repr()}, r={self.r}, scaling={self.scaling:g}"


def _check_scaling(s: float, lora_alpha: float, r: int, dtype: npt.DTypeLike) -> None:
    """Raise ValueError unless s is a normal number of this dtype, or α is 0."""
    limits = np.finfo(dtype)
    if lora_alpha != 0 and not float(limits.tiny) <= abs(s) <= float(limits.max):
        raise ValueError(
            f"lora_alpha={short(lora_alpha)} with r={r} scales by {s:g}, which {limits.dtype} cannot hold"
        )


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
        # h first: on the way back it comes last, and ȳ is gone when the two parts of x̄ are added
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

    With dropout, as in PEFT, the base sees x, and the change of the weight sees drop(x):
    y = x W0ᵀ + b + drop(x) (c∘V − W0)ᵀ with c = m/‖V‖.

    Parameters
    ----------
    base
        The layer to adapt.
    detach_norm
        Hold ‖V‖ constant in the backward pass (§4.3 of the paper; PEFT); False gives
        the exact gradient.
    norm_axis
        1 takes the norm of each row of V, per output (the authors' code, PEFT), and m is
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
        # the base is to see x, not drop(x)
        return y if dropped is x else mg.linear(x - dropped, W0, y)

    def norm(self) -> Tensor:
        """Return ‖V‖, of the shape of m; a constant if ``detach_norm`` or within ``no_grad``.

        This is ``mg.norm(V, axis=norm_axis)``, which is all that a first reading needs.  But V is formed
        only where that is cheap, and in evaluation a constant is computed once: see
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

        V is formed here in any case, and the norm is that of what was formed, to the last bit.
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

    m has the shape (in,).  This is not the authors' DoRA, but is found under that name, too, because the
    paper draws V transposed.
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

    weight = DoRALinear.weight


# ----------------------------------------------------------------------------- plain layers


def frozen(layer: Linear, weight: npt.NDArray[Any] | None = None) -> Linear:
    """Return a copy that shares the arrays of ``layer`` as constants, or has another weight.

    The arrays become read-only, because whoever shares them relies on their values.
    """
    tensors = {name: t for name, t in vars(layer).items() if isinstance(t, Tensor)}
    if weight is not None:
        tensors["weight"] = Tensor(weight)
    return _with(layer, **{name: freeze(t) for name, t in tensors.items()})


def freeze(t: Tensor) -> Tensor:
    """Return a new constant that shares the array of ``t``, which becomes read-only."""
    t.data.setflags(write=False)
    return t.detach()


def _with(layer: Linear, **tensors: Tensor) -> Linear:
    """Return a copy of the layer with these tensors in place of its own."""
    new = copy.copy(layer)
    vars(new).update(tensors)
    return new
