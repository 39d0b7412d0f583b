"""An interrupt at every point of some work, one at a time.

Python looks for a Ctrl-C between two of its instructions.  Here the Ctrl-C comes at each line of our
packages that the work executes, one after the other, or at each instruction, without a clock.  Where it
matters at which instructions Python looks, a timer sends it.
"""

import contextlib
import gc
import itertools
import random
import signal
import sys
import time

import pytest

PACKAGES = "loradora.", "minigrad."


def interrupted(work, at, instructions=False):
    """Do the work, interrupted at the point of this number; return whether that point was reached."""
    left = at

    def watch(frame, event, arg):
        nonlocal left
        if not frame.f_globals.get("__name__", "").startswith(PACKAGES):
            return None
        frame.f_trace_opcodes = instructions
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            work()
    finally:
        sys.settrace(before)
    return left <= 0  # even if Python has swallowed the interrupt, as where a generator is closed


def interrupted_everywhere(prepare, instructions=False):
    """Yield what was interrupted: at its first point, then at its second, and so on to its end.

    ``prepare`` returns it and the work on it, made anew each time.
    """
    for at in itertools.count(1):
        subject, work = prepare()
        if not interrupted(work, at, instructions):
            return
        yield subject


def assert_whole(prepare, state, instructions=False):
    """Check that an interrupt anywhere leaves the state before or after, and that both occur."""
    untouched, (done, work) = prepare()[0], prepare()
    work()
    before, after = state(untouched), state(done)
    found = [state(subject) for subject in interrupted_everywhere(prepare, instructions)]
    broken = [at for at, left in enumerate(found, 1) if left not in (before, after)]
    assert not broken, f"{len(broken)} of {len(found)} interrupts leave a mix, at {broken[:5]}"
    assert before != after
    assert found[0] == before
    assert found[-1] == after


#: For an interrupt that comes with an error: Python 3.10 can raise it in place of calling ``__exit__``.
keeps_finally = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="Python 3.10 leaves out a finally if Ctrl-C comes with an error",
)
needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")


def interrupted_by_a_timer(work, times):
    """Repeat ``work`` until it is interrupted, and yield then; ``times`` times over.

    Each time the work is first done undisturbed.  How long that takes tells when to interrupt, however
    fast or busy the machine is.
    """
    rung = False

    def interrupt(*_):
        nonlocal rung
        rung = True  # Python swallows an interrupt that comes in a finaliser
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    # a function, because in Python 3.13 the jump back of such a loop belongs to no `with` around it
    def until_it_rings():
        while not rung:
            work()

    delays = random.Random(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # an interrupt in a callback of others would be swallowed there, and reported
    try:
        for n in range(times):
            rung, start = False, time.perf_counter()
            work()
            longest = max(2 * (time.perf_counter() - start), 5e-5)
            with contextlib.suppress(KeyboardInterrupt):
                # a signal that reaches another thread may wait there: it comes again
                signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, longest), 0.05)
                until_it_rings()
            yield n
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)  # if the work itself has failed
        signal.signal(signal.SIGALRM, before)
