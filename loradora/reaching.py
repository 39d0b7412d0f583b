"""What a function or an object refers to: whether a layer of a model can be reached from it.

A view of a model replaces the layers that it finds.  A lambda with such a layer in its closure would keep
using the old one.  So the search follows containers, attributes, slots, closures, defaults, used globals,
partials, bound methods and weak references.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Collection
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from loradora.nn import Module, items_of
from minigrad import Op, Tensor


def reaches(value: Any, tree: Collection[int]) -> bool:
    """Whether something whose id is in ``tree`` can be reached from ``value``, at any depth."""
    if isinstance(value, _OPAQUE):
        return False
    found, seen = [value], {id(value)}
    for part in found:  # the list grows while it is walked
        if id(part) in tree:
            return True
        for known in _known_to(part):
            if id(known) not in seen and not isinstance(known, _OPAQUE):
                seen.add(id(known))
                found.append(known)
    return False


#: Kinds that refer to no layer, or only by way of everything else.
_OPAQUE = (type(None), bool, int, float, complex, str, bytes, type, ModuleType, np.generic, Op)


def _known_to(part: Any) -> list[Any]:
    """Return what a function, a container or any other object refers to."""
    if isinstance(part, (Tensor, Module)):
        return []  # another model
    if isinstance(part, FunctionType):
        used = inspect.getclosurevars(part)
        defaults = [*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
        return [*used.nonlocals.values(), *used.globals.values(), *defaults, *vars(part).values()]
    if isinstance(part, MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, partial):
        return [part.func, *part.args, *part.keywords.values()]
    if isinstance(part, weakref.ref):
        return [part()]
    kind, keys = type(part), list(part) if isinstance(part, dict) else []
    # a class made inside a function refers to more through its methods
    methods = vars(kind).values() if "<locals>" in kind.__qualname__ else ()
    own = getattr(part, "__dict__", {}).values()
    return [*items_of(part), *keys, *own, *methods, *_in_slots(part)]


def _in_slots(part: Any) -> list[Any]:
    """Return the values of the slots of an object."""
    values = []
    for kind in type(part).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            values.append(getattr(part, f"_{kind.__name__}{name}" if private else name, None))
    return values
