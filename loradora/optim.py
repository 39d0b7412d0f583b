"""Optimizers: what to do with a gradient.

Names, defaults and formulas are PyTorch's.  A step gives each parameter a new array, so a graph that was
recorded before keeps its values.  State is kept only for those that have had a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loradora.nn import check_finite
from minigrad import Tensor

Array: TypeAlias = npt.NDArray[Any]
Groups: TypeAlias = "Iterable[Tensor] | Iterable[Mapping[str, Any]]"
Schedule: TypeAlias = Callable[[float], float]


class Optimizer:
    """What SGD and AdamW share: parameters in groups, each group with a learning rate.

    Parameters
    ----------
    params
        Tensors, or groups ``{"params": tensors, "lr": rate}``.  Tensors that require no gradient
        are left out.
    lr
        The learning rate, where a group has none of its own.

    Raises
    ------
    TypeError, ValueError
        For a rate that is not a finite number of at least 0, no trainable tensor, one that occurs
        twice, or a group with other entries.
    """

    def __init__(self, params: Groups, lr: float) -> None:
        given: list[Any] = list(params)
        if any(isinstance(p, Tensor) for p in given):
            given = [{"params": given}]
        self.rates: dict[Tensor, float] = {}
        for group in given:
            unknown = sorted(set(group) - {"params", "lr"})
            if unknown:
                raise ValueError(f"a group has 'params' and may have 'lr', not {unknown}")
            rate = group.get("lr", lr)
            check_finite(lr=rate)
            if rate < 0:
                raise ValueError(f"lr must not be negative, not {rate!r}")
            for p in group["params"]:
                if p in self.rates:
                    raise ValueError(f"a parameter of shape {p.shape} occurs twice")
                if p.requires_grad:
                    self.rates[p] = rate
        if not self.rates:
            raise ValueError("there is nothing to train: no parameter requires a gradient")

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.rates:
            p.grad = None

    def step(self, factor: float = 1.0) -> None:
        """Move every parameter that has a gradient; ``factor`` multiplies the rates (a schedule).

        Raises
        ------
        TypeError, ValueError
            If ``factor`` is not a finite number, or a gradient that was set has not the shape and dtype
            of its parameter; nothing is moved.
        """
        check_finite(factor=factor)
        rates = {}
        for p, rate in self.rates.items():
            g: Any = p.grad
            if g is not None:
                if getattr(g, "shape", None) != p.shape or g.dtype != p.dtype:
                    raise ValueError(
                        f"a parameter of shape {p.shape} and dtype {p.dtype} has been given a gradient "
                        f"of shape {np.shape(g)} and dtype {np.asarray(g).dtype}"
                    )
                rates[p] = float(rate * factor)
        for p, rate in rates.items():
            p.assign(np.asarray(self._moved(p, p.grad, rate), p.dtype))

    def _moved(self, p: Tensor, g: Any, rate: float) -> Any:
        """Return the new value of ``p``, a new array, for the gradient g and the learning rate."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum μ:  v ← μv + g,  p ← p − η v.

    Parameters
    ----------
    params
        See :class:`Optimizer`.
    lr
        The learning rate η.
    momentum
        μ, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        As :class:`Optimizer`; ValueError also for a momentum outside [0, 1).

    Examples
    --------
    >>> p = Tensor([1.0], requires_grad=True)
    >>> optimizer = SGD([p], lr=0.1)
    >>> (p * p).sum().backward()  # the gradient is 2
    >>> optimizer.step()
    >>> p.data
    array([0.8])
    """

    def __init__(self, params: Groups, lr: float = 1e-3, momentum: float = 0.0) -> None:
        super().__init__(params, lr)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {momentum!r}")
        self.momentum = float(momentum)
        self.velocity: dict[Tensor, Array] = {}

    def _moved(self, p: Tensor, g: Any, rate: float) -> Any:
        if self.momentum:
            g = self.velocity[p] = self.momentum * self.velocity.get(p, 0) + g
        return p.data - rate * g


class AdamW(Optimizer):
    """Adam with decoupled weight decay λ (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2).

        m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
        p ← p − η λ p − η m̂ / (√v̂ + ε)   m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)

    t counts the steps in which p had a gradient.

    Parameters
    ----------
    params
        See :class:`Optimizer`.
    lr
        The learning rate η.
    betas
        β₁ and β₂, in [0, 1).
    eps
        ε.
    weight_decay
        λ.

    Raises
    ------
    TypeError, ValueError
        As :class:`Optimizer`; ValueError also for betas outside [0, 1), a negative eps or decay.

    Examples
    --------
    The first step has the length lr, whatever the gradient is: m̂/√v̂ = g/√g² = ±1.

    >>> p = Tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = AdamW([p], lr=0.1, weight_decay=0)
    >>> (p * np.array([1e-3, 1e3])).sum().backward()
    >>> optimizer.step()
    >>> p.data.round(4)
    array([0.9, 0.9])
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {betas!r}")
        if not (eps >= 0 and weight_decay >= 0):
            raise ValueError(f"eps and decay must not be negative: {eps!r}, {weight_decay!r}")
        self.betas = float(betas[0]), float(betas[1])
        self.eps, self.weight_decay = float(eps), float(weight_decay)
        self.moments: dict[Tensor, tuple[Any, Any, int]] = {}

    def _moved(self, p: Tensor, g: Any, rate: float) -> Any:
        beta1, beta2 = self.betas
        m, v, t = self.moments.get(p) or (np.zeros_like(g), np.zeros_like(g), 0)
        m += (1 - beta1) * (g - m)
        v *= beta2
        v += (1 - beta2) * g * g
        t += 1
        self.moments[p] = m, v, t
        c, d = 1 - beta1**t, math.sqrt(1 - beta2**t)  # m̂/(√v̂ + ε) = (d/c) m/(√v + dε)
        step = m / (np.sqrt(v) + d * self.eps)
        return (1 - rate * self.weight_decay) * p.data - (rate * d / c) * step


def constant(progress: float) -> float:
    """Return 1: the rate stays as it is."""
    return 1.0


def linear_decay(progress: float) -> float:
    """Return 1 − progress: from the full rate at 0 in a straight line down to nothing at 1."""
    return 1 - progress


def cosine_decay(progress: float) -> float:
    """Return (1 + cos π·progress)/2 (Loshchilov & Hutter, arXiv:1608.03983, eq. 5).

    >>> [round(cosine_decay(t), 3) for t in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * progress)) / 2
