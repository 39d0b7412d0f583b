"""``with`` blocks and assignments that Ctrl-C cannot tear apart.

Ctrl-C raises KeyboardInterrupt between two steps of code that is *written in Python*, wherever it happens
to be.  A function written in C is never left halfway.  So this is not safe:

    def __enter__(self):        def __exit__(self, *exc):
        self.pauses += 1            self.pauses -= 1

The interrupt may come after ``__exit__`` was called, but before its first line has run.  Then the count
never goes down again.  A ``try`` inside does not help, because it is never reached.  So everything here
comes down to a single call of a function written in C:

- A :class:`Scope` is a lock, and it is held for as long as the ``with`` block runs.  ``with`` calls the
  ``__exit__`` of the lock, which is written in C.  Whether the scope is in force is asked of the lock
  itself, so no count or flag can contradict it.
- :func:`at_once` makes many assignments in one call.
- :func:`quietly` runs a function in a context that was prepared once.  So NumPy's settings need not be
  changed and changed back.

Python 3.10 has one gap that cannot be closed here.  If an exception has left the block, and the interrupt
comes before ``__exit__`` is called, then ``__exit__`` is not called at all.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="Scope")
T = TypeVar("T")

if TYPE_CHECKING:

    class Lock:
        """A lock that its thread may take several times and gives back as often: ``threading.RLock``."""

        def acquire(self, blocking: bool) -> bool:
            """Take it, and return whether this succeeded; without ``blocking`` do not wait for it."""
            raise NotImplementedError

        def release(self) -> None:
            """Give it back."""

        def _is_owned(self) -> bool:
            """Whether this thread has it."""
            raise NotImplementedError

        def __exit__(self, *exc: object) -> None:
            """Give it back."""

else:
    Lock = type(threading.RLock())

_LAZY = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction


class Scope(Lock, contextlib.ContextDecorator):
    """Something that is in force inside a ``with`` block, or while a decorated function runs.

    It holds for the thread that entered it, and within that for the asyncio task.  A new thread begins
    outside all scopes.  A new task begins inside the scopes in which it is started, for as long as they
    last.

    Scopes can be nested, a scope even in itself.  A scope ends with its block, also when the block is
    left by an exception or an interrupt.

    Raises
    ------
    RuntimeError
        On entering a scope that another thread or task is in: each needs its own.
    TypeError
        As a decorator of a generator or coroutine function, whose body runs after the call has ended.
    """

    def __init__(self, *given: NoReturn) -> None:
        if given:
            kind = type(self).__name__
            raise TypeError(f"{kind} takes nothing: write 'with {kind}():' or '@{kind}()'")

    def __enter__(self) -> None:
        place = here.get()
        if not self._is_owned() or self in place.scopes:
            others = [s for s in place.scopes if s._is_owned() and s is not self]
            # made before the try, because Python 3.13 lets a loop jump out of it
            inside = type(place)((*others, self))
            try:
                if self.acquire(False):
                    here.set(inside)
                    return
            except BaseException:  # an interrupt that came when the lock was already held
                self.release()
                raise
        raise RuntimeError("another thread or task is inside of this very scope: make one for each")

    # __exit__ is inherited from the lock and must not be written here

    def __call__(self, function: F) -> F:
        """Return ``function`` with a scope like this one around each call."""
        if any(is_lazy(function) for is_lazy in _LAZY):
            raise TypeError(
                f"{function.__name__} runs later, when the call has ended: use 'with' inside it"
            )
        return super().__call__(function)

    def _recreate_cm(self: S) -> S:  # asked by ContextDecorator at each call
        return type(self)()

    def __reduce__(self) -> Any:
        """Return how to copy it: a scope holds nothing but its lock."""
        return type(self), ()

    @classmethod
    def in_force(cls: type[S]) -> list[S]:
        """Return the scopes of this class that are in force here, in the order they were entered."""
        place = here.get()
        if not place.scopes:
            return []
        held = [scope for scope in place.scopes if scope._is_owned()]
        if len(held) < len(place.scopes):  # forget those that have ended
            here.set(type(place)(tuple(held)))
        return [scope for scope in held if isinstance(scope, cls)]

    def leave(self) -> None:
        """Leave the scope early, before its block ends."""
        place = here.get()
        here.set(type(place)(tuple(s for s in place.scopes if s is not self)))


# ----------------------------------------------------------------------------- where one is


class _Inside(NamedTuple):
    """The place of a function that runs quietly: what it calls needs no context of its own."""

    scopes: tuple[Scope, ...]

    def quietly(self, f: Callable[..., Any], *args: Any) -> Any:
        return f(*args)


class _Outside(threading.local):
    """The place of everything else.  Each thread has its own context in which NumPy is quiet.

    (Two threads cannot be in one context at the same time.)
    """

    def __init__(self, scopes: tuple[Scope, ...] = ()) -> None:
        self.scopes = scopes

    @cached_property
    def quietly(self) -> Callable[..., Any]:
        context = _QUIET.copy()
        context.run(here.set, _Inside(self.scopes))
        return context.run


_QUIET = contextvars.copy_context()
_QUIET.run(np.seterr, all="ignore")

NOWHERE = _Outside()

#: Where this thread or task is.  A scope that is named here is in force only while its lock is held.
here: contextvars.ContextVar[_Outside | _Inside]
here = contextvars.ContextVar("here", default=NOWHERE)


def quietly(f: Callable[..., T], *args: Any) -> T:
    """Return ``f(*args)``, computed without NumPy's floating-point warnings.

    1/0 = inf is a value here, not an accident.  Entering the prepared context costs a tenth of
    ``np.errstate``, which matters for small arrays.  And an interrupt cannot leave the warnings off.
    """
    result: T = here.get().quietly(f, *args)
    return result


# ----------------------------------------------------------------------------- many assignments


def at_once(function: Callable[..., object], *columns: Iterable[Any]) -> Callable[[], object]:
    """Return a call that applies ``function`` to all rows of ``columns``, or to none of them.

    If ``function`` is written in C, no interrupt and no other thread can come in between.  Most uses set
    attributes::

        at_once(object.__setattr__, modules, repeat("training"), modes)()

    Compute the columns beforehand.  To undo something in a ``finally``, prepare the call before the
    ``try``: the call must be the first thing in the ``finally``.
    """
    return partial(deque, map(function, *columns), 0)
