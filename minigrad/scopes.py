"""Between chapters 2 and 3: what an interrupt cannot tear apart.

Ctrl-C raises KeyboardInterrupt wherever Python happens to be.  More exactly: between two steps of code
that is *written in Python*.  A function written in C is never left halfway.  Hence this is not safe:

    def __enter__(self):        def __exit__(self, *exc):
        self.pauses += 1            self.pauses -= 1

The interrupt may come after ``__exit__`` was called and before its first line has run, and the count
stays up for good.  No ``try`` inside helps, because it is not reached.  So everything here ends in one
call of something that is written in C:

- A :class:`Scope` is a lock, which is held for as long as the ``with`` block runs.  ``with`` calls the
  ``__exit__`` of the lock, which is C.  What is in force is asked of the lock itself, so there is no
  count and no flag that could say something else.
- :func:`at_once` makes many assignments in one call.
- :func:`quietly` runs a function in a context that is prepared once, instead of changing NumPy's settings
  and changing them back.

Python 3.10 has one gap that nothing here can close: an interrupt may come when an exception has left the
block and ``__exit__`` has not been called yet.  Then it is not called.
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
        """A lock that its thread may take again, and must give back as often: ``threading.RLock``."""

        def acquire(self, blocking: bool) -> bool:
            """Take it; without ``blocking`` say whether that could be."""
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
    """Something that is in force inside of a ``with`` block, or while a decorated function runs.

    It concerns the thread that entered it, and there the asyncio task.  A new thread begins outside of
    all scopes.  A new task begins inside of those that it is started in, for as long as they last.

    May be nested, also in itself, and ends with the block, whatever ends that: an exception, an
    interrupt.

    Raises
    ------
    RuntimeError
        On entering one that another thread or task is in: each needs one of its own.
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
            inside = type(place)((*others, self))  # now: Python 3.13 lets a loop jump out of a try
            try:
                if self.acquire(False):
                    here.set(inside)
                    return
            except BaseException:  # an interrupt, which came when the lock was held already
                self.release()
                raise
        raise RuntimeError("another thread or task is inside of this very scope: make one for each")

    # __exit__ is that of the lock: there must be none here

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
        """Return the scopes of this class that are in force here, in the order of their entering."""
        place = here.get()
        if not place.scopes:
            return []
        held = [scope for scope in place.scopes if scope._is_owned()]
        if len(held) < len(place.scopes):  # forget those that have ended
            here.set(type(place)(tuple(held)))
        return [scope for scope in held if isinstance(scope, cls)]

    def leave(self) -> None:
        """Be outside of it here, although its block goes on."""
        place = here.get()
        here.set(type(place)(tuple(s for s in place.scopes if s is not self)))


# ----------------------------------------------------------------------------- where one is


class _Inside(NamedTuple):
    """Where a function is that runs quietly: what it calls runs so anyway."""

    scopes: tuple[Scope, ...]

    def quietly(self, f: Callable[..., Any], *args: Any) -> Any:
        return f(*args)


class _Outside(threading.local):
    """Where everything else is: the same for each thread, but for a context in which NumPy is quiet.

    Two threads cannot be in one context at a time, hence one for each.
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

    1/0 = inf is a value here, not an accident.  The prepared context costs a tenth of ``np.errstate``,
    which matters for small arrays, and an interrupt cannot leave the warnings off.
    """
    result: T = here.get().quietly(f, *args)
    return result


# ----------------------------------------------------------------------------- many assignments


def at_once(function: Callable[..., object], *columns: Iterable[Any]) -> Callable[[], object]:
    """Return a call that applies ``function`` to the rows of ``columns``, to all of them or to none.

    No interrupt comes between, and no other thread, if ``function`` is written in C, too.  It is
    ``object.__setattr__`` for most::

        at_once(object.__setattr__, modules, repeat("training"), modes)()

    What is computed from the rows must be computed before.  Where it undoes something in a ``finally``,
    prepare it before the ``try``: the call itself must be the first thing in the ``finally``.
    """
    return partial(deque, map(function, *columns), 0)
