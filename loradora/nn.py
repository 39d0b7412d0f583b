"""Layers: a module is an object whose attributes are tensors and other modules.

There is no registration: parameters are found by walking over the attributes of a module.  They are
named by their path, as in PyTorch (``layers.0.weight``), so a checkpoint of either side fits the other.
"""

from __future__ import annotations

import inspect
import itertools
import math
import reprlib
import sys
import warnings
from collections import UserDict, UserList, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

import minigrad as mg
from minigrad import Tensor, hints
from minigrad.scopes import at_once
from minigrad.tensor import as_array, as_reals

M = TypeVar("M", bound="Module")

#: A source of randomness: a generator, a seed for one, or None for an unseeded one.
Rng: TypeAlias = "np.random.Generator | int | None"


class Module:
    """Something with parameters that is called on a Tensor.

    Subclasses define ``forward`` and set tensors and modules as attributes, as such or in lists, tuples
    and dicts, however deep.

    Several threads may compute with one module in evaluation mode.  They also share its mode, its
    parameters and their gradients, so train in one thread only.  Of two backward passes at the same
    time, or two optimizer steps, one may be lost, and which thread gets which random numbers for dropout
    is left to chance.

    Examples
    --------
    >>> class Scale(Module):
    ...     def __init__(self, n):
    ...         self.weight = Tensor(np.ones(n), requires_grad=True)
    ...     def forward(self, x):
    ...         return x * self.weight
    >>> Scale(2)(Tensor([3.0, 4.0]))
    Tensor([3., 4.], op=mul, requires_grad=True)
    """

    training: bool = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            parts = _parts_in(name, value) if isinstance(value, PARTS) else ()
            if any(_is_found_in_an_instance(part) for _, part in parts):
                raise TypeError(
                    f"{cls.__name__}.{name} belongs to the class, where nobody finds it: set it in "
                    "__init__"
                )

    if not TYPE_CHECKING:  # a type checker would conclude that every attribute exists

        def __getattr__(self, name: str) -> Any:
            """Raise AttributeError, with a hint if the table of hints has one for this name."""
            return hints.missing(self, name, hints.of_module)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "requires_grad":
            raise AttributeError("a Module has no requires_grad: call requires_grad_(value)")
        old = vars(self).get(name)
        trained = isinstance(old, Tensor) and old.requires_grad and old.op is None
        result = isinstance(value, Tensor) and value.op is not None
        if trained and (result or isinstance(value, (np.ndarray, np.generic, Real, list))):
            what = "the result of an operation" if result else f"a {type(value).__name__}"
            raise TypeError(f"{name} is trained, and {what} in its place is not: set {name}.data")
        ours, kind = isinstance(value, (Module, Tensor)), type(value)
        if not ours and (hasattr(kind, "named_parameters") or hasattr(kind, "requires_grad_")):
            raise TypeError(
                f"{name} is a {hints.kind(value)}, which would not be trained or saved: make it of "
                "loradora's layers and minigrad's Tensors"
            )
        if isinstance(old, Module) and isinstance(value, FunctionType) and old.parameters():
            raise TypeError(f"{name} has parameters, which a function in its place would lose")
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the output.  Each layer defines this, with the arguments it needs."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(x)")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what ``forward`` returns for the same arguments."""
        return self.forward(*args, **kwargs)

    # -- walking

    def named_parts(self) -> Iterator[tuple[str, Any]]:
        """Yield every tensor and module held directly, by attribute name.

        Those in a list, tuple or dict are named ``name.i`` or ``name.key``, at any depth.

        Names with a leading underscore are private and hold no parameters.  An activation kept as an
        attribute is skipped if it needs a gradient.  One computed in ``no_grad`` looks like a constant.

        Raises
        ------
        TypeError
            For tensors or modules in a set or a deque, where they have no name to be found by.
        ValueError
            For two parts with the same name, and for a container inside itself.
        """
        seen = set()
        for attribute, value in vars(self).items():
            if attribute.startswith("_") or not isinstance(value, (*PARTS, *UNNAMED)):
                continue
            for name, part in _parts_in(attribute, value):
                if name in seen:
                    raise ValueError(f"{type(self).__name__} has two parts called {name!r}")
                seen.add(name)
                yield name, part

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (path, module) for this module and all inside, a shared one under each of its names.

        Raises
        ------
        TypeError, ValueError
            As :meth:`named_parts`; ValueError also for a module that contains itself.
        """
        return _walk(self, prefix, [])

    def modules(self) -> Iterator[Module]:
        """Yield this module and all inside, a shared one once."""
        return iter(dict.fromkeys(module for _, module in self.named_modules()))

    def children(self) -> Iterator[Module]:
        """Yield the modules that are held directly, or in a list, tuple or dict; a shared one once."""
        parts = (part for _, part in self.named_parts())
        return iter(dict.fromkeys(part for part in parts if isinstance(part, Module)))

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (path, tensor) for every parameter, a shared one once, under its first name."""
        seen: set[Tensor] = set()
        for name, p in named_tensors(self):
            if p not in seen:
                seen.add(p)
                yield name, p

    def torch_names(self) -> dict[Tensor, str]:
        """Return the name of each parameter in ``named_parameters`` of the same model in PyTorch."""
        return {p: name for name, p in self.named_parameters()}

    def parameters(self) -> list[Tensor]:
        """Return every parameter once."""
        return [p for _, p in self.named_parameters()]

    def trainable_parameters(self) -> list[Tensor]:
        """Return the parameters that require a gradient."""
        return [p for p in self.parameters() if p.requires_grad]

    # -- state

    def train(self: M, mode: bool = True) -> M:
        """Set training mode here and in all modules inside (dropout is active); in all or in none."""
        modules = [module for _, module in self.named_modules()]
        at_once(object.__setattr__, modules, itertools.repeat("training"), itertools.repeat(mode))()
        return self

    def eval(self: M) -> M:
        """Set evaluation mode here and in all modules inside (dropout is off)."""
        return self.train(False)

    def requires_grad_(self: M, value: bool = True) -> M:
        """Make every parameter trainable, or freeze it."""
        all_or_none([setting_requires_grad(p, value) for p in self.parameters()])
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters, frozen ones included; of all or of none."""
        at_once(
            object.__setattr__, self.parameters(), itertools.repeat("grad"), itertools.repeat(None)
        )()

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of every parameter by name."""
        return {name: np.array(p.data) for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike], *, assign: bool = False) -> None:
        """Set every parameter from ``state``, in the parameter's own dtype; all of them or none.

        PyTorch lists a shared parameter under each of its names, and some files list it under just one.
        ``state`` may do either, as long as the values agree.

        The parameters get copies.  With ``assign=True``, as in PyTorch, they get the arrays themselves
        wherever the dtype is right.  That halves the memory needed, but nobody may write to these arrays
        any more.

        Raises
        ------
        ValueError
            Listing every entry that is missing, unexpected, misshapen, not float, or too large for the
            dtype of its parameter, and every shared parameter whose values differ.
        """
        all_or_none([setting_data(p, value) for p, value in self.fitted(state, assign=assign)])

    def fitted(
        self, state: Mapping[str, npt.ArrayLike], *, assign: bool = False
    ) -> list[tuple[Tensor, npt.NDArray[Any]]]:
        """Return every parameter with the value that load_state_dict would set from ``state``."""
        given = {name: as_array(value, name) for name, value in state.items()}
        wrong = misfits(self.expected(state), given)
        names = self._names_in(given)
        wrong += [
            f"{name} and {names[p]} differ, and are one tensor here"
            for name, p in named_tensors(self)
            if name in given and not same_values(given[name], given[names[p]])
        ]
        found = []
        for p, name in names.items() if not wrong else ():
            with np.errstate(over="ignore", under="ignore"):
                value = given[name].astype(p.dtype, copy=not assign)
            if np.isfinite(given[name]).all() and not np.isfinite(value).all():
                wrong.append(f"{name} has numbers that are too large for {p.dtype}")
            found.append((p, value))
        if wrong:
            raise ValueError("the state does not fit: " + "; ".join(wrong))
        return found

    def expected(self, given: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name; a shared one by each of its names in ``given``.

        If none of them is given, its first name is used.
        """
        names = self._names_in(given)
        return {n: p.shape for n, p in named_tensors(self) if n == names[p] or n in given}

    def _names_in(self, given: Container[str]) -> dict[Tensor, str]:
        """Return the name of every parameter: the first of its names that is given, else its first."""
        names = {p: name for name, p in self.named_parameters()}
        there = [(p, name) for name, p in named_tensors(self) if name in given]
        return names | dict(reversed(there))

    # -- looks

    def extra_repr(self) -> str:
        """Return what distinguishes this layer in ``repr``, in ASCII; each layer defines this."""
        return ""

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        parts = [(n, p) for n, p in self.named_parts() if isinstance(p, Module)]
        own = [(n, p) for n, p in self.named_parts() if isinstance(p, Tensor)]
        notes = [self.extra_repr()] if self.extra_repr() else []
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


