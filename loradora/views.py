"""Views: a model seen with some of its layers replaced, at the cost of only the new layers.

A *view* is a copy of a module tree that shares every tensor with it, frozen.  So one base can carry any
number of adapters and stays untouched.  An adapter is a view with adapted layers.  "Adapter off" is a
view without any.  Merging makes a view with the plain equivalents of the adapted layers, and copies it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator
from types import MethodType
from typing import Any, TypeAlias

import numpy as np

from loradora.low_rank import freeze
from loradora.nn import Change, Module, all_or_none, items_of, named_tensors
from loradora.reaching import reaches
from minigrad import Tensor
from minigrad.scopes import at_once

Replace: TypeAlias = Callable[[Module], "Module | None"]


def rebuild(module: Module, replace: Replace) -> Module:
    """Return a copy of the module tree that shares every tensor, frozen, with some modules replaced.

    What is shared under several names stays shared.  Arrays that are not tensors (buffers) and random
    generators are copied, because a module may change them as it runs.

    Parameters
    ----------
    module
        The root of the tree.  Its arrays become read-only; nothing else about it changes.
    replace
        Called on a module, returns what stands in for it, or None to copy it and look inside.

    Raises
    ------
    TypeError
        For a function or an object that refers to a module or a tensor of the tree, such as a ``forward``
        that was set on an instance: it would keep using the old one.
    """
    done: dict[int, tuple[Any, Any]] = {}
    foreign: list[tuple[str, Any]] = []

    def visit(part: Any, name: str) -> Any:
        if id(part) in done:
            return done[id(part)][1]
        new = part
        if isinstance(part, Tensor):
            new = freeze(part)
        elif isinstance(part, Module):
            new = replace(part)
            if new is None:
                new = copy.copy(part)
                done[id(part)] = part, new  # already here: a part inside may lead back to this one
                inside = f"{type(part).__name__}."
                vars(new).update({n: visit(value, inside + n) for n, value in vars(part).items()})
        elif isinstance(part, (list, tuple, dict)):
            new = _like(part, [visit(p, name) for p in items_of(part)])
        elif isinstance(part, MethodType) and isinstance(part.__self__, Module):
            new = _method_of(visit(part.__self__, name), part)
        else:
            foreign.append((name, part))
            if isinstance(part, (np.ndarray, np.random.Generator)):
                new = copy.deepcopy(part)
        done[id(part)] = part, new  # holding on to part keeps its id its own
        return new

    result: Module = visit(module, type(module).__name__)
    tree = {key for key, (old, _) in done.items() if isinstance(old, (Tensor, Module))}
    for name, part in foreign:
        if reaches(part, tree):
            raise TypeError(
                f"{name} is a {type(part).__name__} that knows a layer or a tensor of the model, and "
                "would go on to use the old one: make it a Module or a method of one, or set it later"
            )
    return result


def _like(container: Any, items: list[Any]) -> Any:
    """Return a list, tuple or dict like ``container``, with these items in it."""
    if isinstance(container, tuple):
        named = hasattr(container, "_fields")
        return type(container)(*items) if named else type(container)(items)
    new = copy.copy(container)
    if isinstance(container, dict):
        new.update(zip(container, items))
    else:
        new[:] = items
    return new


def _method_of(owner: Any, method: MethodType) -> Any:
    """Return the method for another owner: its own, if it is of another class."""
    name = method.__func__.__name__
    if type(owner) is type(method.__self__):
        return MethodType(method.__func__, owner)
    if not hasattr(owner, name):
        kinds = type(method.__self__).__name__, type(owner).__name__
        raise TypeError(
            f"the method {name!r} of a {kinds[0]} is used, but a {kinds[1]} does not have it"
        )
    return getattr(owner, name)


def share_constants(view: Module, base: Module) -> None:
    """Replace the constants of a view by the Tensors of the base that have the same arrays."""
    known = {id(t.data): t for t in base.parameters()}
    for _, module in view.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.requires_grad:
                vars(module)[name] = known.get(id(value.data), value)


def take_modes(view: Module, other: Module) -> None:
    """Set each module of ``view`` to training or evaluation as it is in ``other``, at the same place.

    A module that is not there, such as a part of an adapted layer, takes the mode of the one around it.
    """
    modes = {path: module.training for path, module in other.named_modules()}
    taken: list[Change] = []
    for path, module in view.named_modules():
        place = path
        while place not in modes:
            place = place.rpartition(".")[0]
        taken.append((module, "training", modes[place]))
    all_or_none(taken)


def own_copy(
    module: Module,
    trainable: Collection[str],
    path: str = "",
    copies: dict[int, Any] | None = None,
) -> Module:
    """Return a copy with its own arrays, of which those in ``trainable`` require a gradient.

    They are named by their paths in the whole model, in which ``module`` has the given ``path``.
    ``copies`` is a memo of deepcopy: what other modules of the same memo share, their copies share.
    """
    new = copy.deepcopy(module, copies)
    for p in new.parameters():
        p.data = np.array(p.data)  # writable
    for name, p in named_tensors(new):
        p.requires_grad = (f"{path}.{name}" if path else name) in trainable
    return new


@contextlib.contextmanager
def intact(base: Module) -> Iterator[None]:
    """Inside, arrays of ``base`` may become read-only; if it fails, that is undone."""
    parameters = base.parameters() if isinstance(base, Module) else []  # else it will be refused
    arrays = [p.data for p in parameters]
    as_before = at_once(np.ndarray.setflags, arrays, [a.flags.writeable for a in arrays])
    try:
        yield
    except BaseException:
        as_before()
        raise
