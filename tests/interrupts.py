"""Ctrl-C at any moment: work is interrupted by a timer, again and again, wherever it happens to be."""

import random
import signal
from collections.abc import Callable, Iterator

import pytest


class Interrupt(BaseException):
    """What the handler of the timer raises, as that of Ctrl-C raises KeyboardInterrupt."""


needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")


def interrupted(work: Callable[[], object], times: int, longest: float = 5e-5) -> Iterator[int]:
    """Repeat ``work`` until it is interrupted, and yield then; ``times`` times over."""

    def interrupt(*_: object) -> None:
        raise Interrupt

    delays = random.Random(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for n in range(times):
            try:
                signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, longest))
                while True:
                    work()
            except Interrupt:
                pass
            yield n
    finally:
        signal.signal(signal.SIGALRM, before)
