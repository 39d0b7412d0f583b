"""An operation as an object: a forward on plain arrays, and a rule for each argument with a derivative.

An operation is called like a function, and :mod:`minigrad.tensor` remembers the call.  The parameters of
a rule say by their names which arrays it reads.  So a graph keeps those and no others: see
:class:`Plans`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeAlias, TypeVar

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

P = ParamSpec("P")
S = TypeVar("S")

#: An ndarray; inside a rule that is being recorded, a Tensor.
Array: TypeAlias = Any
Rule: TypeAlias = Callable[..., Array]
Rules: TypeAlias = tuple[Rule | None, ...]
#: For an op of any number of arrays: from a number to a rule.
Each: TypeAlias = Callable[[int], Rule] | None
#: See :class:`Plans`.
Plan: TypeAlias = tuple[tuple[tuple[int, Rule], ...], tuple[int, ...], bool]


class Op(Generic[P]):
    """An operation: its ``forward`` on plain arrays and its ``vjps``, one rule per array argument.

    A rule of ``None`` marks an argument that has no derivative (an index, a condition).
    Arguments beyond the rules (``axis``, ``shape``) are parameters and handed on unchanged.  The rules
    are given all of them by position, however the caller wrote them.

    An op of any number of arrays has its further rules from ``each``: ``each(i)`` is the rule of the
    argument i places beyond those of ``vjps``.
    """

    #: What a Tensor is, and how an op is applied to it.  ``tensor.py`` fills these in; this file needs
    #: only arrays.
    tensor: ClassVar[type[Tensor]]
    apply: ClassVar[Callable[..., Any]]

    def __init__(self, forward: Callable[P, Array], vjps: Rules, each: Each = None) -> None:
        functools.update_wrapper(self, forward)
        self.name = forward.__name__.removeprefix("_")
        self.__name__ = self.name
        # ufuncs of NumPy 2.0 have neither of these two
        self.__qualname__ = getattr(forward, "__qualname__", self.name)
        with contextlib.suppress(ValueError):
            self.__signature__ = _without_annotations(inspect.signature(forward))
        self.forward = forward
        self.each = each
        self.vjps = vjps
        #: How many arguments, counted from the first, have a rule each.
        self.ruled = vjps.index(None) if None in vjps else len(vjps)
        #: From this number on there are only parameters, which have no rule.
        self.arrays = math.inf if each else len(vjps)
        self._check_rules()

    def _check_rules(self) -> None:
        """Raise TypeError for a rule that cannot be called with g, y and the arguments of the forward."""
        named = getattr(self, "__signature__", inspect.Signature()).parameters.values()
        if not named or any(p.kind is p.VAR_POSITIONAL for p in named):
            return
        needed = [p.name for p in named if p.default is p.empty]
        for i, rule in enumerate(self.vjps):
            if rule is None:
                continue
            # the rule of an argument that may be left out is called only if it is there
            given = ["g", "y", *[p.name for p in named][: max(len(needed), i + 1)]]
            try:
                inspect.signature(rule).bind(*given)
            except TypeError as error:
                raise TypeError(
                    f"rule {i} of {self.name} is called as rule({', '.join(given)}): {error}"
                ) from None

    @property
    def vjps(self) -> Rules:
        """The rules; they may be exchanged for others, as a test does that plants a mistake."""
        return self._vjps

    @vjps.setter
    def vjps(self, vjps: Rules) -> None:
        self._vjps = vjps
        self.plans = Plans(self)

    def has_rule(self, i: int) -> bool:
        """Whether there is a derivative by argument ``i``."""
        return self.vjps[i] is not None if i < len(self.vjps) else self.each is not None

    def __call__(self, *args: P.args, **params: P.kwargs) -> Tensor:
        """Apply the operation to Tensors (or arrays, or numbers) and return a Tensor."""
        given: tuple[Any, ...] = self._in_order(args, params) if params else args
        while given and given[-1] is None and self.has_rule(len(given) - 1):
            given = given[:-1]  # a bias of None is as good as a bias left out
        result: Tensor = self.apply(*given)
        return result

    def of(self, *args: Any) -> Array:
        """Apply the operation within a rule: arrays give an array, Tensors among them a Tensor."""
        for a in args:
            if isinstance(a, self.tensor):
                return self.apply(*args)
        forward: Callable[..., Array] = self.forward
        return forward(*args)

    def _in_order(self, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[Any, ...]:
        """Return all arguments by position, up to the last one that was given."""
        names, defaults = self._parameters
        free = names[len(args) :]
        try:
            last = max(map(free.index, params))
            named = [params[n] if n in params else defaults[n] for n in free[: last + 1]]
        except (ValueError, KeyError):  # a name is unknown, taken, or missing
            from minigrad.hints import of_keywords

            raise TypeError(
                f"{self.name}({', '.join(names)}) cannot be called with {len(args)} arguments "
                f"by position and {', '.join(params)} by name{of_keywords(params, names)}"
            ) from None
        return (*args, *named)

    @functools.cached_property
    def _parameters(self) -> tuple[list[str], dict[str, Any]]:
        """The names of the arguments, and the defaults of those that have one."""
        try:
            found = inspect.signature(self).parameters
        except ValueError:
            raise TypeError(
                f"{self.name} takes its arguments by position: its forward tells no names"
            ) from None
        return list(found), {n: p.default for n, p in found.items() if p.default is not p.empty}

    def __get__(self: S, instance: object, owner: type | None = None) -> S:
        """Return the op itself: as an attribute of a class it does not become a method.

        Python treats what has a ``__get__`` as a function, so ``help`` shows the parameters of an op.
        (For the same reason an op in the body of an Enum does not become a member.)
        """
        return self

    def __reduce__(self) -> str:
        """Copy and pickle an op as a function: by its name, as itself."""
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<op {self.name}>"


class Plans(dict[int, Plan]):
    """What the way back needs, for each way to apply an op.

    A key says which arguments need a gradient: it has one bit for each, the first argument lowest, and a
    1 above them all.  For a + b with a trained b it is 0b110.

    A plan has three parts: the rules to call, each with the number of its argument; the numbers of the
    arrays that none of these rules reads; and whether one of them reads y.
    """

    def __init__(self, op: Op[...]) -> None:
        self.op = op
        self.names: dict[Any, list[str]] = {}  # of parameters, asked once for all rules of one code

    def __missing__(self, key: int) -> Plan:
        op, n = self.op, key.bit_length() - 1
        rules: Any = op.vjps
        if op.each is not None:
            rules = (*rules, *map(op.each, range(n - len(rules))))
        needed = tuple((i, rule) for i, rule in enumerate(rules) if key >> i & 1 and i < n)
        different = {getattr(rule, "__code__", i): rule for i, rule in needed}
        answers = [self._unread(rule, n) for rule in different.values()]
        unread = tuple(i for i in range(n) if op.has_rule(i) and all(u[2 + i] for u in answers))
        plan = needed, unread, not all(u[1] for u in answers)
        if len(self) < 256:  # there are more ways only for an op of any number of arrays
            self[key] = plan
        return plan

    def _unread(self, rule: Rule, n: int) -> list[bool]:
        """Return for g, y and n arguments whether a rule does not read them: an underscore says so."""
        code = getattr(rule, "__code__", None)
        names = self.names.get(code) or _positional(rule)
        if code:
            self.names[code] = names
        # *arrays takes all the rest
        return [name.startswith("_") for name in names + names[-1:] * (2 + n - len(names))]


def _positional(rule: Rule) -> list[str]:
    """Return the names of the parameters that a rule is given by position."""
    try:
        parameters = inspect.signature(rule).parameters.values()
    except ValueError:  # it is written in C, and may read whatever it is given
        return ["all"]
    return [p.name for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    """Return the names and defaults of a forward: its types are arrays, those of the op are not."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return inspect.Signature(bare)
