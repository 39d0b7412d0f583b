"""A step of fine-tuning a transformer with adapters: ours and PEFT's, compared and timed.

Each side gets its model, one batch of ids, and the labels.  The model of PEFT is the twin of ours.  A
step is the mean cross-entropy, the backward pass, and AdamW.  If there is a bound, the gradient is
clipped to it first.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from timing import interleaved

import loradora as ld
import minigrad as mg

Array = np.ndarray

RATE = 1e-4

#: transformers' forms of attention.
FORMS = "sdpa", "eager"

#: Our names for the tensors of an adapter, and PEFT's.
THEIRS = {"A": "lora_A", "B": "lora_B", "m": "lora_magnitude_vector"}


def name_in_peft(name: str) -> str:
    """Return what PEFT calls a trained tensor of ours: of an adapter, or of a module saved with it."""
    path, _, own = name.removeprefix("base_model.").rpartition(".")
    tail = f"{THEIRS[own]}.default.weight" if own in THEIRS else f"modules_to_save.default.{own}"
    return f"base_model.model.{path}.{tail}"


class Side:
    """What both sides have in common: the order of a step."""

    clip: float | None
    optimizer: Any
    trained: list[Any]
    clip_grad_norm: Callable[..., Any]

    def backward(self) -> float:
        """Compute the loss and the gradients; return the loss."""
        raise NotImplementedError

    def step(self) -> float:
        loss = self.backward()
        if self.clip is not None:
            self.clip_grad_norm(self.trained, self.clip)
        self.optimizer.step()
        return loss


class Ours(Side):
    """minigrad and loradora."""

    clip_grad_norm = staticmethod(ld.clip_grad_norm_)

    def __init__(
        self, model: ld.PeftModel, x: Array, labels: Array, clip: float | None = None
    ) -> None:
        self.model, self.x, self.labels, self.clip = model, x, labels, clip
        self.trained = model.trainable_parameters()
        self.optimizer = ld.AdamW(self.trained, lr=RATE)

    def backward(self) -> float:
        loss = mg.cross_entropy(self.model(self.x), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item()

    def parameters(self) -> list[Array]:
        return [p.data.copy() for p in self.trained]

    def gradients(self) -> dict[str, Array]:
        """Return the gradients by PEFT's names."""
        named = self.model.named_parameters()
        return {name_in_peft(name): p.grad for name, p in named if p.requires_grad}


class Theirs(Side):
    """PyTorch, transformers and PEFT; ``logits(model, ids)`` says how the model is called."""

    clip_grad_norm = staticmethod(torch.nn.utils.clip_grad_norm_)

    def __init__(
        self,
        model: torch.nn.Module,
        x: Array,
        labels: Array,
        logits: Callable[[Any, torch.Tensor], torch.Tensor],
        clip: float | None = None,
    ) -> None:
        self.model, self.logits, self.clip = model, logits, clip
        self.x, self.labels = torch.tensor(x), torch.tensor(labels)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE)

    def backward(self) -> float:
        logits = self.logits(self.model, self.x)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), self.labels.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item()

    def parameters(self) -> list[Array]:
        return [p.detach().numpy().copy() for p in self.trained]

    def gradients(self) -> dict[str, Array]:
        named = self.model.named_parameters()
        return {name: p.grad.numpy() for name, p in named if p.requires_grad}


def same_loss(ours: Ours, theirs: Theirs, form: str) -> None:
    """Refuse to go on unless both compute the same loss."""
    np.testing.assert_allclose(
        theirs.backward(), ours.backward(), 1e-6, err_msg=f"the loss of {form}"
    )


def same_gradients(ours: Ours, theirs: Theirs, form: str) -> None:
    """Refuse to go on unless both compute the same gradients."""
    ours.backward()
    theirs.backward()
    expected, found = ours.gradients(), theirs.gradients()
    assert found.keys() == expected.keys(), f"{form} trains something else"
    for name, g in found.items():
        error = np.linalg.norm(g - expected[name]) / np.linalg.norm(g)
        assert error <= 2e-5, f"{form}: the gradient of {name} is off by {error:.2g}"


def timed(ours: Ours, theirs: Mapping[str, Theirs], bound: float, seconds: float) -> Iterator[str]:
    """Yield the cells of a row: the ms of each side, and the ratio of the faster form of PEFT to ours."""
    sides = {"ours": ours, **theirs}
    gc.collect()
    times = interleaved({name: side.step for name, side in sides.items()}, seconds)
    yield from (times[name].show(1e-3, 1) for name in sides)
    fastest = min(theirs, key=lambda form: times[form].median)
    yield (times[fastest] / times["ours"]).against(bound, at_least=True)
