"""What LoRA and DoRA share: the frozen layer, A and B beside it, and the way back to a plain layer.

The formulas are in :mod:`loradora.adapters`, and this module holds what surrounds them.  An adapted layer
replaces a :class:`~loradora.nn.Linear`.  So it has a ``weight`` and a ``bias`` like one, it checks its
input like one, and :meth:`Adapted.merge` turns it back into one.
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
from minigrad import Tensor, hints
from minigrad.scopes import quietly


class Adapted(Module):
    """A layer that acts like its ``base_layer``, a Linear, with another ``weight`` and ``bias``."""

    base_layer: Linear

    def __call__(self, x: Tensor | npt.ArrayLike, *args: Any, **options: Any) -> Tensor:
        """Return ``forward(x)`` in the dtype of the base layer's own result.

        The two differ only over a float16 base, where A and B are float32.
        """
        y, dtype = self.forward(x, *args, **options), self.base_layer.weight.dtype
        if y.dtype == dtype:
            return y
        return y.astype(np.result_type(x.dtype, dtype) if isinstance(x, Tensor) else dtype)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)

        def depth(name: str) -> int:
            """Return how far up the MRO of ``cls`` the class is that defines this."""
            return next(i for i, kind in enumerate(cls.__mro__) if name in vars(kind))

        # a subclass with a new formula would inherit a weight that no longer belongs to it
        if any(hasattr(cls, name) and depth(name) < depth("weight") for name in FORMULA):
            type.__setattr__(cls, "weight", Adapted.weight)

    def as_base(self, t: Tensor) -> Tensor:
        """Return t in the dtype of the base layer; t itself if it already has it."""
        dtype = self.base_layer.weight.dtype
        return t if t.dtype == dtype else t.astype(dtype)

    @property
    def weight(self) -> Tensor:
        """The weight that this layer acts with, of shape (out, in); gradients flow through it."""
        raise NotImplementedError(f"{type(self).__name__} does not define its weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias that this layer acts with, of shape (out,), or None."""
        raise NotImplementedError

    @mg.no_grad()
    def merge(self, safe_merge: bool = True) -> Linear:
        """Return a copy of the base layer with this weight and bias; change nothing.

        Raises
        ------
        ValueError
            If they hold NaN or infinity, naming the tensors it came from (``safe_merge=False`` skips
            this check).  Also if the result needs a bias and the base layer has none.
        NotImplementedError
            If the class has a ``forward`` of its own, but no ``weight`` that goes with it.
        TypeError
            If ``forward`` was replaced on this instance.
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


#: The parts of a layer's formula.  A class that replaces one of them needs a ``weight`` of its own.
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
        Over a float16 base the adapter is float32, because float16 rounds most small steps of training
        away.  False makes the adapter float16 as well.  The result is float16 either way, like that of
        the base.

    Raises
    ------
    TypeError
        If ``base`` is not a Linear or has a ``forward`` of its own, or ``r`` is not an int.
    ValueError
        For r < 1, for an α that is not finite or makes s too large or too small for the dtype of the
        adapter, and for a dropout rate outside [0, 1).
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
                f"{type(self).__name__} adapts a Linear layer, not a {hints.kind(base)}"
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
        # "pissa" and "olora" freeze a residual in place of W0; for the others it is None
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
        """Return that of the base layer, the rank and the scaling."""
        return f"{self.base_layer.extra_repr()}, r={self.r}, scaling={self.scaling:g}"


def _check_scaling(s: float, lora_alpha: float, r: int, dtype: npt.DTypeLike) -> None:
    """Raise ValueError unless s is a normal number of this dtype, or α is 0."""
    limits = np.finfo(dtype)
    if lora_alpha != 0 and not float(limits.tiny) <= abs(s) <= float(limits.max):
        raise ValueError(
            f"lora_alpha={short(lora_alpha)} with r={r} scales by {s:g}, which {limits.dtype} cannot hold"
        )


# ----------------------------------------------------------------------------- plain layers


def frozen(layer: Linear, weight: npt.NDArray[Any] | None = None) -> Linear:
    """Return a copy of ``layer`` that shares its arrays as constants; a given weight replaces its own.

    The arrays become read-only, because every layer that shares them relies on their values.
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
