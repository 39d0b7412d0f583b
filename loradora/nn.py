"""Layers: a module is an object whose attributes are tensors and other modules.

There is no registration.  Walking over the attributes of a module finds its parameters, named by
their path as in PyTorch (``layers.0.weight``), so that checkpoints of both sides fit each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

import minigrad as mg
from minigrad import Tensor

M = TypeVar("M", bound="Module")


class Module:
    """Something with parameters that is called on a Tensor.

    Subclasses set tensors and modules (or lists of modules) as attributes and define ``forward``.
    """

    training: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the output; to be defined by each layer, with the arguments it needs."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(x)")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``forward(x)``, with whatever else it takes."""
        return self.forward(*args, **kwargs)

    # -- walking

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """Yield every tensor and module held directly, by attribute name.

        Those in a list, tuple or dict are named ``name.i`` or ``name.key``.

        Names with a leading underscore are private and hold no parameters.
        """
        for name, value in vars(self).items():
            if name.startswith("_"):
                continue
            if isinstance(value, (Tensor, Module)):
                yield name, value
            elif isinstance(value, (list, tuple, dict)):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                for key, item in items:
                    if isinstance(item, (Tensor, Module)):
                        yield f"{name}.{key}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (path, module) for this module and all inside, a shared one under each of its names."""
        yield prefix, self
        for name, part in self._parts():
            if isinstance(part, Module):
                yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (path, tensor) for every parameter, a shared one once, under its first name."""
        seen: set[Tensor] = set()
        for name, p in self._names():
            if p not in seen:
                seen.add(p)
                yield name, p

    def _names(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (path, tensor) for every parameter, a shared one under each of its names."""
        for path, module in self.named_modules():
            for name, part in module._parts():
                if isinstance(part, Tensor):
                    yield f"{path}.{name}" if path else name, part

    def parameters(self) -> list[Tensor]:
        """Return every parameter once."""
        return [p for _, p in self.named_parameters()]

    def trainable_parameters(self) -> list[Tensor]:
        """Return the parameters that require a gradient."""
        return [p for p in self.parameters() if p.requires_grad]

    # -- state

    def train(self: M, mode: bool = True) -> M:
        """Set training mode here and in all modules inside (dropout is active)."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set evaluation mode here and in all modules inside (dropout is off)."""
        return self.train(False)

    def requires_grad_(self: M, value: bool = True) -> M:
        """Make every parameter trainable, or freeze it."""
        for p in self.parameters():
            p.requires_grad = value
        return self

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of every parameter by name."""
        return {name: p.data.copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None:
        """Set every parameter from ``state``, in the parameter's own dtype; all of them or none.

        PyTorch lists a shared parameter under each of its names; those after the first are passed over.

        Raises
        ------
        ValueError
            Listing every missing, unexpected, misshapen or non-float entry at once.
        """
        wrong = misfits(self.expected(state), {n: np.asarray(v) for n, v in state.items()})
        if wrong:
            raise ValueError("the state does not fit: " + "; ".join(wrong))
        parameters = dict(self.named_parameters())
        values = {name: np.asarray(state[name]).astype(p.dtype) for name, p in parameters.items()}
        for name, p in parameters.items():
            p.data = values[name]

    def expected(self, given: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name, a shared one also by those of its names given."""
        first = dict(self.named_parameters())
        return {n: p.shape for n, p in self._names() if first.get(n) is p or n in given}

    # -- looks

    def _describe(self) -> str:
        """Return what distinguishes this layer in ``repr``."""
        return ""

    def __repr__(self) -> str:
        parts = [(n, p) for n, p in self._parts() if isinstance(p, Module)]
        own = [(n, p) for n, p in self._parts() if isinstance(p, Tensor)]
        notes = [self._describe()] if self._describe() else []
        free = [n for n, p in own if p.requires_grad]
        if own:
            trainable = sum(p.size for n, p in own if n in free)
            some = f" ({', '.join(free)})" if len(free) < len(own) else ""
            notes.append(f"{trainable:,} trainable{some}" if free else "frozen")
        head = f"{type(self).__name__}({', '.join(notes)}"
        if not parts:
            return head + ")"
        inside = "".join(f"\n  ({n}): " + repr(p).replace("\n", "\n  ") for n, p in parts)
        return f"{head}{inside}\n)"


