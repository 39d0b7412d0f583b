"""The same training step, done by each library.

A step is forward, mean cross-entropy, backward and AdamW on the adapters of a multilayer perceptron.
Each contender starts from the arrays of one :class:`Problem`.  It offers ``step()``, which returns the
loss, and ``parameters()``, the trained arrays in the order of ``Problem.trained``.  :func:`agree`
compares them with each other.

PEFT and loradora run their own layers.  Plain torch, HIPS autograd and MyGrad differentiate one
textbook formula, :func:`textbook`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import autograd
import autograd.numpy as anp
import mygrad
import numpy as np
import peft
import torch
from autograd.tracer import getval
from mygrad.nnet.activations import relu as mygrad_relu
from mygrad.nnet.losses import softmax_crossentropy

import loradora as ld
import minigrad as mg

RATE = 1e-4
EPS = 1e-4  # not 1e-8: AdamW would move a number at full rate for a mere rounding error
FEW = 16  # examples
Array = np.ndarray


# ----------------------------------------------------------------------------- the problem


@dataclass(frozen=True)
class Problem:
    """Layers, adapters and a batch.  B is not zero and m not ‖V‖, so that every gradient matters."""

    sizes: Sequence[int]
    batch: int
    r: int

    scaling = 2.0

    @functools.cached_property
    def base(self) -> ld.MLP:
        return ld.MLP(self.sizes, rng=np.random.default_rng(1))

    @functools.cached_property
    def frozen(self) -> list[tuple[Array, Array]]:
        """W0 and b of every layer."""
        linear = [layer for layer in self.base.layers if isinstance(layer, ld.Linear)]
        return [(layer.weight.data, layer.bias.data) for layer in linear]

    @functools.cached_property
    def x(self) -> Array:
        return np.random.default_rng(2).standard_normal((self.batch, self.sizes[0]), np.float32)

    @functools.cached_property
    def labels(self) -> Array:
        return np.random.default_rng(3).integers(self.sizes[-1], size=self.batch)

    @functools.cached_property
    def adapters(self) -> list[tuple[Array, Array, Array]]:
        """A, B and m of every layer."""
        rng = np.random.default_rng(4)
        return [
            (
                rng.standard_normal((self.r, into), np.float32) / np.float32(into**0.5),
                rng.standard_normal((out, self.r), np.float32) / np.float32(10 * self.r**0.5),
                np.linalg.norm(W0, axis=1),
            )
            for (into, out), (W0, _) in zip(itertools.pairwise(self.sizes), self.frozen)
        ]

    @property
    def targets(self) -> list[str]:
        """The names of the linear layers among the layers: every other one is a ReLU."""
        return [str(2 * i) for i in range(len(self.sizes) - 1)]

    def trained(self, dora: bool) -> list[Array]:
        """Fresh copies of what a LoRA or a DoRA trains, layer by layer."""
        return [p.copy() for layer in self.adapters for p in layer[: 3 if dora else 2]]


class Contender(Protocol):
    """A library that can do the step."""

    def step(self) -> float: ...

    def parameters(self) -> list[Array]: ...


def agree(
    problem: Problem,
    dora: bool,
    steps: int = 3,
    tolerance: float = 1e-5,
    names: Sequence[str] | None = None,
) -> None:
    """Refuse to go on unless all do the same work: losses and parameters after a few steps.

    Losses are compared on the whole batch, parameters on a few of its examples: among a million inputs of
    a ReLU there is one so close to 0 that rounding alone decides on which side of the kink it lies.
    """
    few = dataclasses.replace(problem, batch=min(problem.batch, FEW))
    before = problem.trained(dora)
    for size in (few, problem):
        expected = None
        for name in names or EVERYBODY:
            side = EVERYBODY[name](size, dora)
            losses = [side.step() for _ in range(steps)]
            trained = side.parameters()
            if expected is None:
                expected = losses, trained
            np.testing.assert_allclose(losses, expected[0], tolerance, err_msg=f"loss of {name}")
            if size is few:
                for i, (p, q, start) in enumerate(zip(trained, expected[1], before, strict=True)):
                    error = np.linalg.norm(p - q) / np.linalg.norm(q)
                    assert p.dtype == np.float32, f"{name}: parameter {i} is {p.dtype}"
                    assert error <= tolerance, f"{name}: parameter {i} is off by {error:.2g}"
                    moved = np.abs(p - start).max()
                    assert moved > RATE, f"{name}: parameter {i} moved by {moved:.2g} only"


# ----------------------------------------------------------------------------- loradora


class Ours:
    """minigrad and loradora."""

    def __init__(self, problem: Problem, dora: bool) -> None:
        self.x, self.labels = problem.x, problem.labels
        config = ld.LoraConfig(
            r=problem.r,
            lora_alpha=problem.scaling * problem.r,
            target_modules=problem.targets,
            use_dora=dora,
        )
        self.model = ld.get_peft_model(problem.base, config)
        self.trained = self.model.trainable_parameters()
        for p, value in zip(self.trained, problem.trained(dora), strict=True):
            p.data = value
        self.optimizer = ld.AdamW(self.trained, lr=RATE, eps=EPS)

    def step(self) -> float:
        loss = mg.cross_entropy(self.model(self.x), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def parameters(self) -> list[Array]:
        return [p.data.copy() for p in self.trained]


# ----------------------------------------------------------------------------- PEFT


class Peft:
    """PyTorch and PEFT."""

    def __init__(self, problem: Problem, dora: bool) -> None:
        self.x, self.labels = torch.tensor(problem.x), torch.tensor(problem.labels)
        layers = []
        for W0, b in problem.frozen:
            linear = torch.nn.Linear(*W0.T.shape)
            linear.weight.data, linear.bias.data = torch.tensor(W0), torch.tensor(b)
            layers += [linear, torch.nn.ReLU()]
        config = peft.LoraConfig(
            r=problem.r,
            lora_alpha=problem.scaling * problem.r,
            target_modules=problem.targets,
            use_dora=dora,
        )
        self.model = peft.get_peft_model(torch.nn.Sequential(*layers[:-1]), config)
        named = dict(self.model.named_parameters())
        parts = ["lora_A.default.weight", "lora_B.default.weight"]
        parts += ["lora_magnitude_vector.default.weight"] if dora else []
        self.trained = [
            named[f"base_model.model.{layer}.{part}"] for layer in problem.targets for part in parts
        ]
        for p, value in zip(self.trained, problem.trained(dora), strict=True):
            p.data = torch.tensor(value)
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, eps=EPS)

    def step(self) -> float:
        loss = torch.nn.functional.cross_entropy(self.model(self.x), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def parameters(self) -> list[Array]:
        return [p.detach().numpy().copy() for p in self.trained]


# ----------------------------------------------------------------------------- the textbook


@dataclass(frozen=True)
class Library:
    """What the textbook needs beyond operators.

    Attributes:
        constant: make an array the library's own.
        value: the value of a tensor, cut off from the graph.
        norm: the norms of the rows of such a value.
        relu: max(x, 0).
    """

    constant: Callable[[Any], Any]
    value: Callable[[Any], Any]
    norm: Callable[[Any], Any]
    relu: Callable[[Any], Any]


PLAIN_TORCH = Library(
    constant=torch.tensor,
    value=torch.Tensor.detach,
    norm=functools.partial(torch.linalg.vector_norm, dim=1),
    relu=torch.relu,
)
rows = functools.partial(np.linalg.norm, axis=1)
HIPS = Library(np.asarray, value=getval, norm=rows, relu=lambda x: anp.maximum(x, 0))
MYGRAD = Library(np.asarray, value=lambda p: p.data, norm=rows, relu=mygrad_relu)


class Textbook:
    """The formulas of the two papers, written down once for every library that has operators."""

    def __init__(self, problem: Problem, dora: bool, library: Library) -> None:
        self.library, self.scaling, self.width = library, problem.scaling, 3 if dora else 2
        self.frozen = [tuple(map(library.constant, layer)) for layer in problem.frozen]
        self.x, self.labels = library.constant(problem.x), library.constant(problem.labels)

    def logits(self, trained: Sequence[Any]) -> Any:
        x = self.x
        for i, (W0, b) in enumerate(self.frozen):
            A, B, *m = trained[i * self.width : (i + 1) * self.width]
            h = x @ W0.T + self.scaling * ((x @ A.T) @ B.T)
            if m:
                value = self.library.value
                V = W0 + self.scaling * (value(B) @ value(A))
                h = m[0] / self.library.norm(V) * h
            h = h + b
            x = h if i + 1 == len(self.frozen) else self.library.relu(h)
        return x


class PlainTorch(Textbook):
    """The textbook in PyTorch."""

    def __init__(self, problem: Problem, dora: bool) -> None:
        super().__init__(problem, dora, PLAIN_TORCH)
        self.trained = [torch.tensor(p, requires_grad=True) for p in problem.trained(dora)]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, eps=EPS)

    def step(self) -> float:
        loss = torch.nn.functional.cross_entropy(self.logits(self.trained), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def parameters(self) -> list[Array]:
        return [p.detach().numpy().copy() for p in self.trained]


class Hips(Textbook):
    """The textbook in HIPS autograd."""

    def __init__(self, problem: Problem, dora: bool) -> None:
        super().__init__(problem, dora, HIPS)
        self.trained = problem.trained(dora)
        self.optimizer = NumpyAdamW(self.trained)
        self.loss_and_gradients = autograd.value_and_grad(self.loss)

    def loss(self, trained: list[Array]) -> Any:
        z = self.logits(trained)
        z = z - anp.max(getval(z), axis=1, keepdims=True)
        picked = z[np.arange(len(z)), self.labels]
        return anp.mean(anp.log(anp.sum(anp.exp(z), axis=1)) - picked)

    def step(self) -> float:
        loss, gradients = self.loss_and_gradients(self.trained)
        self.optimizer.step(gradients)
        return float(loss)

    def parameters(self) -> list[Array]:
        return [p.copy() for p in self.trained]


class MyGrad(Textbook):
    """The textbook in MyGrad."""

    def __init__(self, problem: Problem, dora: bool) -> None:
        super().__init__(problem, dora, MYGRAD)
        self.trained = problem.trained(dora)
        self.optimizer = NumpyAdamW(self.trained)

    def step(self) -> float:
        tensors = [mygrad.tensor(p, copy=False) for p in self.trained]
        loss = softmax_crossentropy(self.logits(tensors), self.labels)
        loss.backward()
        self.optimizer.step([p.grad for p in tensors])
        return loss.item()

    def parameters(self) -> list[Array]:
        return [p.copy() for p in self.trained]


class NumpyAdamW:
    """AdamW in five lines, for libraries that have none."""

    def __init__(self, trained: list[Array]) -> None:
        self.trained, self.t = trained, 0
        self.moments = [(np.zeros_like(p), np.zeros_like(p)) for p in trained]

    def step(self, gradients: Sequence[Array]) -> None:
        self.t += 1
        for p, g, (m, v) in zip(self.trained, gradients, self.moments, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            direction = m / (1 - 0.9**self.t) / (np.sqrt(v / (1 - 0.999**self.t)) + EPS)
            p -= RATE * (direction + 0.01 * p)


# ----------------------------------------------------------------------------- the floor


class Floor:
    """The matrix products that no LoRA step can avoid, and nothing else: no sum, no ReLU, no AdamW.

    Every layer: the frozen product, the adapter's two forward and three backward.  Every layer but the
    first: two more for the gradient of its input.
    """

    def __init__(self, problem: Problem) -> None:
        self.products: list[tuple[Array, Array]] = []
        for i, ((W0, _), (A, B, _)) in enumerate(zip(problem.frozen, problem.adapters)):
            x, g = (np.ones((problem.batch, n), np.float32) for n in W0.T.shape)
            xA = gB = np.ones((problem.batch, problem.r), np.float32)
            self.products += [(x, W0.T), (x, A.T), (xA, B.T), (g, B), (gB.T, x), (g.T, xA)]
            if i:
                self.products += [(g, W0), (gB, A)]

    def step(self) -> list[Array]:
        return [left @ right for left, right in self.products]


EVERYBODY: dict[str, Callable[[Problem, bool], Contender]] = {
    "ours": Ours,
    "PEFT": Peft,
    "plain torch": PlainTorch,
    "HIPS autograd": Hips,
    "MyGrad": MyGrad,
}
