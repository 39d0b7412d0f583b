"""What a user of both packages might write, with types: it passes ``mypy --strict``, and it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import loradora as ld
import minigrad as mg

Array = npt.NDArray[np.float64]


@mg.op(lambda g, y, a: g * mg.sigmoid(a))
def softplus(a: Array) -> Array:
    """Return log(1 + eᵃ)."""
    return np.logaddexp(0, a)


class Net(ld.Module):
    """Two layers, and softplus between them."""

    def __init__(self, features: int, classes: int, *, rng: np.random.Generator) -> None:
        self.first = ld.Linear(features, 8, rng=rng, dtype=np.float64)
        self.last = ld.Linear(8, classes, rng=rng, dtype=np.float64)
        self.scale = mg.Tensor(np.ones(8), requires_grad=True)

    def forward(self, x: mg.Tensor | Array) -> mg.Tensor:
        """Return the logits."""
        hidden = softplus(self.first(x)) * self.scale
        return self.last(hidden / mg.norm(hidden, axis=-1, keepdims=True))


class Scaled(ld.LowRankLinear):
    """A LoRA with a trained scale: y = x W0ᵀ + b + c (x Aᵀ) Bᵀ."""

    def __init__(self, base: ld.Linear, **options: Any) -> None:
        super().__init__(base, **options)
        self.c = mg.Tensor(np.full((), self.scaling, self.A.dtype), requires_grad=True)

    def forward(self, x: mg.Tensor | npt.ArrayLike) -> mg.Tensor:
        """Return y of shape (…, out)."""
        x = self.as_input(x)
        change = mg.linear(mg.linear(self.lora_dropout(x), self.A), self.B)
        return self.base_layer(x) + self.c * change

    @property
    def weight(self) -> mg.Tensor:
        """W0 + c B A."""
        return self.base_layer.weight + self.c * (self.B @ self.A)


def batches(x: Array, labels: npt.NDArray[np.int64], size: int) -> Iterator[tuple[Array, Any]]:
    """Yield the examples and their labels, ``size`` at a time."""
    for start in range(0, len(x), size):
        yield x[start : start + size], labels[start : start + size]


def train(model: ld.Module, x: Array, labels: npt.NDArray[np.int64], epochs: int) -> list[float]:
    """Train in a loop of one's own; return the losses."""
    optimizer = ld.SGD(model.trainable_parameters(), lr=0.1, momentum=0.9)
    losses: list[float] = []
    for _ in range(epochs):
        for inputs, targets in batches(x, labels, 10):
            loss = mg.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@mg.no_grad()
def accuracy(model: ld.Module, x: Array, labels: npt.NDArray[np.int64]) -> float:
    """Return the share of right answers."""
    return float(np.mean(np.argmax(model.eval()(x), axis=1) == labels))


def report(step: int, loss: float) -> str:
    """Return a line for the eye."""
    return f"{step:4d} {loss:.3f}"


rng = np.random.default_rng(0)
x = rng.normal(size=(40, 4))
labels = np.argmax(x[:, :3], axis=1)
net = Net(4, 3, rng=rng)
losses = train(net, x, labels, epochs=20)
assert losses[-1] < losses[0]
assert accuracy(net, x, labels) > 0.5

leaf = mg.Tensor(x[:2], requires_grad=True)
slope = mg.grad(net(leaf).sum(), leaf, create_graph=True)
curvature, *rest = mg.grad((slope * slope).sum(), [leaf, net.scale])
leaf.backward(np.ones((2, 4)))
if leaf.grad is not None:
    leaf.data = leaf.data - 0.1 * leaf.grad
mg.gradcheck(softplus, np.array([-1.0, 2.0]))
mg.gradgradcheck(lambda a, b: softplus(a) * b, np.array([-1.0, 2.0]), np.array([1.0, 3.0]))

config = ld.LoraConfig(r=2, lora_alpha=4, target_modules=["first", "last"])
adapted = ld.get_peft_model(net, config, layer=Scaled, rng=0)
trained = ld.AdamW(ld.lora_plus(adapted, lr=1e-3))
for step in ld.fit(adapted, x.tolist(), labels.tolist(), optimizer=trained, steps=3, rng=0):
    print(report(step.step, step.loss))
print(f"{ld.evaluate(adapted, x, labels).accuracy:.2f}")

folder = Path(tempfile.mkdtemp())
adapted.save_adapter(folder / "adapter.npz")
loaded = ld.PeftModel.from_pretrained(net, folder / "adapter.npz", layer=Scaled)
with loaded.disable_adapter():
    plain = loaded(x)
assert np.allclose(loaded(x), adapted(x))
assert np.allclose(plain, net(x))
merged = loaded.merge_and_unload()
ld.save_model(folder / "merged.npz", merged)
ld.load_model(folder / "merged.npz", merged)
state: dict[str, npt.NDArray[Any]] = merged.state_dict()
merged.load_state_dict(state)
optimizer_state = trained.state_dict()
trained.load_state_dict(optimizer_state)
targets = rng.normal(size=(40, 3))
regression = ld.fit(
    merged,
    x,
    targets,
    optimizer=ld.AdamW(merged.requires_grad_().parameters()),
    steps=2,
    loss=lambda output, target: mg.mse_loss(output, target) + 0.1 * mg.norm(output),
    schedule=lambda progress: 1 - progress,
    rng=rng,
)
print([step.rate for step in regression], mg.no_grad is not None)