def misfits(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> list[str]:
    """Return everything in which ``given`` differs from the expected names and shapes, in words.

    What is given needs a ``shape`` and a float ``dtype``.
    """
    wrong = [f"missing {name} {shape}" for name, shape in expected.items() if name not in given]
    for name, array in given.items():
        if name not in expected:
            wrong.append(f"unexpected {name} {array.shape}")
            continue
        if array.shape != expected[name]:
            wrong.append(f"{name} has shape {array.shape}, expected {expected[name]}")
        if array.dtype.kind != "f":
            wrong.append(f"{name} has dtype {array.dtype}, expected a float dtype")
    return wrong


class Linear(Module):
    """y = x Wᵀ + b for x of shape (…, in_features).

    ``weight`` is (out_features, in_features) and ``bias`` (out_features,) or None; both are drawn
    uniformly from ±1/√in_features, which is PyTorch's default (He et al., arXiv:1502.01852, with
    gain a = √5).

    Parameters
    ----------
    in_features
        The length of the last axis of x, at least 1.
    out_features
        The length of the last axis of y, at least 1.
    bias
        Whether to add b.
    rng
        The source of randomness; a fresh, unseeded one by default.
    dtype
        Of the parameters.

    Raises
    ------
    ValueError
        For sizes below 1.
    TypeError
        For sizes that are not integers.

    Examples
    --------
    >>> layer = Linear(2, 3)
    >>> layer.weight.data, layer.bias.data = np.float32([[1, 0], [0, 1], [1, 1]]), np.float32([0, 0, 5])
    >>> layer(np.array([[1.0, 10.0]]))
    Tensor([[ 1., 10., 16.]], dtype=float32, op=linear, requires_grad=True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        check_positive(in_features=in_features, out_features=out_features)
        rng = np.random.default_rng() if rng is None else rng
        bound = 1 / math.sqrt(in_features)
        self.weight = uniform(rng, bound, (out_features, in_features), dtype)
        self.bias = uniform(rng, bound, (out_features,), dtype) if bias else None

    @property
    def in_features(self) -> int:
        """The length of the last axis of the input."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """The length of the last axis of the output."""
        return self.weight.shape[0]

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return x Wᵀ + b, shape (…, out_features); an array takes the dtype of the layer."""
        x = x if isinstance(x, Tensor) else np.asarray(x, self.weight.dtype)
        return mg.linear(x, self.weight, self.bias)

    def _describe(self) -> str:
        bias = ", no bias" if self.bias is None else ""
        return f"{self.in_features} → {self.out_features}{bias}"


def uniform(
    rng: np.random.Generator, bound: float, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> Tensor:
    """Return a trainable tensor drawn uniformly from ±bound."""
    return Tensor(rng.uniform(-bound, bound, shape).astype(dtype), requires_grad=True)


def check_positive(**values: Any) -> None:
    """Raise unless every value is an int (not a bool) of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def check_finite(**values: Any) -> None:
    """Raise unless every value is a finite real number (not a bool)."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, not {value!r}")
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an integer that no float can hold
            finite = False
        if not finite:
            raise ValueError(f"{name} must be finite, not {value!r}")


class ReLU(Module):
    """max(x, 0), entry by entry."""

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return max(x, 0)."""
        return mg.relu(x)


class Dropout(Module):
    """Zero each entry with probability p while training and scale the others by 1/(1 − p).

    Source: Srivastava et al., "Dropout", JMLR 15 (2014), in the inverted form.

    Parameters
    ----------
    p
        The probability of zeroing, in [0, 1).
    rng
        The source of randomness; a fresh, unseeded one by default.

    Raises
    ------
    TypeError, ValueError
        For p that is not a number in [0, 1).

    Examples
    --------
    >>> dropout = Dropout(0.5, rng=np.random.default_rng(0))
    >>> dropout(Tensor([1.0, 1.0, 1.0, 1.0]))
    Tensor([2., 0., 0., 0.])
    >>> dropout.eval()(Tensor([1.0, 1.0, 1.0, 1.0]))
    Tensor([1., 1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        if isinstance(p, bool) or not isinstance(p, Real):
            raise TypeError(f"the dropout rate must be a number, not {p!r}")
        if not 0 <= p < 1:
            raise ValueError(f"the dropout rate must lie in [0, 1), not {p!r}")
        self.p: float = float(p)
        self.rng: np.random.Generator = np.random.default_rng() if rng is None else rng

    def forward(self, x: Any) -> Any:
        """Return x thinned out; x itself in evaluation mode or for p = 0."""
        if not self.training or self.p == 0:
            return x
        kept = self.rng.random(x.shape) >= self.p
        return mg.mul(x, kept) * (1 / (1 - self.p))

    def _describe(self) -> str:
        return f"p={self.p}"


class Sequential(Module):
    """Modules applied one after the other; they are named ``0``, ``1``, … as in PyTorch."""

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[Module]:
        return (part for part in vars(self).values() if isinstance(part, Module))

    def __getitem__(self, i: int) -> Module:
        return list(self)[i]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def forward(self, x: Any) -> Any:
        """Return the last module's output; x itself without modules."""
        for module in self:
            x = module(x)
        return x


class MLP(Module):
    """A multilayer perceptron: Linear, ReLU, Linear, …, Linear.

    The linear layers are ``layers.0``, ``layers.2``, ``layers.4``, ….

    Parameters
    ----------
    sizes
        The widths from input to output, at least two.
    rng
        The source of randomness; a fresh, unseeded one by default.
    dtype
        Of the parameters.

    Raises
    ------
    ValueError
        For fewer than two sizes.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        rng: np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs an input and an output width, got {list(sizes)}")
        rng = np.random.default_rng() if rng is None else rng
        layers: list[Module] = []
        for width, following in itertools.pairwise(sizes):
            layers += [Linear(width, following, rng=rng, dtype=dtype), ReLU()]
        self.layers = Sequential(*layers[:-1])

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return the logits, shape (…, sizes[-1])."""
        return self.layers(x)
