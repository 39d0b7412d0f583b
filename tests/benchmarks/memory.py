"""What a training step needs beyond the model, ours side by side with PyTorch's.

Both are measured over a second step.  The optimizer's state is there already, and there are no gradients
before or after.  What counts is the highest sum of bytes held at any moment of the step, less what was
held when it began.  Everything is traced from its creation, so what a step replaces counts as freed.

- Ours is what ``tracemalloc`` sees: NumPy's arrays, and Python's own objects, too.
- PyTorch's is what its CPU allocator hands out and takes back, as its profiler records it: the memory of
  its tensors, in the bytes that were asked for.  (``torch.cuda`` has a peak for that, the CPU
  has none.)  It excludes PyTorch's graph, which is C++, and its Python objects.

Neither sees the workspace of a BLAS.
"""

import functools
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from contenders import Ours, Peft, Problem
from steps import CASES
from timing import at_most, table

import loradora as ld
import minigrad as mg


def report(quick: bool) -> Iterator[str]:
    cases = [case for case in CASES if case.quick or not quick]
    title = "Memory of a training step: peak above the resident model, kB"
    head = ["", *(f"{m} {who}" for m in ("LoRA", "DoRA") for who in ("ours", "PEFT", "ours/PEFT"))]
    rows = [[str(c), *beside(c.problem, False), *beside(c.problem, True)] for c in cases]
    yield from table(title, head, rows)
    yield "Ours: tracemalloc, with Python's objects. PEFT: PyTorch's allocator, tensors only."

    title = "Memory of ours: what DoRA adds, what stays, and peaks at batch 1, kB"
    head = ["", "DoRA/LoRA", "state/trained", "tensors left", "one W0", "LoRA", "DoRA"]
    yield from table(title, head, [[str(c), *details(c.problem)] for c in cases])
    yield "A temporary of the size of W0 would show in the peaks at batch 1."


def beside(problem: Problem, dora: bool) -> Iterator[str]:
    ours, theirs = peak(lambda: Ours(problem, dora)), peak_of_torch(lambda: Peft(problem, dora))
    yield from (kilobytes(ours), kilobytes(theirs), at_most(1, ours / theirs))


def details(problem: Problem) -> Iterator[str]:
    single = Problem(problem.sizes, 1, problem.r)
    lora, dora = (peak(functools.partial(Ours, problem, kind)) for kind in (False, True))
    yield at_most(1.1, dora / lora)
    yield f"{kept(Ours(problem, True)):.1f}"
    yield f"{left_behind(Ours(problem, True))}"
    yield kilobytes(max(W0.nbytes for W0, _ in problem.frozen))
    for kind in (False, True):
        yield kilobytes(peak(functools.partial(Ours, single, kind)))


def kilobytes(n: int) -> str:
    return f"{n / 1e3:,.0f}"


def peak(make: Callable[[], Any]) -> int:
    """Return the largest number of bytes held during a step of ours beyond those held before."""
    gc.collect()
    tracemalloc.start()
    side = make()
    side.step()
    side.optimizer.zero_grad()
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    side.step()
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest - held


def peak_of_torch(make: Callable[[], Any]) -> int:
    """Return the same for a step of PEFT: the highest running sum of what PyTorch allocates and frees.

    The sum must end at the gradients, to the byte: they are all that a step leaves behind.
    """
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as traced:
        side = make()
        side.step()
        side.optimizer.zero_grad()
        gc.collect()
        with torch.profiler.record_function("a step"):
            side.step()
    events = traced.profiler.kineto_results.events()
    (step,) = (e for e in events if e.name() == "a step")
    changes = [e for e in events if e.name() == "[memory]" and e.start_ns() >= step.start_ns()]
    sums = np.cumsum([e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())])
    assert sums[-1] == sum(p.nbytes for p in side.parameters()), "PyTorch's memory is miscounted"
    return int(sums.max())


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
