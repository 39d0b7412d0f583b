"""Training and evaluation.  Nothing here prints: ``fit`` yields what happened, step by step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.nn import Module, Rng, check_model, check_positive, generator
from loradora.optim import (
    Optimizer,
    Schedule,
    check_bound,
    check_optimizer,
    clip_grad_norm_,
    constant,
)
from minigrad import hints
from minigrad.ops import check_labels, no_classes
from minigrad.scopes import at_once
from minigrad.tensor import as_array, as_reals

Array: TypeAlias = npt.NDArray[Any]
Loss: TypeAlias = Callable[[mg.Tensor, Array], mg.Tensor]

#: A label that counts for nothing, for example where a text was padded: ``mg.cross_entropy`` ignores it.
#: (Not an int: NumPy 2.0 may crash at ``labels == -100`` for unsigned labels; numpy#28117.)
IGNORED = np.int64(-100)


class Step(NamedTuple):
    """One step of training.

    Attributes
    ----------
    step
        Its number, from 1.
    total
        How many there will be.
    loss
        The loss of the batch before the step; by default its mean cross-entropy.
    rate
        The factor that the schedule put on the learning rate.
    grad_norm
        The norm of the gradients before they were clipped; None without ``clip_grad_norm``.
    """

    step: int
    total: int
    loss: float
    rate: float
    grad_norm: float | None = None


class Evaluation(NamedTuple):
    """How well a model does.

    Attributes
    ----------
    loss
        The mean cross-entropy in nats, over the labels that count.
    accuracy
        The share of right answers among them, 0 … 1.
    """

    loss: float
    accuracy: float


def fit(
    model: Module,
    x: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int = 32,
    schedule: Schedule = constant,
    loss: Loss = mg.cross_entropy,
    clip_grad_norm: float | None = None,
    lengths: npt.ArrayLike | None = None,
    start: int = 0,
    rng: Rng,
) -> Training:
    """Train on shuffled batches; yield a record after each step.

    Each step is taken when it is asked for: ``for step in fit(…): pass`` trains silently.  If nobody ever
    iterates, a warning says that nothing was trained.

    Training mode is set before every step, as in Hugging Face's Trainer.  So you may call
    ``model.eval()`` between two steps, and dropout is on again in the next.

    Parameters
    ----------
    model
        Maps a batch of x to logits (batch, …, classes), or to what ``loss`` takes.
    x
        Inputs, shape (N, …).  The model gets them in their own dtype: integers may be the ids of a text,
        in its :func:`windows`.
    labels
        Class numbers, one for each row of logits: shape (N,), or (N, T) for T places each.  A label of
        -100 counts for nothing.  With another loss, its targets: shape (N, …), of any dtype.
    optimizer
        Holds the parameters to train; others are not touched.
    steps
        How many batches to train on, those before ``start`` included.
    batch_size
        Examples in a batch.  Each epoch shuffles again and drops no example.
    schedule
        From progress (0 at the first step) to a factor on the learning rate.
    loss
        From the model's output and the targets of a batch to a single number, as a Tensor.
        ``loss=mg.mse_loss`` is regression.
    clip_grad_norm
        The largest norm that the gradients may have together, positive.  If it is larger, all gradients
        that the optimizer uses are scaled down before the step (:func:`clip_grad_norm_`).  With
        ``math.inf`` the norm is only measured, for the record.
    lengths
        How long each example is, (N,), if x was padded to one length.  Examples of similar lengths then
        share a batch, so that a model that cuts padding off meets little of it.  The shuffled examples of
        every 16 batches are sorted by length and cut into batches again; then all batches of the epoch
        are shuffled.
    start
        How many steps an interrupted training has taken already.  Schedule and shuffling continue from
        there.
    rng
        The source of the shuffling: a generator, from which one number is drawn, or a seed.  With
        ``start`` it must be the seed that the first training was given.

    Raises
    ------
    TypeError, ValueError
        At the call: if x and labels differ in length or are empty; with the default loss, if labels are
        not class numbers, or none counts; for ``steps`` or ``batch_size`` that are not integers of at
        least 1, a ``clip_grad_norm`` that is not a positive number, ``lengths`` that are not one number
        for each example, a ``start`` outside 0 … ``steps``, and a ``start`` with a generator.
    TypeError, ValueError, IndexError
        At the first step, before anything changes: with the default loss, for labels that the model has
        no logit for, logits of another shape, or a single logit; for a loss that is not a single number.
    RuntimeError
        At the first step, if no parameter of the optimizer gets a gradient from this model.
    FloatingPointError
        If the loss, or the norm of gradients to be clipped, is no longer finite, with what is known about
        the cause; the step is not taken.

    Notes
    -----
    An interrupted training continues bit for bit, even in the middle of an epoch, if four things are
    kept: the parameters, the state of the optimizer, the number of steps taken, and the generators that
    dropout draws from.  For an adapter, ``save_adapter`` and ``from_pretrained(…, is_trainable=True)``
    replace ``save_model`` and ``load_model``.

    Ctrl-C, or an error, leaves each step either taken completely or not at all.  Keep the training in a
    variable, ``training = fit(…)``, and iterate over that.  Then ``training.taken`` is the number of
    steps taken: the ``start`` to continue from.  (The last record may say one less, because Ctrl-C can
    come between a step and its record.)  With dropout the continuation differs from an uninterrupted
    training, because the numbers drawn for a step that was not taken stay drawn.

    Examples
    --------
    The first 10 of 200 steps warm up, and gradients longer than 1 are scaled down before the step:

    >>> import loradora as ld
    >>> x, labels = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 3
    >>> model = ld.MLP([4, 8, 3], rng=0)
    >>> careful = {"schedule": ld.warmup(10 / 200), "clip_grad_norm": 1.0}
    >>> optimizer = ld.AdamW(model.parameters(), lr=0.05)
    >>> records = list(fit(model, x, labels, optimizer=optimizer, steps=200, rng=0, **careful))
    >>> [round(step.rate, 2) for step in records[:16:5]]
    [0.0, 0.5, 1.0, 0.97]

    A training that can be interrupted:

    >>> import json, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> def prepared():
    ...     rng = np.random.default_rng(1)
    ...     model = ld.Sequential(ld.Dropout(0.5, rng=rng), ld.Linear(4, 3, rng=rng))
    ...     return model, ld.AdamW(model.parameters(), lr=0.01)
    >>> def dropouts(model):
    ...     return [m for _, m in model.named_modules() if isinstance(m, ld.Dropout)]
    >>> options = {"steps": 8, "batch_size": 6, "rng": 2}  # 4 steps are an epoch

    After six steps everything is written to files:

    >>> model, optimizer = prepared()
    >>> for step in fit(model, x, labels, optimizer=optimizer, **options):
    ...     if step.step == 6:
    ...         ld.save_model(folder / "model.npz", model)
    ...         np.savez(folder / "optimizer.npz", **optimizer.state_dict())
    ...         states = [m.rng.bit_generator.state for m in dropouts(model)]
    ...         written = (folder / "rest.json").write_text(json.dumps([step.step, states]))

    Another process makes the model and the optimizer again, reads the files, and continues:

    >>> again, optimizer = prepared()
    >>> ld.load_model(folder / "model.npz", again)
    >>> with np.load(folder / "optimizer.npz") as state:
    ...     optimizer.load_state_dict(state)
    >>> start, states = json.loads((folder / "rest.json").read_text())
    >>> for m, state in zip(dropouts(again), states):
    ...     m.rng.bit_generator.state = state
    >>> rest = list(fit(again, x, labels, optimizer=optimizer, start=start, **options))
    >>> [step.step for step in rest], rest[-1] == step
    ([7, 8], True)
    >>> all(np.array_equal(p.data, q.data) for p, q in zip(again.parameters(), model.parameters()))
    True
    """
    check_model(model)
    check_positive(steps=steps, batch_size=batch_size)
    steps, batch_size = int(steps), int(batch_size)  # NumPy's may be of eight bits
    _check_start(start, steps, rng)
    _check_parts(optimizer, schedule, loss)
    _check_clip(clip_grad_norm)
    x, labels = _examples(x, labels)
    classes = loss is mg.cross_entropy
    if classes:
        _check_classes(labels, _BY_DEFAULT)
    seed = int(generator(rng).integers(2**63))
    batches = _batches(x, labels, batch_size, seed, start, _lengths(lengths, len(x)))

    def training() -> Generator[Step, None, None]:
        model.train()
        # walking through the model at every step would cost a small one a tenth of its time
        modules = [module for _, module in model.named_modules()]
        for step in range(start + 1, steps + 1):
            if not all(module.training for module in modules):
                model.train()
            examples, targets = next(batches)
            output = model(examples)
            first = step == start + 1
            if classes and first:  # all labels, before anything changes
                _check_logits(output, targets, labels, _BY_DEFAULT)
            value = _single_number(loss(output, targets))
            if not np.isfinite(value.data):
                cause = _cause(model, examples, targets, first)
                raise FloatingPointError(f"the loss is {value.item()} at step {step}: {cause}")
            optimizer.zero_grad()
            value.backward()
            norm = _clip(model, optimizer, clip_grad_norm, step)
            factor = schedule((step - 1) / steps)
            optimizer.step(factor)
            yield Step(step, steps, value.item(), factor, norm)
        optimizer.zero_grad()  # so that no old gradient is taken for a new one

    return Training(training(), optimizer, start)


class Training(Iterator[Step]):
    """What :func:`fit` returns: a training that takes its next step when it is asked for it.

    It warns if no step was ever asked for.
    """

    _begun = True  # until there is something to warn about

    def __init__(
        self, steps: Generator[Step, None, None], optimizer: Optimizer, start: int
    ) -> None:
        self._steps = steps
        self._optimizer = optimizer
        self._elsewhere = optimizer.steps_taken - start
        self._begun = False

    @property
    def taken(self) -> int:
        """How many steps have been taken, those before ``start`` included.

        The optimizer counts them, so do not call its ``step()`` elsewhere during the training.
        """
        return self._optimizer.steps_taken - self._elsewhere

    def __next__(self) -> Step:
        self._begun = True
        return next(self._steps)

    def close(self) -> None:
        """End it early, as a generator is closed."""
        self._begun = True
        self._steps.close()

    def __del__(self) -> None:
        if not self._begun:
            warnings.warn(
                "fit was called but not iterated, so nothing was trained: for step in fit(...): pass",
                stacklevel=2,
            )


def _check_start(start: Any, steps: int, rng: Any) -> None:
    """Raise unless ``start`` is a possible number of steps, with a seed for the order of examples."""
    if isinstance(start, bool) or not isinstance(start, (int, np.integer)):
        raise TypeError(f"start must be an integer, not {start!r}")
    if not 0 <= start <= steps:
        raise ValueError(f"start must lie between 0 and steps={steps}, not {start}")
    if start and (rng is None or isinstance(rng, np.random.Generator)):
        raise TypeError(
            "to go on where a training was interrupted, fit needs the seed that it was given at first, "
            f"an int, not {rng!r}: a generator has moved on since"
        )


def _check_parts(optimizer: Any, schedule: Any, loss: Any) -> None:
    """Raise unless an optimizer and functions were given, not their classes or names."""
    check_optimizer(optimizer)
    for name, function in {"schedule": schedule, "loss": loss}.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, not {function!r}")


def _check_clip(max_norm: Any) -> None:
    """Raise unless ``max_norm`` is None or a positive number."""
    if max_norm is None:
        return
    check_bound(clip_grad_norm=max_norm)
    if max_norm == 0:
        raise ValueError("clip_grad_norm=0 would leave nothing of any gradient; None clips none")


def _examples(x: Any, labels: Any) -> tuple[Array, Array]:
    """Return inputs and labels as arrays of one length, at least 1."""
    x, labels = _numbers("x", x), _numbers("labels", labels)
    if x.ndim == 0 or labels.ndim == 0:
        raise ValueError(
            f"expected inputs (N, ...) and labels (N, ...), got {x.shape} and {labels.shape}"
        )
    if len(x) != len(labels) or len(x) == 0:
        flat = ": labels keep the shape (N, ...)" if len(x) and len(labels) % len(x) == 0 else ""
        raise ValueError(f"expected as many labels as inputs, got {len(labels)} for {len(x)}{flat}")
    return x, labels


def _numbers(name: str, given: Any) -> Array:
    """Return ``given`` as an array of real numbers; an error begins with its name."""
    try:
        # Tensors in a list are fine here: they are data, and need no gradients
        return as_reals(as_array(given) if isinstance(given, (list, tuple)) else given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


_BY_DEFAULT = "fit classifies by default; for regression give it loss=mg.mse_loss"


def _check_classes(labels: Array, hint: str) -> None:
    """Raise unless ``labels`` can be class numbers of which some count."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{no_classes(labels)}: {hint}")
    # not np.all(labels == IGNORED): for the windows of a text, that array is far larger than the text
    if labels.size == 0 or labels.min() == labels.max() == IGNORED:
        raise ValueError(
            f"no label counts: {f'all are {IGNORED}' if labels.size else 'there is none'}"
        )


