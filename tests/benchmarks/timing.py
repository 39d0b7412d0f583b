"""Interleaved timing of several contenders, and tables of the results.

The stopwatch counts this process's processor time, of all its threads: other programs on the machine
disturb it little, and a second thread would not go unnoticed.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Work = Callable[[], object]

SHORTEST = 2e-3  # seconds: quicker work is repeated until the clock can see it


@dataclass(frozen=True)
class Samples:
    """One number per round: seconds, or, of two contenders, the ratio of their seconds."""

    values: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles."""
        low, high = np.quantile(self.values, [0.25, 0.75])
        return float(high - low) / 2

    def __truediv__(self, other: "Samples") -> "Samples":
        return Samples(self.values / other.values)

    def show(self, unit: float = 1, digits: int = 2) -> str:
        return f"{self.median / unit:.{digits}f} ±{self.spread / unit:.{digits}f}"

    def against(self, target: float | None, at_least: bool = False) -> str:
        """Show a ratio, and whether it meets its target."""
        if target is None:
            return self.show()
        met = self.median >= target if at_least else self.median <= target
        return f"{self.show()} {'≥' if at_least else '≤'}{target:g} {'✓' if met else '✗'}"


def interleaved(
    contenders: Mapping[str, Work], seconds: float, at_least: int = 5, at_most: int = 200
) -> dict[str, Samples]:
    """Time every contender once per round, in changing order, for about the given time in all."""
    repeats = {name: _repeats(work) for name, work in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = np.random.default_rng(0)
    rounds, end = 0, time.monotonic() + seconds
    while rounds < at_least or (rounds < at_most and time.monotonic() < end):
        for name in order.permutation(list(contenders)):
            taken[name].append(_seconds(contenders[name], repeats[name]))
        rounds += 1
    return {name: Samples(np.array(values)) for name, values in taken.items()}


def _repeats(work: Work) -> int:
    _seconds(work, 1)  # warm up
    once = min(_seconds(work, 1) for _ in range(2))
    return max(1, round(SHORTEST / once))


def _seconds(work: Work, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    yield ""
    yield title
    yield lines[0]
    yield "─" * (sum(widths) + 2 * (len(widths) - 1))
    yield from lines[1:]


def at_most(bound: float, ratio: float) -> str:
    """Show a ratio that was measured once, and whether it keeps its bound."""
    return f"{ratio:.2f} ≤{bound:g} {'✓' if ratio <= bound else '✗'}"