def _is_found_in_an_instance(part: Any) -> bool:
    """Whether a walk has to find this part: it is trained, or has a mode that matters."""
    if isinstance(part, Tensor):
        return part.requires_grad
    return any(isinstance(m, Dropout) for _, m in part.named_modules()) or bool(part.parameters())


def _walk(module: Module, path: str, outer: list[Module]) -> Iterator[tuple[str, Module]]:
    """Yield (path, module) for ``module`` and all inside; ``outer`` are the modules around it."""
    if any(module is m for m in outer):
        raise ValueError(
            f"{path!r} leads back to a {type(module).__name__} that it lies in: keep such a reference in "
            "an attribute with a leading underscore"
        )
    yield path, module
    for name, part in module.named_parts():
        if isinstance(part, Module):
            yield from _walk(part, f"{path}.{name}" if path else name, [*outer, module])


def named_tensors(module: Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for every parameter, a shared one under each of its names."""
    for path, inner in module.named_modules():
        for name, part in inner.named_parts():
            if isinstance(part, Tensor):
                yield f"{path}.{name}" if path else name, part


#: What a search for parameters looks into, or finds.
PARTS = (Tensor, Module, list, tuple, dict)

#: Containers that it cannot look into: their items have no names that would stay the same.
UNNAMED: tuple[type, ...] = (
    *(set, frozenset, deque, UserList, UserDict, MappingProxyType, type({}.values())),
    np.ndarray,  # of objects
)


def _parts_in(name: str, value: Any, outer: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and modules that ``value`` is or holds, by name."""
    if isinstance(value, Module) or (isinstance(value, Tensor) and value.op is None):
        yield name, value
    elif isinstance(value, (list, tuple, dict)):
        if any(value is container for container in outer):
            raise ValueError(f"{name} is a {type(value).__name__} that lies in itself")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(item, (*PARTS, *UNNAMED)):
                yield from _parts_in(f"{name}.{key}", item, (*outer, value))
    elif isinstance(value, UNNAMED) and _holds_a_part(value):
        raise TypeError(
            f"{name} is a {type(value).__name__} of tensors or modules, which cannot be named there: "
            "use a list, a tuple or a dict"
        )


def _holds_a_part(value: Any, depth: int = 8) -> bool:
    """Whether a container holds a tensor or a module; very deep ones are ignored."""
    if isinstance(value, (Tensor, Module)):
        return True
    return bool(depth) and any(_holds_a_part(item, depth - 1) for item in items_of(value))


def items_of(value: Any) -> Iterable[Any]:
    """Return the items of a container; nothing for a container of numbers, or for anything else."""
    if isinstance(value, np.ndarray):
        return value.flat if value.dtype == object else ()
    if isinstance(value, (list, tuple, dict, *UNNAMED)):
        container: Any = value
        items: Iterable[Any] = container.values() if isinstance(value, Mapping) else container
        return items
    return ()


def same_values(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays are the same object, or have the same shape and values; NaN equals NaN."""
    floats = one.dtype.kind == other.dtype.kind == "f"
    return one is other or np.array_equal(one, other, equal_nan=floats)


def misfits(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> list[str]:
    """Return in words every difference between ``given`` and the expected names and shapes.

    Each given value needs a ``shape`` and a float ``dtype``.
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


#: One of several attributes that change together: its owner, its name and its new value.
Change: TypeAlias = tuple[object, str, Any]


def setting_data(leaf: Tensor, array: npt.NDArray[Any]) -> Change:
    """Return the change that sets a leaf to ``array`` itself, as :meth:`Tensor.assign` does."""
    data = leaf.data
    if leaf.op is not None or array.shape != data.shape or array.dtype != data.dtype:
        leaf.assign(array)  # which says what is wrong
    return leaf, "_data", array


def setting_requires_grad(leaf: Tensor, value: bool) -> Change:
    """Return the change that makes a leaf trainable, or freezes it."""
    if leaf.op is not None:
        leaf.requires_grad = value  # which says what is wrong
    return leaf, "_requires_grad", bool(value)


def all_or_none(changes: Sequence[Change]) -> None:
    """Set all of these attributes in a single call, so that no error or interrupt can come in between.

    The names are those behind properties, because a property would run code in between.
    """
    if changes:
        at_once(object.__setattr__, *zip(*changes))()


class Linear(Module):
    """y = x Wᵀ + b for x of shape (…, in_features).

    ``weight`` is (out_features, in_features) and ``bias`` (out_features,) or None.  Both are drawn
    uniformly from ±1/√in_features, as in PyTorch.  There the bound of the weight is √3·gain/√in_features
    (He et al., arXiv:1502.01852), with the gain √(2/(1 + a²)) = 1/√3 of a leaky ReLU of slope a = √5.

    Parameters
    ----------
    in_features
        The length of the last axis of x, at least 1.
    out_features
        The length of the last axis of y, at least 1.
    bias
        Whether to add b.
    rng
        The source of randomness, or a seed; a fresh, unseeded one by default.
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
        rng: Rng = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        check_positive(in_features=in_features, out_features=out_features)
        rng = generator(rng)
        bound = 1 / math.sqrt(in_features)
        self.weight = uniform(rng, bound, (out_features, in_features), dtype)
        self.bias = uniform(rng, bound, (out_features,), dtype) if bias else None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias") and not (value is None or isinstance(value, Tensor)):
            raise TypeError(f"{name} must be a Tensor, not a {hints.kind(value)}")
        super().__setattr__(name, value)

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
        return mg.linear(as_operand(x, self.weight.dtype), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the widths, with a note if there is no bias."""
        bias = ", no bias" if self.bias is None else ""
        return f"{self.in_features} -> {self.out_features}{bias}"


def check_formula(layer: Linear, name: str) -> None:
    """Raise TypeError unless ``layer`` computes x Wᵀ + b, where W and b are its attributes.

    A subclass or an instance with a ``forward`` of its own may compute anything, so nothing is known
    about the effect of a change of W.
    """
    kind, held = type(layer), vars(layer).keys()
    inherited = kind.forward is Linear.forward and kind.__call__ is Module.__call__
    if not inherited or "forward" in held or not {"weight", "bias"} <= held:
        raise TypeError(
            f"{name} has a forward, weight or bias of its own, which a LoRA or DoRA of a Linear would "
            "lose: leave it out, with exclude_modules in a config"
        )


def as_operand(x: Tensor | npt.ArrayLike, dtype: npt.DTypeLike) -> Any:
    """Return x if it is a Tensor, else an array of this dtype.

    Raises
    ------
    TypeError
        For anything but real numbers, and for a list of Tensors, which would lose their gradients.
    """
    if isinstance(x, Tensor) or (type(x) is np.ndarray and x.dtype == dtype):
        return x
    with np.errstate(under="ignore"):
        return as_reals(x).astype(dtype, copy=False)


def generator(rng: Rng) -> np.random.Generator:
    """Return the generator that ``rng`` stands for; raise TypeError or ValueError if it is not valid."""
    try:
        if isinstance(rng, bool):
            raise TypeError("a bool is no seed")
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng must be a Generator, a seed or None, not {rng!r}") from error


@np.errstate(under="ignore")
def uniform(
    rng: np.random.Generator, bound: float, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> Tensor:
    """Return a trainable tensor drawn uniformly from ±bound."""
    return Tensor(rng.uniform(-bound, bound, shape).astype(dtype), requires_grad=True)


def short(value: Any) -> str:
    """Return a repr that fits into a message, however large or deep the value is."""
    form = reprlib.Repr()
    form.maxstring = form.maxother = 80
    try:
        text = form.repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = f"an {type(value).__name__} of very many digits"
    return text if len(text) <= 200 else f"{text[:197]}..."


def warn(message: str) -> None:
    """Give a UserWarning for the line that called into this package, from any depth inside it."""
    package, level, frame = __name__.partition(".")[0], 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def check_model(model: Any) -> None:
    """Raise TypeError unless ``model`` is a Module of this package."""
    if not isinstance(model, Module):
        advice = ""
        if hasattr(model, "state_dict"):
            advice = (
                ": build it of loradora's layers, and give it load_state_dict(net.state_dict())"
            )
        raise TypeError(f"expected a model, a loradora.Module, not a {hints.kind(model)}{advice}")


def check_integer(**values: Any) -> None:
    """Raise unless every value is an int (not a bool)."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, not {short(value)}")


def check_positive(**values: Any) -> None:
    """Raise unless every value is an int (not a bool) from 1 to ``sys.maxsize``."""
    check_integer(**values)
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {short(int(value))}")
        if value > sys.maxsize:
            raise ValueError(f"{name} must be at most {sys.maxsize}, not {short(int(value))}")


def check_finite(**values: Any) -> None:
    """Raise unless every value is a finite real number (not a bool)."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, not {short(value)}")
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an integer that no float can hold
            finite = False
        if not finite:
            raise ValueError(f"{name} must be finite, not {short(value)}")


class ReLU(Module):
    """max(x, 0), entry by entry."""

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return max(x, 0)."""
        return mg.relu(x)


class Tanh(Module):
    """The hyperbolic tangent, entry by entry."""

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return tanh(x)."""
        return mg.tanh(x)


class Sigmoid(Module):
    """σ(x) = 1/(1 + e⁻ˣ), entry by entry."""

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return σ(x)."""
        return mg.sigmoid(x)


class GELU(Module):
    """x·Φ(x), entry by entry: see :func:`minigrad.gelu`.

    Raises
    ------
    ValueError
        For an ``approximate`` other than ``"none"``, the exact Φ, or ``"tanh"``.
    """

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        mg.gelu(0.0, approximate)  # which refuses what it cannot compute
        self.approximate = approximate

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return x·Φ(x)."""
        return mg.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """Return the form."""
        return f"approximate={self.approximate!r}"


class Flatten(Module):
    """All axes from ``start_dim`` on made into one: by default (N, …) becomes (N, features).

    Raises
    ------
    TypeError
        For a ``start_dim`` that is not an integer.
    """

    def __init__(self, start_dim: int = 1) -> None:
        check_integer(start_dim=start_dim)
        self.start_dim = start_dim

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return x in its new shape; IndexError if it has no axis ``start_dim``."""
        return mg.flatten(x, self.start_dim)

    def extra_repr(self) -> str:
        """Return the first axis that is flattened."""
        return f"start_dim={self.start_dim}"


class Dropout(Module):
    """Zero each entry with probability p while training and scale the others by 1/(1 − p).

    Source: Srivastava et al., "Dropout", JMLR 15 (2014), in the inverted form.

    Parameters
    ----------
    p
        The probability of zeroing, in [0, 1).
    rng
        The source of randomness, or a seed; a fresh, unseeded one by default.

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

    def __init__(self, p: float = 0.5, *, rng: Rng = None) -> None:
        self.p = p
        self.rng: np.random.Generator = generator(rng)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _rate(value) if name == "p" else value)

    def forward(self, x: Any) -> Any:
        """Return x thinned out; x itself in evaluation mode or for p = 0."""
        x = x if isinstance(x, Tensor) else as_reals(x)
        if not self.training or self.p == 0:
            return x
        kept = self.rng.random(x.shape) >= self.p
        return mg.mul(x, kept) * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"p={self.p}"


def _rate(p: Any) -> float:
    """Return a dropout rate, checked."""
    if isinstance(p, bool) or not isinstance(p, Real):
        raise TypeError(f"the dropout rate must be a number, not {p!r}")
    if not 0 <= float(p) < 1:
        raise ValueError(f"the dropout rate must lie in [0, 1), not {p!r}")
    return float(p)


class Sequential(Module):
    """Modules applied one after the other; they are named ``0``, ``1``, … as in PyTorch.

    Raises
    ------
    TypeError
        For anything but a Module, such as a function: write a class whose ``forward`` calls it.
    """

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.isdigit() and not isinstance(value, Module):
            advice = "write a Module whose forward calls it"
            if isinstance(value, (list, tuple)):
                advice = "give them one by one, Sequential(*modules)"
            elif isinstance(value, type):
                advice = f"make one, {value.__name__}()"
            raise TypeError(
                f"Sequential takes Modules, but number {name} is of type {hints.kind(value)}: {advice}"
            )
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Module]:
        return iter([m for n, m in vars(self).items() if isinstance(m, Module) and n[0] != "_"])

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
        The source of randomness, or a seed; a fresh, unseeded one by default.
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
        rng: Rng = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs an input and an output width, got {list(sizes)}")
        rng = generator(rng)
        layers: list[Module] = []
        for width, following in itertools.pairwise(sizes):
            layers += [Linear(width, following, rng=rng, dtype=dtype), ReLU()]
        self.layers = Sequential(*layers[:-1])

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return the logits, shape (…, sizes[-1])."""
        return self.layers(x)


if not TYPE_CHECKING:
    __getattr__ = hints.attributes_of(__name__, hints.of_loradora)