def _check_logits(logits: mg.Tensor, targets: Array, labels: Array, hint: str) -> None:
    """Raise unless each of ``targets`` has its logits, with one for each of ``labels``, and several."""
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"expected logits (..., C) and labels (...), got {logits.shape} and {targets.shape}: {hint}"
        )
    classes = logits.shape[-1]
    if classes == 1:
        raise ValueError(
            "one logit tells no classes apart: its loss is 0 whatever the model does (for regression "
            "give fit loss=mg.mse_loss)"
        )
    if labels.min() < 0 or labels.max() >= classes:
        for start in range(0, len(labels), 4096):  # as in _check_classes, nothing large is made
            part = labels[start : start + 4096]
            check_labels(part[part != IGNORED], classes)


def _single_number(value: Any) -> mg.Tensor:
    """Return the value of a loss function, checked to be a single number."""
    if not isinstance(value, mg.Tensor):
        raise TypeError(f"the loss must be a Tensor, not a {hints.kind(value)}")
    if value.shape != ():
        raise ValueError(f"the loss must be a single number, not of shape {value.shape}")
    return value


def _cause(model: Module, examples: Array, targets: Array, fresh: bool) -> str:
    """Return what is known about why a loss is not finite; ``fresh`` if the model has not trained yet."""
    for name, array in {"inputs": examples, "labels": targets}.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"there is NaN or infinity in the {name} of this batch"
    names = [name for name, p in model.named_parameters() if not np.isfinite(p.data).all()]
    if names and fresh:
        return f"there was NaN or infinity in {', '.join(names)} before the first step"
    if names:
        return f"training has put NaN or infinity into {', '.join(names)}: try a smaller rate"
    if targets.dtype.kind in "iu" and np.all(targets == IGNORED):
        return f"no label of this batch counts, all are {IGNORED}: leave such examples out"
    return (
        "inputs and parameters are finite, but something computed from them is not: try a smaller "
        "rate or smaller inputs"
    )


