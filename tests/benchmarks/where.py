"""Where the time of a step goes, by operation, measured without any change in the engine.

While it is measured, the forward of each operation and its rules are replaced by ones that note how long
they take.  An operation that a rule uses belongs to that rule.
"""

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import minigrad as mg


class Split(NamedTuple):
    """Seconds by the name of an operation."""

    forward: Counter[str]
    back: Counter[str]


class _Timed:
    """A function that adds what it takes to ``seconds[name]``.  It has the parameters of the original."""

    inside = False

    def __init__(self, function: Callable[..., Any], seconds: Counter[str], name: str) -> None:
        functools.update_wrapper(self, function)
        self.function, self.seconds, self.name = function, seconds, name

    def __call__(self, *args: Any) -> Any:
        if _Timed.inside:
            return self.function(*args)
        _Timed.inside, start = True, time.process_time()
        try:
            return self.function(*args)
        finally:
            self.seconds[self.name] += time.process_time() - start
            _Timed.inside = False


@contextlib.contextmanager
def watched() -> Iterator[Split]:
    """Note how long all operations take within this block."""
    split = Split(Counter(), Counter())
    before = [(op, op.forward, op.vjps) for op in mg.OPS.values()]
    try:
        for op, forward, rules in before:
            op.forward = _Timed(forward, split.forward, op.name)
            op.vjps = tuple(rule and _Timed(rule, split.back, op.name) for rule in rules)
        yield split
    finally:
        for op, forward, rules in before:
            op.forward, op.vjps = forward, rules


def by_kernel(step: Callable[[], object], times: int) -> Counter[str]:
    """Return the seconds of each of PyTorch's kernels in so many steps, by its name in ATen."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as traced:
        for _ in range(times):
            step()
    return Counter({k.key: k.self_cpu_time_total * 1e-6 for k in traced.key_averages()})
