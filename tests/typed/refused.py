"""What type checkers refuse: an error in every line that says so, and in no other."""

from typing import Any

import numpy as np
import numpy.typing as npt

import loradora as ld
import minigrad as mg

t = mg.Tensor([1.0, 2.0], requires_grad=True)
floats = np.ones(2)
model = ld.MLP([2, 2])
optimizer = ld.AdamW(model.parameters())

mg.norm(t, axes=1)  # refused
mg.norm(t, axis="x")  # refused
mg.norm(t, 0, True, 3)  # refused
mg.exp(t, t)  # refused
mg.exp(model)  # refused
mg.mul(t)  # refused
mg.linear(t, t, bias=t)  # refused
mg.where(t > 0, t)  # refused
mg.gelu(t, approximate="erf")  # refused
mg.cross_entropy(t, [0], reduction="all")  # refused
mg.grad(t)  # refused
mg.Tensor(model)  # refused
t.view(2)  # refused
t.sum(dim=0)  # refused
t.reshape("x")  # refused
(floats * t).astype("float32").copy()  # refused
ld.Linear("2", 3)  # refused
ld.LoraConfig(rank=3)  # refused
ld.fit(model, floats, [0, 1], optimizer=optimizer, rng=0)  # refused
ld.evaluate(model, floats, model)  # refused


@mg.no_grad  # refused
def value(x: mg.Tensor) -> float:
    """Return a number."""
    return x.sum().item()


@mg.op(lambda g, y, a: g)
def same(a: npt.NDArray[Any], axis: int = 0) -> npt.NDArray[Any]:
    """Return a."""
    return a


same(t, axes=0)  # refused
same(t, "x")  # refused
same(t, 0, 1)  # refused
same(t, axis=1)
