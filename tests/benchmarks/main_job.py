"""How much of its training time ``examples/finetune_digits.py`` spends inside NumPy.

What counts as inside are the forwards and rules of the ops, the factored norm of a DoRA, the optimizer's
update and the making of batches.  These are little more than calls of NumPy.  Everything else counts as
ours: recording, the backward walk, layers, checks, although NumPy is called there, too.  Watching takes
time itself, so the total is timed without it.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import table

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import digits
import finetune_digits
import reporting

import minigrad as mg
from loradora import norms, train
from loradora.optim import AdamW

METHODS = "scratch", "head", "full", "lora", "dora"


class Inside:
    """Adds up the time between the outermost entries and exits of the functions it has wrapped."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0
        self.price = 0.0  # of watching, per call
        nothing = self.watched(lambda: None)
        for _ in range(1000):
            nothing()
        self.price = self.seconds / 1000

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any) -> Any:
            if self.depth:
                return function(*args)
            self.depth = 1
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - start - self.price
                self.depth = 0

        return watching

    def iterated(self, generator: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def watching(*args: Any) -> Iterator[Any]:
            following = self.watched(generator(*args).__next__)
            while True:
                yield following()

        return watching


def report(quick: bool) -> Iterator[str]:
    inside, length = Inside(), (100, 8) if quick else (15 * 94, 40)
    unwatched = list(phases(inside, *length))
    with contextlib.ExitStack() as until:

        def put(owner: Any, name: str, value: Any) -> None:
            until.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        for op in mg.OPS.values():
            put(op, "forward", inside.watched(op.forward))
            put(op, "vjps", tuple(rule and inside.watched(rule) for rule in op.vjps))
        put(norms, "factored_row_norm", inside.watched(norms.factored_row_norm))
        put(AdamW, "_moved", inside.watched(AdamW._moved))
        put(train, "_batches", inside.iterated(train._batches))
        watched = list(phases(inside, *length))
    rows = [(name, s, c) for (name, s, _), (_, _, c) in zip(unwatched, watched, strict=True)]
    seconds, counted = (sum(row[i] for row in rows) for i in (1, 2))
    met = "✓" if counted >= 0.9 * seconds else "✗"
    cells = [[name, f"{s:.2f}", f"{100 * c / s:.0f} %"] for name, s, c in rows]
    cells.append(["all together", f"{seconds:.2f}", f"{100 * counted / seconds:.0f} % ≥90 % {met}"])
    yield from table("The main job's training time inside NumPy", ["", "s", "inside"], cells)


def phases(inside: Inside, steps: int, epochs: int) -> Iterator[tuple[str, float, float]]:
    """Yield (name, seconds, seconds inside NumPy) of pre-training and of each method."""
    old, new = digits.mnist(), digits.optdigits()
    inside.seconds, start = 0.0, time.perf_counter()
    base = digits.pretrained(old.train, np.random.default_rng(0), steps)
    yield "pre-training", time.perf_counter() - start, inside.seconds
    few = digits.few(new.train, 20, np.random.default_rng(1))
    task = finetune_digits.Task(0, base, few, new, old, epochs, curves=False)
    for name in METHODS:
        adapts = name in finetune_digits.ADAPTERS
        method = finetune_digits.Method(name, *((4, 8.0) if adapts else ()))
        seconds = counted = 0.0
        for rate in finetune_digits.RATES:
            inside.seconds = 0.0
            seconds += finetune_digits.train(method, task, rate, Silent()).seconds
            counted += inside.seconds
        yield reporting.title(method), seconds, counted


class Silent:
    """Shows no progress."""

    def step(self, step: Any) -> None:
        """Ignore a step."""
