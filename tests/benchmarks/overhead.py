"""What the engines themselves cost: forward and backward through chains of ops on 16 numbers.

The arithmetic takes next to no time; what remains is the bookkeeping.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import autograd
import autograd.numpy as anp
import mygrad
import numpy as np
import torch
from timing import Work, interleaved, table

import minigrad as mg

LENGTH = 200
START = np.linspace(0.5, 1.5, 16, dtype=np.float32)
FACTOR = np.linspace(0.9999, 1.0001, 16, dtype=np.float32)

#: The chains: the next link from h, a and the library's tanh, and whether a is trained, too.
CHAINS: dict[str, tuple[Callable[[Any, Any, Callable], Any], bool]] = {
    "h + 1": (lambda h, a, tanh: h + 1, False),
    "h ∘ a": (lambda h, a, tanh: h * a, False),
    "h ∘ a, a trained": (lambda h, a, tanh: h * a, True),
    "tanh h": (lambda h, a, tanh: tanh(h), False),
}


class Engine(NamedTuple):
    """How a library goes through a chain and back: ``run(link, trained, length)`` → gradient of h."""

    name: str
    run: Callable[[Callable, bool, int], np.ndarray]


def chain(h: Any, a: Any, link: Callable, tanh: Callable, length: int) -> Any:
    for _ in range(length):
        h = link(h, a, tanh)
    return h


def ours(link: Callable, trained: bool, length: int) -> np.ndarray:
    h, a = mg.Tensor(START, requires_grad=True), mg.Tensor(FACTOR, requires_grad=trained)
    chain(h, a, link, mg.tanh, length).sum().backward()
    return h.grad


def torch_eager(link: Callable, trained: bool, length: int) -> np.ndarray:
    h, a = torch.tensor(START, requires_grad=True), torch.tensor(FACTOR, requires_grad=trained)
    chain(h, a, link, torch.tanh, length).sum().backward()
    return h.grad.numpy()


def hips(link: Callable, trained: bool, length: int) -> np.ndarray:
    def f(h, a=FACTOR):
        return anp.sum(chain(h, a, link, anp.tanh, length))

    if trained:
        return autograd.grad(f, (0, 1))(START, FACTOR)[0]
    return autograd.grad(f)(START)


def my_grad(link: Callable, trained: bool, length: int) -> np.ndarray:
    h, a = mygrad.tensor(START), mygrad.tensor(FACTOR, constant=not trained)
    chain(h, a, link, mygrad.tanh, length).sum().backward()
    return h.grad


def numpy_only(name: str, length: int) -> np.ndarray:
    """Do the same arithmetic without any bookkeeping: forward, then each derivative by hand."""
    h, g = START, np.ones_like(START)
    ga = np.zeros_like(START)
    match name:
        case "h + 1":
            for _ in range(length):
                h = h + 1
        case "h ∘ a":
            for _ in range(length):
                h = h * FACTOR
            for _ in range(length):
                g = g * FACTOR
        case "h ∘ a, a trained":
            kept = []
            for _ in range(length):
                kept.append(h)
                h = h * FACTOR
            while kept:
                ga = ga + g * kept.pop()
                g = g * FACTOR
        case "tanh h":
            kept = []
            for _ in range(length):
                h = np.tanh(h)
                kept.append(h)
            while kept:
                y = kept.pop()
                g = g * (1 - y * y)
    h.sum()
    return g


ENGINES = [
    Engine("ours", ours),
    Engine("torch eager", torch_eager),
    Engine("HIPS autograd", hips),
    Engine("MyGrad", my_grad),
]


def report(quick: bool) -> Iterator[str]:
    rows = []
    for name, (link, trained) in CHAINS.items():
        work: dict[str, Work] = {
            engine.name: lambda run=engine.run, of=(link, trained, LENGTH): run(*of)
            for engine in ENGINES
        }
        work["NumPy by hand"] = lambda name=name: numpy_only(name, LENGTH)
        expected = work["NumPy by hand"]()
        for who, run in work.items():
            np.testing.assert_allclose(run(), expected, rtol=1e-5, err_msg=f"{who}, {name}")
        times = interleaved(work, seconds=1 if quick else 6)
        rows.append(
            [
                name,
                *(samples.show(1e-6 * LENGTH) for samples in times.values()),
                (times["ours"] / times["torch eager"]).against(0.5),
                (times["ours"] / times["HIPS autograd"]).against(0.2),
            ]
        )
    yield from table(
        f"Engine overhead: forward and backward of {LENGTH} ops on 16 numbers, µs per op",
        ["", *times, "ours/torch", "ours/HIPS"],
        rows,
    )
