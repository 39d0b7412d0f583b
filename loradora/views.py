"""Views: a model seen with some of its layers replaced, at the cost of the new layers alone.

A *view* is a copy of a module tree that shares every tensor with it, frozen.  So any number of adapters
lie over one base without touching it.  An adapter is a view with adapted layers.  "Adapter off" is a view
without any.  Merging makes a view with the plain equivalents of the adapted layers, and copies it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator
from types import MethodType
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
        For a ``forward`` that was set on an instance, unless it is a method: it would go on to call the
        layers of the old tree.  And for tensors or modules in a set or another container that is not
        walked.
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
                _check_forward(part)
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
            new = MethodType(part.__func__, visit(part.__self__))
        else:
            check_hides_nothing("what is to be adapted", part)
            if isinstance(part, (np.ndarray, np.random.Generator)):
                new = copy.deepcopy(part)
        done[id(part)] = part, new  # holding on to part keeps its id its own
        return new

    result: Module = visit(module)
    return result


def _check_forward(module: Module) -> None:
    own = vars(module).get("forward")
    if own is not None and not isinstance(own, MethodType):
        raise TypeError(
            f"the forward of this {type(module).__name__} was replaced by a {type(own).__name__}, which "
            "would go on to call the layers that it knows, not the adapted ones: write a class"
        )


def own_copy(module: Module, trainable: Collection[str], path: str = "") -> Module:
    """Return a copy with arrays of its own, of which those in ``trainable`` require a gradient.

    They are named by their paths in the whole model, in which ``module`` has the given ``path``.
    """
    new = copy.deepcopy(module)
    for p in new.parameters():
        p.data = p.data.copy()  # writable
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
