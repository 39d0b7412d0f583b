"""What a function or an object knows: whether one comes from it to a layer of a model.

A view of a model replaces the layers that it finds.  A lambda that knows one by its closure would go on
to use the old one.  So the search follows what lies in containers, attributes, slots, closures, defaults,
used globals, partials, bound methods and weak references.
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
    """Whether one comes from ``value`` to something whose id is in ``tree``, however deep it is known."""
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


#: What knows no layer, or only by way of all there is.
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
    # what a class that was made inside a function knows by its methods
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
