"""Optimizers: what to do with a gradient.

Names, defaults and formulas are PyTorch's.  A step gives each parameter a new array, so a graph that was
recorded before keeps its values.  State is kept only for parameters that have had a gradient.  It is in
float32 if the parameter is float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from itertools import repeat
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loradora.low_rank import LowRankLinear
from loradora.nn import Change, Module, all_or_none, check_finite, check_model, setting_data
from minigrad import Tensor, hints, norm
from minigrad.ops import like, wide
from minigrad.scopes import at_once

Array: TypeAlias = npt.NDArray[Any]
Groups: TypeAlias = "Iterable[Tensor] | Iterable[Mapping[str, Any]]"
Schedule: TypeAlias = Callable[[float], float]


class Group(MutableMapping[str, Any]):
    """Parameters that are trained alike: ``group["params"]``, and their options by name.

    Set an option as in a dict, ``group["lr"] = 0.01``: it holds from the next step on.  A bad value is
    refused immediately.  The parameters, and the names of the options, cannot change.
    """

    def __init__(self, params: tuple[Tensor, ...], options: Mapping[str, Any]) -> None:
        checked = {name: checked_option(name, value) for name, value in options.items()}
        self._entries: dict[str, Any] = {"params": params, **checked}

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            raise TypeError("the parameters of a group cannot be exchanged: use add_param_group()")
        if name not in self._entries:
            raise ValueError(f"the options of this group are {self._names()}, not {name!r}")
        self._entries[name] = checked_option(name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name!r} cannot be removed from a group")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        options = [f"{n}={v}" for n, v in self._entries.items() if n != "params"]
        return f"Group({len(self['params'])} parameters, {', '.join(options)})"

    def _names(self) -> str:
        return ", ".join(name for name in self._entries if name != "params")


def checked_option(name: str, value: Any) -> Any:
    """Return an option of an optimizer as a float, the betas as two.

    Raises
    ------
    TypeError, ValueError
        If it is not a finite number of at least 0, or a momentum or beta that is not below 1.
    """
    if name == "betas":
        if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
            raise ValueError(f"betas must be two numbers, not {value!r}")
        return tuple(checked_option("beta", beta) for beta in value)
    check_finite(**{name: value})
    if name in ("beta", "momentum") and not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, not {value!r}")
    return float(value)


class Optimizer:
    """What SGD and AdamW share: parameters in groups, each group with options of its own.

    Parameters
    ----------
    params
        Tensors, or groups ``{"params": tensors, "lr": rate, …}``.  A tensor does not move while it
        requires no gradient.
    **options
        The options of every group that does not set its own.

    Attributes
    ----------
    param_groups
        A :class:`Group` for each group: ``optimizer.param_groups[0]["lr"] = 0.01`` sets its rate.
    state
        What is remembered about each parameter that has been moved, by PyTorch's names.
    steps_taken
        How many steps it has taken since it was made.

    Raises
    ------
    TypeError
        For anything but a sequence of Tensors or of groups, for the result of an operation, which is
        not a leaf, and for an option that is not a number.
    ValueError
        For an option that is unknown or out of its range, for a tensor that occurs twice, and if no
        tensor requires a gradient.

    Notes
    -----
    To write your own optimizer, make a subclass with two methods.  ``_moved`` returns the new value of
    one parameter and its new state, and writes to none of its arguments.  ``_fresh`` returns the state of
    a parameter that has not been moved yet; :meth:`load_state_dict` takes names, shapes and dtypes from
    it.
    """

    def __init__(self, params: Groups, **options: Any) -> None:
        self._defaults = {name: checked_option(name, value) for name, value in options.items()}
        self._groups: tuple[Group, ...] = ()
        self._state: dict[Tensor, dict[str, Any]] = {}
        self._steps_taken = 0
        for group in _as_groups(params):
            self.add_param_group(group)
        if not any(p.requires_grad for p in self._parameters()):
            raise ValueError(
                "there is nothing to train: no parameter requires a gradient (an adapter that was loaded "
                "does with is_trainable=True, or after set_adapter)"
            )

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Train more parameters: ``{"params": tensors, "lr": rate, …}``.

        Raises
        ------
        TypeError, ValueError
            As :class:`Optimizer`; nothing is added.
        """
        if not isinstance(group, Mapping):
            raise TypeError(
                f"{_WANTED}{_OR_GROUPS}, not both in one list, nor a {type(group).__name__}"
            )
        if "params" not in group:
            raise ValueError(f"a group needs 'params', a list of Tensors; got {list(group)}")
        unknown = [name for name in group if name not in ("params", *self._defaults)]
        if unknown:
            may_have = ", ".join(self._defaults)
            raise ValueError(f"a group has 'params' and may have {may_have}, not {unknown}")
        params, known = _listed(group["params"]), set(self._parameters())
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{_WANTED}{_OR_GROUPS}, not a list of {hints.kind(p)}")
            if p.op is not None:
                raise TypeError(
                    f"only leaves can be trained, not the result of {p.op.name} (shape {p.shape})"
                )
            if p in known:
                raise ValueError(f"a parameter of shape {p.shape} occurs twice")
            known.add(p)
        options = {name: group.get(name, default) for name, default in self._defaults.items()}
        self._groups += (Group(tuple(params), options),)

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The groups; :meth:`add_param_group` adds more."""
        return self._groups

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """What is remembered about each parameter that has been moved."""
        return self._state

    @property
    def steps_taken(self) -> int:
        """How many steps it has taken since it was made."""
        return self._steps_taken

    def _parameters(self) -> Iterator[Tensor]:
        """Yield every parameter, in the order in which they were given."""
        for group in self.param_groups:
            yield from group["params"]

    # -- options are kept by group: setting one on the optimizer would have no effect, so it is an error

    def __getattr__(self, name: str) -> Any:
        if hasattr(type(self), name):  # a property that fails has its own message
            return object.__getattribute__(self, name)
        raise AttributeError(self._no_attribute(name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the class; a subclass may add its own, but none named like an option."""
        own = name.startswith("_") or hasattr(type(self), name)
        options = vars(self).get("_defaults", ())  # a subclass may set attributes first
        if not own and (name in options or type(self).__module__ == __name__):
            raise AttributeError(self._no_attribute(name))
        super().__setattr__(name, value)

    def _no_attribute(self, name: str) -> str:
        options = vars(self).get("_defaults", {})
        option = name if name in options else "lr"
        return (
            f"{type(self).__name__} has no attribute {name!r}; options are kept by group: "
            f"optimizer.param_groups[0][{option!r}]"
        )

    # -- training

    def zero_grad(self) -> None:
        """Forget all gradients."""
        at_once(object.__setattr__, list(self._parameters()), repeat("grad"), repeat(None))()

    def step(self, factor: float = 1.0) -> None:
        """Move every parameter that has a gradient; ``factor`` multiplies the rates (a schedule).

        A step is taken completely or not at all.  If Ctrl-C or an error ends it early, the parameters
        and the state stay as they were.

        A value too small for its dtype silently becomes 0, even if ``np.seterr`` makes that an error.

        Raises
        ------
        RuntimeError
            If none has a gradient.
        TypeError, ValueError
            If ``factor`` is not a finite number of at least 0, or a gradient that was set does not have
            the shape and dtype of its parameter.
        """
        check_finite(factor=factor)
        if factor < 0:
            raise ValueError(f"factor must not be negative, not {factor!r}")
        changes: list[Change] = []
        states = self._state.copy()
        with np.errstate(under="ignore"):
            for group in self._groups:
                options = group._entries
                rate = float(options["lr"] * factor)
                for p in options["params"]:
                    if p.grad is None or not p.requires_grad:
                        continue
                    _check_gradient(p, p.grad)
                    data, g = wide(p.data), wide(p.grad)  # see _state_dtype
                    moved, states[p] = self._moved(data, g, states.get(p, {}), rate, options)
                    changes.append(setting_data(p, np.asarray(moved, p.dtype)))
        if not changes:
            raise RuntimeError(_NOTHING_TO_MOVE)
        changes.append((self, "_state", states))
        changes.append((self, "_steps_taken", self._steps_taken + 1))
        all_or_none(changes)

    def _moved(
        self, p: Any, g: Any, state: Mapping[str, Any], rate: float, options: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the new value and the new state for the value p and the gradient g.

        Your own optimizer defines this.  All arrays have the dtype of the state; ``state`` is what was
        returned last time, empty at first.  Write to none of the arguments, and return new arrays: they
        take effect only if the whole step succeeds.
        """
        raise NotImplementedError

    @staticmethod
    def _fresh(shape: tuple[int, ...], dtype: npt.DTypeLike) -> dict[str, Any]:
        """Return the state of a parameter that has not been moved yet."""
        raise NotImplementedError

    # -- interruption

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of all that an interrupted training needs from its optimizer, as arrays by name.

        Parameters are numbered in the order in which they were given.  The names are the paths in
        PyTorch's nested state: ``state.0.exp_avg``, ``state.0.step``, ``param_groups.0.lr``, and so on.
        ``param_groups.0.params`` holds the numbers of the parameters.  A parameter that has not moved yet
        has no state.

        ``np.savez(file, **optimizer.state_dict())`` saves it to a file, and
        ``optimizer.load_state_dict(np.load(file))`` reads that file.

        Examples
        --------
        >>> optimizer = SGD([Tensor([1.0], requires_grad=True)], lr=0.1, momentum=0.9)
        >>> optimizer.state_dict()["param_groups.0.lr"]
        array(0.1)
        """
        named = self._options()
        for i, p in enumerate(self._parameters()):
            for name, value in self._state.get(p, {}).items():
                named[f"state.{i}.{name}"] = np.array(value)
        return named

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None:
        """Continue from a state that :meth:`state_dict` returned, options included.

        Raises
        ------
        ValueError
            Listing everything that does not fit: other parameters or groups, shapes, a dtype that would
            lose digits, NaN, the state of another kind of optimizer.  Nothing is changed.
        """
        given = {name: np.asarray(value) for name, value in state.items()}
        check_fit(self.misfits(given))
        values = {
            name: given[name].astype(like.dtype) for name, like in self._expected(given).items()
        }
        options = [
            {n: checked_option(n, values[f"param_groups.{k}.{n}"].tolist()) for n in self._defaults}
            for k in range(len(self.param_groups))
        ]

        moments = _by_number(values)
        states = {p: moments[i] for i, p in enumerate(self._parameters()) if i in moments}
        changes: list[Change] = [(self, "_state", states)]
        for group, new in zip(self.param_groups, options, strict=True):
            changes.append((group, "_entries", group._entries | new))
        all_or_none(changes)

    def misfits(self, given: Mapping[str, Array], names: Sequence[str] = ()) -> list[str]:
        """Return in words what is wrong with a state; parameters are called by ``names`` if given."""
        expected = self._expected(given)
        named = {f"state.{i}.": f"{name}." for i, name in enumerate(names)}

        def label(key: str) -> str:
            number = key[: key.find(".", len("state.")) + 1]
            return named.get(number, number) + key.removeprefix(number)

        wrong = [f"missing {label(key)}" for key in expected if key not in given]
        found = [(label(key), array, expected.get(key)) for key, array in given.items()]
        return wrong + [words for entry in found if (words := _misfit(*entry))]

    def _expected(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Return arrays like those of a state with moments for the same parameters as ``given``."""
        expected = self._options()
        moments = _by_number(given)
        for i, p in enumerate(self._parameters()):
            if i in moments:
                fresh = self._fresh(p.shape, _state_dtype(p))
                expected |= {f"state.{i}.{name}": np.asarray(e) for name, e in fresh.items()}
        return expected

    def _options(self) -> dict[str, Array]:
        """Return the options of all groups, and the numbers of their parameters, by path."""
        named: dict[str, Array] = {}
        first = 0
        for k, group in enumerate(self.param_groups):
            numbers = np.arange(first, first + len(group["params"]))
            for name, value in (dict(group) | {"params": numbers}).items():
                named[f"param_groups.{k}.{name}"] = np.array(value)
            first += len(numbers)
        return named


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless ``optimizer`` is one of this package."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"expected an optimizer, such as ld.AdamW(...), not a {hints.kind(optimizer)}"
        )


_WANTED = "expected a list of Tensors, as model.parameters() is"
_OR_GROUPS = ", or of groups {'params': tensors, ...}"

_NOTHING_TO_MOVE = (
    "no parameter of this optimizer has a gradient (and requires one): there is nothing to move. Either "
    "backward() has not been called since zero_grad(), or the loss was computed from other tensors. "
    "An optimizer is to be built last, from the parameters of the very model that is trained: after "
    "get_peft_model, set_adapter or a merge, and after unpickling"
)


def _listed(params: Any, wanted: str = _WANTED + _OR_GROUPS) -> list[Any]:
    """Return the given parameters or groups as a list."""
    several = isinstance(params, Iterable) and not isinstance(
        params, (Tensor, Module, Mapping, set, frozenset, str, bytes, np.ndarray)
    )
    if not several:
        raise TypeError(f"{wanted}, not a {type(params).__name__}")
    return list(params)


def _as_groups(params: Any) -> list[Any]:
    """Return a list of groups; plain parameters make one group."""
    given = _listed(params)
    return given if any(isinstance(g, Mapping) for g in given) else [{"params": given}]


def _check_gradient(p: Tensor, g: Any) -> None:
    """Raise unless ``g`` has the shape and dtype of ``p``."""
    if not isinstance(g, np.ndarray):
        raise TypeError(f"a gradient is an array, not a {type(g).__name__}: {g!r}")
    data = p.data
    if g.shape != data.shape or g.dtype != data.dtype:
        raise ValueError(
            f"a parameter of shape {p.shape} and dtype {p.dtype} has been given a gradient "
            f"of shape {g.shape} and dtype {g.dtype}"
        )


def _state_dtype(p: Tensor) -> np.dtype[Any]:
    """Return the dtype in which p is moved: its own, except float32 for float16.

    In float16 the square of a gradient of 1e-4 is 0, and so is ε.
    """
    return np.dtype(np.float32) if p.dtype.itemsize == 2 else p.dtype


def _by_number(named: Mapping[str, Array]) -> dict[int, dict[str, Array]]:
    """Return the entries ``state.<number>.<moment>`` by number, and then by moment."""
    found: dict[int, dict[str, Array]] = {}
    for key, value in named.items():
        kind, _, rest = key.partition(".")
        number, _, moment = rest.partition(".")
        if kind == "state" and number.isdecimal():
            found.setdefault(int(number), {})[moment] = value
    return found


def check_fit(wrong: Sequence[str]) -> None:
    """Raise ValueError if anything is wrong with a state."""
    if wrong:
        raise ValueError(f"the state does not fit this optimizer: {'; '.join(wrong)}")


def _misfit(name: str, array: Array, like: Array | None) -> str | None:
    """Return in words how an entry of a state differs from what is expected there, None if it fits."""
    if like is None:
        return f"unexpected {name}"
    if array.shape != like.shape or not np.can_cast(array.dtype, like.dtype):
        found, fitting = (f"{a.dtype} of shape {a.shape}" for a in (array, like))
        return f"{name} is {found}, expected {fitting}"
    if name.endswith(".params") and (array != like).any():
        return f"{name} are {array.tolist()}, expected {like.tolist()}"
    if not np.isfinite(array).all():
        return f"{name} holds NaN or infinity"
    if name.endswith((".step", ".exp_avg_sq")) and (array < 0).any():
        return f"{name} is negative"
    return None


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
        As :class:`Optimizer`.

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
        super().__init__(params, lr=lr, momentum=momentum)

    def _moved(
        self, p: Any, g: Any, state: Mapping[str, Any], rate: float, options: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        if not options["momentum"]:
            return p - rate * g, dict(state)
        velocity = options["momentum"] * state.get("momentum_buffer", 0) + g
        return p - rate * velocity, {"momentum_buffer": velocity}

    @staticmethod
    def _fresh(shape: tuple[int, ...], dtype: npt.DTypeLike) -> dict[str, Any]:
        return {"momentum_buffer": np.zeros(shape, dtype)}


class AdamW(Optimizer):
    """Adam with decoupled weight decay λ (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2).

        m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
        p ← p − η λ p − η m̂ / (√v̂ + ε)   m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)

    t counts the steps in which p had a gradient.  Where the gradient is always 0, only decay moves p.

    Parameters
    ----------
    params
        See :class:`Optimizer`.
    lr
        The learning rate η.
    betas
        β₁ and β₂, in [0, 1).
    eps
        ε.  If it is 0, an entry whose squared gradients were all 0 is moved by the decay alone.
    weight_decay
        λ.

    Raises
    ------
    TypeError, ValueError
        As :class:`Optimizer`.

    Notes
    -----
    Decay means something else for DoRA than for LoRA.  It pulls LoRA's B A to 0, and so the merged weight
    back to W0.  But it also pulls DoRA's m to 0, and with it the merged weight: without any gradient,
    1000 steps at η = λ = 0.01 leave 0.905 W0.  :func:`lora_plus` puts m into a group without decay.

    A float32 gradient beyond 5.8e20 overflows v, as in PyTorch.  NumPy warns, and where v is infinite,
    no gradient moves p any more.

    Examples
    --------
    The first step moves each entry by lr, however large its gradient is: m̂/√v̂ = g/√g² = ±1.

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
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _moved(
        self, p: Any, g: Any, state: Mapping[str, Any], rate: float, options: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        known = state or self._fresh(p.shape, p.dtype)
        beta1, beta2 = options["betas"]
        t = int(known["step"]) + 1
        # in place, but only on arrays that are made here: that takes less time than one-liners
        m = g - known["exp_avg"]
        m *= 1 - beta1
        m += known["exp_avg"]
        v = (1 - beta2) * g
        v *= g
        v += beta2 * known["exp_avg_sq"]
        c, d = 1 - beta1**t, math.sqrt(1 - beta2**t)  # m̂/(√v̂ + ε) = (d/c) m/(√v + dε)
        root = np.sqrt(v)
        if options["eps"] < 1e-37:  # it may be 0 in float32
            root = np.where(root == 0, p.dtype.type(np.inf), root)  # so that 0/(0 + ε) is 0
        root += d * options["eps"]
        step = m / root
        del root  # its memory is used again
        step *= rate * d / c
        moved = (1 - rate * options["weight_decay"]) * p
        moved -= step
        return moved, {"step": t, "exp_avg": m, "exp_avg_sq": v}

    @staticmethod
    def _fresh(shape: tuple[int, ...], dtype: npt.DTypeLike) -> dict[str, Any]:
        zeros = np.zeros(shape, dtype)
        return {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros.copy()}


def lora_plus(
    model: Module, lr: float, ratio: float = 16.0, *, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the groups of LoRA+: B learns ``ratio`` times as fast as A (arXiv:2402.12354).

    They are for :class:`AdamW`, with PEFT's rates: A and any other matrix at ``lr``, B and all vectors
    (biases, DoRA's m) at ``ratio`` times ``lr``.  Unlike in PEFT, no vector decays: there m does, which
    shrinks the merged weight (see :class:`AdamW`).

    Parameters
    ----------
    model
        A model with LoRA or DoRA layers; frozen parameters are left out.
    lr
        The rate of A.  It should be lower than without LoRA+, for example half as large.
    ratio
        How many times as fast B learns; positive.  The paper advises 2⁴ = 16 for hard tasks.
    weight_decay
        The decay of A and B.

    Raises
    ------
    TypeError, ValueError
        For a model without a trainable B, and numbers out of their range.

    Examples
    --------
    >>> from loradora.nn import Linear
    >>> from loradora.adapters import DoRALinear
    >>> layer = DoRALinear(Linear(5, 3), r=2, lora_alpha=4)
    >>> optimizer = AdamW(lora_plus(layer, lr=1e-4))
    >>> [(group["params"][0].shape, group["lr"]) for group in optimizer.param_groups]
    [((2, 5), 0.0001), ((3, 2), 0.0016), ((3,), 0.0016)]
    """
    check_model(model)
    for name, value in {"lr": lr, "ratio": ratio, "weight_decay": weight_decay}.items():
        checked_option(name, value)
    if ratio == 0:
        raise ValueError("ratio must be positive, not 0")
    trained = model.trainable_parameters()
    adapters = [m for _, m in model.named_modules() if isinstance(m, LowRankLinear)]
    Bs = {layer.B for layer in adapters}
    if not Bs.intersection(trained):
        why = "its adapters are frozen" if Bs else "it has no LoRA or DoRA layers"
        raise ValueError(f"LoRA+ needs a B to train, and {why}")
    matrices = [p for p in trained if p.ndim != 1]
    fast = lr * ratio
    return [
        {"params": [p for p in matrices if p not in Bs], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in matrices if p in Bs], "lr": fast, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "lr": fast, "weight_decay": 0.0},
    ]


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients by one factor, so that their norm together is at most ``max_norm``.

    Call it between ``backward()`` and ``step()``.  The factor is PyTorch's,
    min(1, max_norm/(norm + 1e-6)).  A scaled gradient is a new array of the same dtype; the old array is
    not written to.  All gradients are scaled or none, even if Ctrl-C comes.

    Parameters
    ----------
    parameters
        Those without a gradient are ignored.
    max_norm
        At least 0; with ``math.inf`` the norm is only measured.

    Returns
    -------
    float
        The norm of all gradients before scaling, as if they were one long vector.

    Raises
    ------
    FloatingPointError
        If the norm is not finite, because a gradient holds NaN or infinity, or entries near 1e308.
        (PyTorch scales all by NaN, or by 0, unless it is called with ``error_if_nonfinite=True``.)
    TypeError, ValueError
        For anything but Tensors, a ``max_norm`` that is not a number of at least 0, and a gradient that
        was set in another shape or dtype than that of its parameter.

    Examples
    --------
    >>> p, q = (Tensor(0.0, requires_grad=True) for _ in range(2))
    >>> (3 * p + 4 * q).backward()
    >>> clip_grad_norm_([p, q], 1.0), p.grad.item(), q.grad.item()
    (5.0, 0.59999988..., 0.79999984...)
    """
    check_bound(max_norm=max_norm)
    clipped = {}
    for p in _listed(parameters, _WANTED):
        if not isinstance(p, Tensor):
            raise TypeError(f"{_WANTED}, not a list of {hints.kind(p)}")
        if p.grad is not None:
            _check_gradient(p, p.grad)
            clipped[p] = p.grad
    # in float64: ten gradients of 3e38 have a norm that is too large for float32
    total = math.hypot(*(norm(g.astype(np.float64)).item() for g in clipped.values()))
    if not math.isfinite(total):
        raise FloatingPointError(f"the norm of the gradients is {total}: none was scaled")
    factor = max_norm / (total + 1e-6)
    if factor < 1:
        with np.errstate(under="ignore"):
            # asarray: NumPy makes a product without axes a number
            scaled = [np.asarray(like(wide(g) * factor, g)) for g in clipped.values()]
        at_once(object.__setattr__, clipped, repeat("grad"), scaled)()
    return total


def check_bound(**bounds: Any) -> None:
    """Raise unless every value is a number of at least 0; infinity counts as one."""
    for name, value in bounds.items():
        if not (isinstance(value, Real) and value == math.inf):
            checked_option(name, value)


def constant(progress: float) -> float:
    """Return 1: the rate stays as it is."""
    return 1.0


def linear_decay(progress: float) -> float:
    """Return 1 − progress: a straight line from the full rate at 0 down to nothing at 1."""
    return 1 - progress


def cosine_decay(progress: float) -> float:
    """Return (1 + cos π·progress)/2 (Loshchilov & Hutter, arXiv:1608.03983, eq. 5).

    >>> [round(cosine_decay(t), 3) for t in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * progress)) / 2


def warmup(share: float, then: Schedule = linear_decay) -> Schedule:
    """Return a schedule that climbs from 0 to the full rate, and then follows another one.

    In the first steps Adam's moments are poor estimates, and its steps are long.  And A gets no gradient
    until B has moved away from 0.  With low rates at first, neither does harm.

    Parameters
    ----------
    share
        The part of the training that the climb takes, in [0, 1): 10/200 for the first 10 of 200 steps.
        The very first step then has the rate 0, as in Hugging Face's transformers.
    then
        The schedule for the rest, which runs through it from its start to its end.

    Raises
    ------
    TypeError, ValueError
        For a share that is not a number in [0, 1), and a ``then`` that is not a function.

    Examples
    --------
    >>> schedule = warmup(0.2, then=cosine_decay)
    >>> [round(schedule(t), 3) for t in (0, 0.1, 0.2, 0.6, 1)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    check_finite(share=share)
    if not 0 <= share < 1:
        raise ValueError(f"share must lie in [0, 1), not {share!r}: of n steps, k are k/n")
    if not callable(then):
        raise TypeError(f"then must be a function, such as linear_decay, not {then!r}")
    return partial(_warmed_up, share, then)  # which can be pickled; a closure cannot


def _warmed_up(share: float, then: Schedule, progress: float) -> float:
    if progress < share:
        return progress / share
    return then((progress - share) / (1 - share))


if not TYPE_CHECKING:
    __getattr__ = hints.attributes_of(__name__, hints.of_loradora)
