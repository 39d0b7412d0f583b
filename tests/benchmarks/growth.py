"""How time grows with depth, batch and rank.  A column that is constant means linear growth."""

import sys
from collections.abc import Iterator

from contenders import EVERYBODY, Contender, Problem, agree
from overhead import CHAINS, ENGINES, ours
from timing import interleaved, table

DEPTHS = 1, 10, 100, 1_000, 10_000
DEEP = 100_000
BATCHES = 16, 64, 256, 1024
RANKS = 1, 4, 16, 64, 256


def report(quick: bool) -> Iterator[str]:
    seconds = 1 if quick else 4
    yield from depth(seconds)
    yield from batch(seconds)
    yield from rank(seconds)


def depth(seconds: float) -> Iterator[str]:
    rows = []
    for length in DEPTHS:
        work = {
            engine.name: lambda run=engine.run, n=length: run(*CHAINS["h ∘ a"], n)
            for engine in ENGINES
        }
        times = interleaved(work, seconds)
        rows.append([f"{length:,}", *(t.show(1e-6 * length) for t in times.values())])
    deep = interleaved({"ours": lambda: ours(*CHAINS["h ∘ a"], DEEP)}, seconds)["ours"]
    rows.append([f"{DEEP:,}", deep.show(1e-6 * DEEP), *["–"] * (len(ENGINES) - 1)])
    yield from table(
        "Growth with depth: forward and backward of a chain h ∘ a, µs per op",
        ["ops", *(engine.name for engine in ENGINES)],
        rows,
    )
    yield f"Python's recursion limit here: {sys.getrecursionlimit():,}."


def batch(seconds: float) -> Iterator[str]:
    rows = []
    for size in BATCHES:
        problem = Problem([512, 512, 512], size, 8)
        times = interleaved(training(problem), seconds)
        rows.append([f"{size:,}", *(t.show(1e-6 * size) for t in times.values())])
    yield from table("Growth with the batch: 512×3, r 8, µs per example", ["batch", *times], rows)


def rank(seconds: float) -> Iterator[str]:
    rows = []
    for r in RANKS:
        times = interleaved(training(Problem([512, 512, 512], 64, r)), seconds)
        rows.append([f"{r}", *(t.show(1e-3) for t in times.values())])
    yield from table(
        "Growth with the rank: 512×3, batch 64, ms (a fixed part, and one linear in r)",
        ["r", *times],
        rows,
    )


def training(problem: Problem):
    """Return the steps of ours and of PEFT, after checking that they do the same work."""
    for dora in (False, True):
        agree(problem, dora, names=("ours", "PEFT"))
    sides: dict[str, Contender] = {
        f"{method} {name}": EVERYBODY[name](problem, method == "DoRA")
        for method in ("LoRA", "DoRA")
        for name in ("ours", "PEFT")
    }
    return {name: side.step for name, side in sides.items()}
