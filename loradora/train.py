"""Training and evaluation.  Nothing here prints: ``fit`` yields what happened, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.nn import Module, check_positive
from loradora.optim import Optimizer, Schedule, constant
from minigrad.functional import check_labels

Array: TypeAlias = npt.NDArray[Any]


class Step(NamedTuple):
    """One step of training.

    Attributes
    ----------
    step
        Its number, from 1.
    total
        How many there will be.
    loss
        The mean cross-entropy of the batch before the step.
    rate
        The factor that the schedule put on the learning rate.
    """

    step: int
    total: int
    loss: float
    rate: float


class Evaluation(NamedTuple):
    """How well a model does.

    Attributes
    ----------
    loss
        The mean cross-entropy in nats.
    accuracy
        The share of right answers, 0 … 1.
    """

    loss: float
    accuracy: float


def fit(
    model: Module,
    x: Array,
    labels: Array,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int = 32,
    schedule: Schedule = constant,
    rng: np.random.Generator,
) -> Iterator[Step]:
    """Train a classifier on shuffled batches; yield a record after each step.

    A generator: it works as it is iterated.  ``for step in fit(…): pass`` trains without a word.

    Parameters
    ----------
    model
        From (batch, features) to logits (batch, classes).
    x
        Inputs, shape (N, …).
    labels
        Class numbers, shape (N,).
    optimizer
        Over the parameters to train; others are not touched.
    steps
        How many batches to train on.
    batch_size
        Examples in a batch; each epoch shuffles anew and drops no example.
    schedule
        From progress (0 at the first step) to a factor on the learning rate.
    rng
        The source of the shuffling.

    Raises
    ------
    TypeError, ValueError, IndexError
        At the first step, before anything changes: if x and labels differ in length or are empty, if
        labels are no class numbers, or ``steps`` or ``batch_size`` no integers of at least 1.
    FloatingPointError
        If the loss is no longer finite; the step is not taken.
    """
    check_positive(steps=steps, batch_size=batch_size)
    x, labels = _examples(x, labels)
    model.train()
    batches = _batches(x, labels, batch_size, rng)
    for step in range(1, steps + 1):
        examples, classes = next(batches)
        logits = model(examples)
        if step == 1:  # all of them, before anything changes
            check_labels(labels, logits.shape[-1])
        loss = mg.cross_entropy(logits, classes)
        if not np.isfinite(loss.data):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}: try a smaller rate"
            )
        optimizer.zero_grad()
        loss.backward()
        factor = schedule((step - 1) / steps)
        optimizer.step(factor)
        yield Step(step, steps, loss.item(), factor)


def _examples(x: Any, labels: Any) -> tuple[Array, Array]:
    """Return inputs and labels as arrays of one length, at least 1."""
    x, labels = np.asarray(x), np.asarray(labels)
    if x.ndim == 0 or labels.ndim != 1:
        raise ValueError(
            f"expected inputs (N, …) and labels (N,), got {x.shape} and {labels.shape}"
        )
    if len(x) != len(labels) or len(x) == 0:
        raise ValueError(f"expected as many labels as inputs, got {len(labels)} for {len(x)}")
    return x, labels


def _batches(
    x: Array, labels: Array, size: int, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Yield batches of examples with their labels for ever, epoch after epoch."""
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x), size):
            chosen = order[start : start + size]
            yield x[chosen], labels[chosen]


@mg.no_grad()
def evaluate(model: Module, x: Array, labels: Array, batch_size: int = 1000) -> Evaluation:
    """Return loss and accuracy of a classifier, computed in evaluation mode and without a graph.

    Raises
    ------
    TypeError, ValueError, IndexError
        If x and labels differ in length or are empty, if labels are no class numbers, or
        ``batch_size`` no integer of at least 1.
    """
    check_positive(batch_size=batch_size)
    x, labels = _examples(x, labels)
    mode = model.training
    model.eval()
    try:
        loss, right = 0.0, 0
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            logits = model(x[part])
            loss += mg.cross_entropy(logits, labels[part], reduction="sum").item()
            right += int(np.sum(np.argmax(logits.data, axis=1) == labels[part]))
    finally:
        model.train(mode)
    return Evaluation(loss / len(x), right / len(x))
