"""What a training step of ours needs beyond the model, as ``tracemalloc`` sees it.

Everybody else's memory is out of its sight (PyTorch has its own allocator), so this table has one side.
"""

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
from contenders import Ours, Problem
from steps import CASES
from timing import table

import loradora as ld
import minigrad as mg


def report(quick: bool) -> Iterator[str]:
    rows = []
    for case in CASES:
        if quick and not case.quick:
            continue
        lora, dora = (peak(case.problem, dora) for dora in (False, True))
        single = Problem(case.problem.sizes, 1, case.problem.r)
        weight = max(W0.nbytes for W0, _ in case.problem.frozen)
        rows.append(
            [
                str(case),
                f"{lora / 1e3:,.0f}",
                f"{dora / 1e3:,.0f}",
                f"{dora / lora:.2f} ≤1.1 {'✓' if dora <= 1.1 * lora else '✗'}",
                f"{kept(Ours(case.problem, True)):.1f}",
                f"{left_behind(Ours(case.problem, True))}",
                f"{weight / 1e3:,.0f}",
                f"{peak(single, False) / 1e3:,.0f}",
                f"{peak(single, True) / 1e3:,.0f}",
            ]
        )
    yield from table(
        "Memory of a training step of ours: peak above the resident model, kB",
        [
            "",
            "LoRA",
            "DoRA",
            "DoRA/LoRA",
            "state/trained",
            "tensors left",
            "one W0",
            "LoRA batch 1",
            "DoRA batch 1",
        ],
        rows,
    )
    yield "A temporary of the size of W0 would show in the peaks at batch 1."


def peak(problem: Problem, dora: bool) -> int:
    """Return the largest number of bytes held during a step beyond those held before.

    Everything is traced from its making, so that what a step replaces counts as given back.
    """
    gc.collect()
    tracemalloc.start()
    side = Ours(problem, dora)
    side.step()
    side.optimizer.zero_grad()
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    side.step()
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest - held


def kept(side: Ours) -> float:
    """Return what an optimizer holds after its first step, in multiples of what is trained."""
    gc.collect()
    tracemalloc.start()
    side.optimizer = ld.AdamW(side.trained)
    side.step()
    side.optimizer.zero_grad()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / sum(p.nbytes for p in side.parameters())


def left_behind(side: Ours) -> int:
    """Return how many more tensors there are after a step than before, without garbage collection."""
    gc.collect()
    gc.disable()
    before = alive()
    side.step()
    after = alive()
    gc.enable()
    return after - before


def alive() -> int:
    return int(np.sum([type(o) is mg.Tensor for o in gc.get_objects()]))
