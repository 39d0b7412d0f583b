"""Inference: a DoRA costs no more than a LoRA, and a merged model no more than the bare one."""

from collections.abc import Iterator

import numpy as np
import torch
from contenders import Ours, Peft, Problem
from timing import interleaved, table

import minigrad as mg

CASES = {
    "784-128-256-10, batch 64": Problem([784, 128, 256, 10], 64, 8),
    "1024×4, batch 64": Problem([1024] * 4, 64, 8),
}


def report(quick: bool) -> Iterator[str]:
    rows, ratios = [], []
    for name, problem in CASES.items():
        times = interleaved(models(problem), seconds=2 if quick else 10)
        rows.append([name, *(samples.show(1e-3, 3) for samples in times.values())])
        ratios.append(
            [
                name,
                (times["DoRA"] / times["LoRA"]).against(1.15),
                (times["merged"] / times["bare"]).show(),
                (times["PEFT LoRA"] / times["LoRA"]).show(),
                (times["PEFT DoRA"] / times["DoRA"]).show(),
            ]
        )
    yield from table("Inference, ms", ["", *times], rows)
    head = ["", "DoRA/LoRA", "merged/bare", "LoRA PEFT/ours", "DoRA PEFT/ours"]
    yield from table("Inference in proportion", head, ratios)


def models(problem: Problem):
    """Return calls of the models in evaluation mode, after checking that they agree."""
    x, xt = problem.x, torch.tensor(problem.x)
    calls = {"bare": mg.no_grad()(lambda: problem.base(x).data)}
    for method, dora in {"LoRA": False, "DoRA": True}.items():
        ours, theirs = Ours(problem, dora).model.eval(), Peft(problem, dora).model.eval()
        calls[method] = mg.no_grad()(lambda model=ours: model(x).data)
        calls[f"PEFT {method}"] = torch.no_grad()(lambda model=theirs: model(xt).numpy())
        np.testing.assert_allclose(calls[method](), calls[f"PEFT {method}"](), rtol=1e-4, atol=1e-5)
        merged = ours.merge_and_unload()
        np.testing.assert_allclose(merged(x).data, calls[method](), rtol=1e-4, atol=1e-5)
    calls["merged"] = mg.no_grad()(lambda: merged(x).data)
    return calls
