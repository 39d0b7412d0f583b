"""Whole training steps, of LoRA and of DoRA, in six sizes."""

import gc
from collections.abc import Iterator
from typing import NamedTuple

from contenders import EVERYBODY, Floor, Problem, agree
from timing import interleaved, table


class Case(NamedTuple):
    """A size, and what is asked of it.

    Attributes:
        name: the widths.
        problem: what to train.
        lora: PEFT/ours for LoRA, at least.
        dora: PEFT/ours for DoRA, at least.
        floor: ours/BLAS floor for LoRA, at most.
        extra: DoRA/LoRA of ours, at most.
        quick: whether ``--quick`` includes it.
    """

    name: str
    problem: Problem
    lora: float | None
    dora: float | None
    floor: float | None
    extra: float | None
    quick: bool = True

    def __str__(self) -> str:
        return f"{self.name}, batch {self.problem.batch}, r {self.problem.r}"


CASES = [
    Case("784-256-128-10", Problem([784, 256, 128, 10], 64, 8), 1.8, 3.2, 1.8, 1.3),
    Case("64-32-10", Problem([64, 32, 10], 32, 4), 3.0, 3.7, None, 1.45),
    Case("1024×4", Problem([1024] * 4, 64, 8), 1.1, 5.0, 1.12, None),
    Case("512×3", Problem([512] * 3, 64, 256), None, None, None, 1.5),
    Case("4096×3", Problem([4096] * 3, 64, 8), 1.0, 6.5, 1.05, None, quick=False),
    Case("1024×3", Problem([1024] * 3, 1024, 16), 1.0, 1.25, 1.12, None, quick=False),
]


def report(quick: bool) -> Iterator[str]:
    milliseconds: dict[str, list[list[str]]] = {"LoRA": [], "DoRA": []}
    ratios = []
    for case in CASES:
        if quick and not case.quick:
            continue
        times = run(case, seconds=3 if quick else 25)
        for method, rows in milliseconds.items():
            cells = [times[f"{method} {name}"].show(1e-3) for name in EVERYBODY]
            rows.append([str(case), *cells, times["floor"].show(1e-3)])
        ours, dora = times["LoRA ours"], times["DoRA ours"]
        ratios.append(
            [
                str(case),
                (times["LoRA PEFT"] / ours).against(case.lora, at_least=True),
                (times["DoRA PEFT"] / dora).against(case.dora, at_least=True),
                (ours / times["floor"]).against(case.floor),
                (dora / ours).against(case.extra),
            ]
        )
    for method, rows in milliseconds.items():
        yield from table(
            f"A {method} training step, ms", ["", *EVERYBODY, "BLAS floor (LoRA)"], rows
        )
    yield from table(
        "Training steps in proportion",
        ["", "LoRA PEFT/ours", "DoRA PEFT/ours", "LoRA ours/floor", "ours DoRA/LoRA"],
        ratios,
    )


def run(case: Case, seconds: float):
    """Check that all do the same work, then time them."""
    contenders = {}
    for method in ("LoRA", "DoRA"):
        agree(case.problem, method == "DoRA")
        sides = {name: make(case.problem, method == "DoRA") for name, make in EVERYBODY.items()}
        contenders |= {f"{method} {name}": side.step for name, side in sides.items()}
    gc.collect()
    return interleaved(contenders | {"floor": Floor(case.problem).step}, seconds)
