"""Optimizers: what to do with a gradient.

Names, defaults and formulas are PyTorch's.  Parameters are updated in place, and state is kept only for
those that have had a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
                rates[p] = rate * factor
        for p in rates:
            if not p.data.flags.writeable:  # an adapter relies on it: go on with a copy
                p.data = p.data.copy()
        self._update(rates)

    def _update(self, rates: Mapping[Tensor, float]) -> None:
        """Move every parameter in ``rates``, all of which have a gradient, at its rate."""
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
        self.momentum = momentum
        self.velocity: dict[Tensor, Array] = {}

    def _update(self, rates: Mapping[Tensor, float]) -> None:
        for p, rate in rates.items():
            g: Any = p.grad
            if self.momentum:
                if p not in self.velocity:
                    self.velocity[p] = np.zeros_like(g)
                v = self.velocity[p]
                v *= self.momentum
                v += g
                g = v
            data = p.data
            data -= rate * g


class Moments:
    """AdamW's sums M and V, after t steps, for parameters that move together.

    Each is one vector, with the parameters end to end, so that NumPy is called for all of them at once:
    for small arrays the calls take longer than the arithmetic.
    """

    def __init__(self, params: Sequence[Tensor], M: Array, V: Array, t: int = 0) -> None:
        self.params, self.M, self.V, self.t = params, M, V, t
        self.step = np.empty_like(M)
        ends = np.cumsum([p.size for p in params])
        parts = np.split(self.step, ends[:-1])
        self.steps = [part.reshape(p.shape) for part, p in zip(parts, params)]

    def __reduce__(self) -> Any:  # steps are views, and copied as they are would be none
        return Moments, (self.params, self.M, self.V, self.t)

    def split(self, rates: Mapping[Tensor, float]) -> list[Moments]:
        """Return these, for ever apart if their parameters do not all move, or not at one rate."""
        together: dict[float | None, list[Tensor]] = {}
        for p in self.params:
            together.setdefault(rates.get(p), []).append(p)
        return [self] if len(together) == 1 else [self.part(params) for params in together.values()]

    def part(self, params: Sequence[Tensor]) -> Moments:
        """Return a copy of those of some of the parameters."""
        entries = np.repeat([p in params for p in self.params], [p.size for p in self.params])
        return Moments(params, self.M[entries], self.V[entries], self.t)


class AdamW(Optimizer):
    """Adam with decoupled weight decay λ (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2).

        m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
        p ← p − η λ p − η m̂ / (√v̂ + ε)   m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)

    What is kept are the plain sums M = m/(1 − β₁) = Σ β₁ᵗ⁻ⁱ gᵢ and V = v/(1 − β₂).  With m̂ = κ₁ M and
    v̂ = κ₂² V the factors wait until the step:  η m̂ / (√v̂ + ε) = (η κ₁/κ₂) M / (√V + ε/κ₂).

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
            raise ValueError(
                f"eps and weight_decay must not be negative: {eps!r}, {weight_decay!r}"
            )
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.moments: list[Moments] = []

    def _update(self, rates: Mapping[Tensor, float]) -> None:
        known = {p for moments in self.moments for p in moments.params}
        new: dict[Any, list[Tensor]] = {}
        for p in rates:
            if p not in known:
                new.setdefault(p.dtype, []).append(p)
        for dtype, params in new.items():
            M, V = np.zeros((2, sum(p.size for p in params)), dtype)
            self.moments.append(Moments(params, M, V))
        self.moments = [part for moments in self.moments for part in moments.split(rates)]
        for moments in self.moments:
            if moments.params[0] in rates:
                self._move(moments, rates[moments.params[0]])

    def _move(self, moments: Moments, rate: float) -> None:
        moments.t += 1  # counts the steps in which there was a gradient
        (beta1, beta2), t = self.betas, moments.t
        k1, k2 = (1 - beta1) / (1 - beta1**t), math.sqrt((1 - beta2) / (1 - beta2**t))
        M, V, step = moments.M, moments.V, moments.step
        gradients: Any = [p.grad for p in moments.params]
        g = np.concatenate([g.ravel() for g in gradients], out=step)
        M *= beta1
        M += g
        V *= beta2
        V += np.multiply(g, g, out=step)
        np.sqrt(V, out=step)
        step += self.eps / k2
        np.divide(M, step, out=step)
        step *= rate * k1 / k2
        for p, own in zip(moments.params, moments.steps):
            data = p.data
            if self.weight_decay:
                data *= 1 - rate * self.weight_decay
            data -= own


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
