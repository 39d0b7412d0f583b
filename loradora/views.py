"""Views: a model seen with some of its layers replaced, at the cost of the new layers alone.

A *view* is a copy of a module tree that shares every tensor with it, frozen.  So any number of adapters
lie over one base without touching it.  An adapter is a view with adapted layers.  "Adapter off" is a view
without any.  Merging makes a view with the plain equivalents of the adapted layers, and copies it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Collection, Iterator
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np

from loradora.adapters import freeze
from loradora.nn import Module, check_hides_nothing, named_tensors
from minigrad import Tensor

Replace: TypeAlias = Callable[[Module], "Module | None"]


def rebuild(module: Module, replace: Replace) -> Module:
    """Return a copy of the module tree that shares every tensor, frozen, with some modules replaced.

    What is shared under several names stays shared.  Arrays that are no tensors (buffers) and random
    generators are copied, because a module may change them as it runs.

    Parameters
    ----------
    module
        The root of the tree.  Its arrays become read-only; it is not changed otherwise.
    replace
        Called on a module, returns what stands in for it, or None to copy it and look inside.

    Raises
    ------
    TypeError
        For functions and objects that know tensors or modules of the tree, such as a ``forward`` that was
        set on an instance: they would go on to use the old ones.  And for tensors or modules in a set or
        another container that is not walked.
    """
    done: dict[int, tuple[Any, Any]] = {}

    def visit(part: Any) -> Any:
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
                vars(new).update({name: visit(value) for name, value in vars(part).items()})
        elif isinstance(part, list):
            new = copy.copy(part)
            new[:] = [visit(p) for p in part]
        elif isinstance(part, tuple):
            parts = [visit(p) for p in part]
            new = type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
        elif isinstance(part, dict):
            new = copy.copy(part)
            new.update({key: visit(value) for key, value in part.items()})
        elif isinstance(part, MethodType):
            owner = visit(part.__self__)
            replaced = type(owner) is not type(part.__self__)  # by a layer with methods of its own
            name = part.__func__.__name__
            new = getattr(owner, name) if replaced else MethodType(part.__func__, owner)
        else:
            check_hides_nothing("what is to be adapted", part)
            _check_reach(part)
            if isinstance(part, (np.ndarray, np.random.Generator)):
                new = copy.deepcopy(part)
        done[id(part)] = part, new  # holding on to part keeps its id its own
        return new

    result: Module = visit(module)
    return result


def _check_reach(part: Any) -> None:
    """Raise TypeError for a function or object that knows tensors or modules, which stay the old ones."""
    known: list[Any] = []
    if isinstance(part, FunctionType):
        known += inspect.getclosurevars(part).nonlocals.values()
        known += [*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
    elif isinstance(part, partial):
        known += [getattr(part.func, "__self__", part.func), *part.args, *part.keywords.values()]
    elif not isinstance(part, (type, ModuleType)):
        known += getattr(part, "__dict__", {}).values()
    if any(isinstance(p, (Tensor, Module)) for p in known):
        raise TypeError(
            f"a {type(part).__name__} in what is to be adapted knows layers or tensors, and would go on "
            "to use the old ones: make it a Module, or a method of one"
        )


def take_modes(view: Module, other: Module) -> None:
    """Set each module of ``view`` to training or evaluation as it is in ``other``, at the same place.

    What is not there, such as the parts of an adapted layer, takes the mode of what it lies in.
    """
    modes = {path: module.training for path, module in other.named_modules()}
    for path, module in view.named_modules():
        place = path
        while place not in modes:
            place = place.rpartition(".")[0]
        module.training = modes[place]


def own_copy(module: Module, trainable: Collection[str], path: str = "") -> Module:
    """Return a copy with arrays of its own, of which those in ``trainable`` require a gradient.

    They are named by their paths in the whole model, in which ``module`` has the given ``path``.
    """
    new = copy.deepcopy(module)
    for p in new.parameters():
        p.data = np.array(p.data)  # writable
    for name, p in named_tensors(new):
        p.requires_grad = (f"{path}.{name}" if path else name) in trainable
    return new


@contextlib.contextmanager
def intact(base: Module) -> Iterator[None]:
    """Let what is done inside make arrays of ``base`` read-only, but not if it fails."""
    before = [(array, array.flags.writeable) for array in (p.data for p in base.parameters())]
    try:
        yield
    except BaseException:
        for array, writeable in before:
            array.setflags(write=writeable)
        raise