def _clip(model: Module, optimizer: Optimizer, max_norm: float | None, step: int) -> float | None:
    """Clip the gradients that the optimizer uses; return their norm before, None without a bound."""
    if max_norm is None:
        return None
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        return clip_grad_norm_(moved, max_norm)
    except FloatingPointError as error:
        slopes = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        bad = [name for name, slope in slopes.items() if not np.isfinite(slope).all()]
        what = f"NaN or infinity in those of {', '.join(bad)}" if bad else "too large together"
        raise FloatingPointError(
            f"the norm of the gradients is not finite at step {step}, though the loss is: {what}"
        ) from error


def _lengths(lengths: Any, n: int) -> Array | None:
    """Return the lengths of n examples as an array, checked, or None if none are given."""
    if lengths is None:
        return None
    given = _numbers("lengths", lengths)
    if given.shape != (n,):
        raise ValueError(f"expected the lengths of {n} examples, ({n},), got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("lengths: there is NaN or infinity among them")
    return given


#: This many batches are cut together from examples sorted by length.
POOL = 16


def _batches(
    x: Array, labels: Array, size: int, seed: int, start: int, lengths: Array | None
) -> Iterator[tuple[Array, Array]]:
    """Yield batches of examples with their labels without end, from batch number ``start`` on.

    The order of an epoch depends only on the seed and the number of the epoch.
    """
    per_epoch = -(-len(x) // size)
    epoch, first = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order, turns = rng.permutation(len(x)), np.arange(per_epoch)
        if lengths is not None:
            pools = np.split(order, range(POOL * size, len(x), POOL * size))
            order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
            turns = rng.permutation(per_epoch)
        for i in turns[first:]:
            chosen = order[i * size : (i + 1) * size]
            yield x[chosen], labels[chosen]
        epoch, first = epoch + 1, 0


@mg.no_grad()
def evaluate(
    model: Module, x: npt.ArrayLike, labels: npt.ArrayLike, batch_size: int = 1000
) -> Evaluation:
    """Return loss and accuracy of a classifier, computed in evaluation mode and without a graph.

    Logits have the shape (N, C) for labels (N,), or (N, T, C) for labels (N, T).  A label of -100 counts
    for nothing.

    Afterwards every module is in the mode it was in before, even after an error or an interrupt.

    Several threads may evaluate one model at the same time if it already is in evaluation mode.
    Otherwise one thread may set the old mode again while another still computes.

    Raises
    ------
    TypeError, ValueError, IndexError
        If x and labels differ in length or are empty, if labels are not class numbers, none counts, or
        they do not fit the logits, or if ``batch_size`` is not an integer of at least 1.
    """
    check_model(model)
    check_positive(batch_size=batch_size)
    batch_size = int(batch_size)  # one of NumPy's may be of eight bits
    x, labels = _examples(x, labels)
    hint = "evaluate counts right classes"
    _check_classes(labels, hint)
    modules = [module for _, module in model.named_modules()]
    modes = [module.training for module in modules]
    as_before = at_once(object.__setattr__, modules, repeat("training"), modes)
    loss, right, counted = 0.0, 0, 0
    try:
        at_once(object.__setattr__, modules, repeat("training"), repeat(False))()
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            logits, wanted = model(x[part]), labels[part]
            _check_logits(logits, wanted, wanted, hint)
            losses = mg.cross_entropy(logits, wanted, reduction="none").data
            loss += float(losses.sum(dtype=np.float64))  # beyond 65504 a float16 is infinite
            right += int(np.sum(np.argmax(logits.data, axis=-1) == wanted))
            counted += int(np.sum(wanted != IGNORED))
    finally:
        as_before()
    return Evaluation(loss / counted, right / counted)


def windows(ids: npt.ArrayLike, length: int, stride: int = 1) -> tuple[Array, Array]:
    """Return the windows of a text, and for each place in them the id that comes next.

    Both have the shape (N, length).  Window n is ``x[n] = ids[n·stride : n·stride + length]``, and
    ``y[n]`` is the same, one place further on.  From ``x[n, : t + 1]`` a model learns to guess
    ``y[n, t]``.

    They are read-only views of ``ids``: a million windows take no memory, and :func:`fit` copies the
    windows of one batch at a time.  Ids at the end that do not fill a window are left out.

    Parameters
    ----------
    ids
        A text as integers, shape (T,): a number for each character, word or piece of a word.
    length
        How many ids a window has, at least 1; the text has at least one more.
    stride
        The distance from one window to the next.  1 gives every window, for training.
        ``stride=length`` gives windows that do not overlap, so that :func:`evaluate` counts each id once.

    Raises
    ------
    TypeError
        For ids, a length or a stride that are not integers; the text itself is not accepted as ids.
    ValueError
        For an empty text, one that is too short for a window, ids of another shape, and a length or
        stride below 1.

    Examples
    --------
    >>> x, y = windows([0, 10, 20, 30, 40], length=3)
    >>> x
    array([[ 0, 10, 20],
           [10, 20, 30]])
    >>> y
    array([[10, 20, 30],
           [20, 30, 40]])

    A model that sees only the current id, and a text for which that is enough:

    >>> import loradora as ld
    >>> text = np.arange(200) % 5
    >>> model = ld.Sequential(ld.Embedding(5, 8, rng=0), ld.Linear(8, 5, rng=0))
    >>> optimizer = ld.AdamW(model.parameters(), lr=0.05)
    >>> for step in fit(model, *windows(text, 16), optimizer=optimizer, steps=50, rng=0):
    ...     pass
    >>> evaluate(model, *windows(text, 16, stride=16)).accuracy
    1.0
    """
    check_positive(length=length, stride=stride)
    length, stride = int(length), int(stride)  # NumPy's may be of eight bits
    ids = _text(ids)
    if len(ids) <= length:
        raise ValueError(
            f"the text is too short, {len(ids)} ids: a window of {length} takes {length + 1}, because "
            "something must come next after its last id, too"
        )
    x, y = (np.lib.stride_tricks.sliding_window_view(part, length) for part in (ids[:-1], ids[1:]))
    return x[::stride], y[::stride]


def _text(ids: Any) -> Array:
    """Return the ids of a text as an array, (T,), of at least one."""
    kind = np.asarray(ids).dtype.kind if isinstance(ids, (list, tuple)) else ""
    if isinstance(ids, (str, bytes)) or kind in ("U", "S"):
        what = "text" if kind else type(ids).__name__
        raise TypeError(f"ids are integers, not a {what}: give each character a number first")
    array = _numbers("ids", ids)
    if array.ndim != 1:
        raise ValueError(f"expected the ids of one text, (T,), got {array.shape}")
    if len(array) == 0:
        raise ValueError("the text is empty")
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids are integers, not {array.dtype}")
    return array
