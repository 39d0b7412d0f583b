"""LoRA and DoRA against full fine-tuning, on a real change of domain.

A net that reads MNIST learns to read the digits of other writers, from another scanner.  It gets only a
few labelled images per class.  Six methods see the same images for the same number of steps, and each
uses the learning rate that does best on a validation split:

    frozen    the pre-trained net as it is
    scratch   the same net, not pre-trained, on the new images alone
    head      only the last layer learns
    full      all of it learns
    lora      a low-rank correction s B A of every weight learns
    dora      the same, with the lengths of the rows of the weight learnt apart

The first table shows how much each method trains, how well it reads the new digits, and how well it
still reads MNIST.  LoRA comes close to full fine-tuning and trains less than 3 % as many parameters.
The second shows both accuracies at every learning rate.  The higher the rate, the more is forgotten.  At
equal rates LoRA forgets less than full fine-tuning.  But it needs a higher rate to learn as well, and
there it forgets more.  Switched off, an adapter gives the old net back exactly, because nothing has
touched it.

    python examples/finetune_digits.py                  ten seconds, if a core is free
    python examples/finetune_digits.py --seeds 5        a minute; mean ± standard deviation
    python examples/finetune_digits.py --plot           some four minutes; a figure of five seeds

Ctrl-C ends it early.  What is finished by then is saved and shown.

Where to read on: ``loradora/adapters.py`` has the two formulas, ``loradora/by_hand.py`` their gradients,
``digits.py`` the data, ``reporting.py`` the tables and what else is printed, ``plots.py`` the figure.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import terminal

if __name__ == "__main__":
    terminal.prepare()  # first, because the other imports take a moment

# Products this small gain little from a second thread, and lose much when it waits for a busy core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import digits
import numpy as np
import plots
import reporting

import loradora as ld
import minigrad as mg
from loradora.optim import linear_decay

with terminal.patience():  # a Ctrl-C that comes while NumPy loads this would be swallowed
    from numpy.random import default_rng

METHODS = ("frozen", "scratch", "head", "full", "lora", "dora")
ADAPTERS = ("lora", "dora")
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)  # the learning rates that each may choose from
BATCH = 32
SWEEP = (1, 2, 4, 8, 16)  # the ranks in the figure


# ---------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Task:
    """What all methods of one seed share: the pre-trained base, the few images and the two domains."""

    seed: int
    base: ld.MLP
    few: digits.Digits
    new: digits.Split
    old: digits.Split
    epochs: int
    curves: bool  # whether to record learning curves


@dataclass(frozen=True)
class Method:
    """A way to learn the new digits; only adapters have a rank and an alpha."""

    name: str
    rank: int = 0
    alpha: float = 0.0

    @property
    def adapts(self) -> bool:
        """Whether it trains an adapter beside a frozen base."""
        return self.name in ADAPTERS


def experiment(chosen: argparse.Namespace) -> Iterator[Result]:
    """Yield every method's best run for every seed, as soon as it is done."""
    methods = [adapter(m, chosen) if m in ADAPTERS else Method(m) for m in chosen.method]
    if chosen.plot:
        methods += [adapter(m, chosen, r) for m in ADAPTERS for r in SWEEP if r != chosen.rank]
    with reporting.Progress(chosen.seeds * (1 + len(methods))) as progress:
        for seed in range(chosen.seed, chosen.seed + chosen.seeds):
            progress.start(f"seed {seed}: pre-training on MNIST")
            base = digits.pretrained(chosen.old.train, stream(seed, 0), report=progress.step)
            few = digits.few(chosen.new.train, chosen.per_class, stream(seed, 1))
            task = Task(seed, base, few, chosen.new, chosen.old, chosen.epochs, curves=chosen.plot)
            for method in methods:
                progress.start(f"seed {seed}: {reporting.title(method)}")
                runs = attempts(method, task, progress)
                run = best(runs)
                yield run, measure(run, runs)


def adapter(name: str, chosen: argparse.Namespace, rank: int | None = None) -> Method:
    """Return LoRA or DoRA as chosen, or with another rank and the same scaling α/r."""
    rank = rank or chosen.rank
    return Method(name, rank, chosen.alpha * rank / chosen.rank)


def stream(seed: int, purpose: int) -> np.random.Generator:
    """Return a generator for one purpose, the same for all methods of a seed.

    So they see the same images in the same batches, and can be compared pair by pair.
    """
    return default_rng([seed, purpose])


# ---------------------------------------------------------------------------- the methods


def build(method: Method, base: ld.MLP, rng: np.random.Generator) -> Any:
    """Return the model to train; ``base`` is shared or copied, and never changes."""
    if method.adapts:
        config = ld.LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            target_modules="all-linear",
            use_dora=method.name == "dora",
        )
        return ld.get_peft_model(base, config, rng=rng)
    if method.name == "scratch":
        return ld.MLP(digits.SIZES, rng=rng)
    model = copy.deepcopy(base).requires_grad_(method.name == "full")
    if method.name == "head":
        *_, head = model.layers
        head.requires_grad_()
    return model


@dataclass(frozen=True)
class Run:
    """A model, trained by a method on a task at one learning rate."""

    method: Method
    task: Task
    rate: float
    model: Any
    seconds: float
    curve: list[tuple[int, float]]  # (step, accuracy on the new domain)


def train(method: Method, task: Task, rate: float, progress: reporting.Progress) -> Run:
    """Train a model by ``method`` on the few images, at one learning rate."""
    model = build(method, task.base, stream(task.seed, 2))
    steps = ld.fit(
        model,
        *task.few,
        optimizer=ld.AdamW(model.trainable_parameters(), lr=rate, weight_decay=0),
        steps=task.epochs * math.ceil(len(task.few.y) / BATCH),
        batch_size=BATCH,
        schedule=linear_decay,
        rng=stream(task.seed, 3),
    )
    watch = reporting.Stopwatch()
    curve = [(0, ld.evaluate(model, *task.new.test).accuracy)] if task.curves else []
    for step in watch.time(steps):
        progress.step(step)
        if task.curves and step.step % 10 == 0:
            curve.append((step.step, ld.evaluate(model, *task.new.test).accuracy))
    return Run(method, task, rate, model, watch.seconds, curve)


def attempts(method: Method, task: Task, progress: reporting.Progress) -> list[Run]:
    """Train at every candidate rate; what is frozen needs no training."""
    if method.name == "frozen":
        return [Run(method, task, 0.0, task.base, 0.0, [])]
    return [train(method, task, rate, progress) for rate in RATES]


def best(runs: list[Run]) -> Run:
    """Return the run that does best on the validation split of the new domain."""

    def quality(run: Run) -> tuple[float, float]:
        validation = ld.evaluate(run.model, *run.task.new.validation)
        return validation.accuracy, -validation.loss

    return max(runs, key=quality)


# ---------------------------------------------------------------------------- the measurements


@dataclass(frozen=True)
class Attempt:
    """How well a model reads the test images of both domains after training at one learning rate."""

    rate: float
    new_domain_accuracy: float
    old_domain_accuracy: float


@dataclass(frozen=True)
class Row:
    """How well a method does: one object of the JSON file.

    The accuracies are those of the run at ``rate``, which was chosen on the validation split.
    ``old_domain_accuracy`` is measured after the training, with the adapter on if there is one.
    ``base_accuracy`` is that of the base on the old domain, also after the training; an adapter is
    switched off for it.
    """

    method: str
    trainable: int
    total: int
    new_domain_accuracy: float
    old_domain_accuracy: float
    base_accuracy: float
    seconds: float
    seed: int
    rate: float
    attempts: list[Attempt]


Result = tuple[Run, Row]
Results = list[Result]


def measure(run: Run, runs: list[Run]) -> Row:
    """Return parameters, accuracies and time of a run, and the accuracies of all runs of its method."""
    model, task = run.model, run.task
    if isinstance(model, ld.PeftModel):
        with model.disable_adapter():
            off = ld.evaluate(model, *task.old.test).accuracy
    else:
        off = ld.evaluate(task.base, *task.old.test).accuracy
    trainable = 0 if run.method.name == "frozen" else size(model.trainable_parameters())
    attempt = read_both(run)
    return Row(
        method=run.method.name,
        trainable=trainable,
        total=size(model.parameters()),
        new_domain_accuracy=attempt.new_domain_accuracy,
        old_domain_accuracy=attempt.old_domain_accuracy,
        base_accuracy=off,
        seconds=run.seconds,
        seed=task.seed,
        rate=run.rate,
        attempts=[attempt if other is run else read_both(other) for other in runs],
    )


def read_both(run: Run) -> Attempt:
    """Evaluate a model on the test images of both domains."""
    new, old = (ld.evaluate(run.model, *domain.test) for domain in (run.task.new, run.task.old))
    return Attempt(run.rate, new.accuracy, old.accuracy)


def size(parameters: list[mg.Tensor]) -> int:
    """Return how many numbers these tensors hold."""
    return sum(p.size for p in parameters)


# ---------------------------------------------------------------------------- merging, saving


@dataclass(frozen=True)
class Agreement:
    """How well the answers of merged models agree with those of the models they were merged from."""

    answers: int
    same: int  # of these answers
    furthest: float  # the largest difference of their logits


@mg.no_grad()
def check(runs: list[Run]) -> Agreement:
    """Check that merging an adapter keeps its answers, and that switching it off gives the base.

    Raises
    ------
    RuntimeError
        If merged and live logits differ by more than rounding, or the model with its
        adapter off differs from the base in a single bit.
    """
    answers = same = 0
    furthest = 0.0
    for run in runs:
        x, model, title = run.task.new.test.x, run.model.eval(), reporting.title(run.method)
        live, merged, base = (
            net(x).data for net in (model, model.merge_and_unload(), run.task.base)
        )
        with model.disable_adapter():
            if not np.array_equal(model(x).data, base):
                raise RuntimeError(f"{title}: with the adapter off, the model is not the base")
        difference = float(np.abs(live - merged).max())
        if not difference <= 1e-5 * max(1, np.abs(live).max()):
            raise RuntimeError(f"{title}: merged and live logits differ by {difference:.2g}")
        furthest = max(furthest, difference)
        answers += len(x)
        same += int(np.sum(live.argmax(axis=1) == merged.argmax(axis=1)))
    return Agreement(answers, same, furthest)


def files(directory: Path, seed: int, method: Method) -> tuple[Path, Path]:
    """Return where the base of a seed is saved, and where one of its adapters."""
    adapter = f"{method.name}_r{method.rank}_seed{seed}.npz"
    return directory / f"base_seed{seed}.npz", directory / adapter


def save(runs: list[Run], directory: Path) -> list[tuple[Path, Path]]:
    """Write NumPy files; return those of its base and its adapter for each run."""
    saved = [files(directory, run.task.seed, run.method) for run in runs]
    for run, (base, adapter) in zip(runs, saved):
        ld.save_model(base, run.task.base)
        run.model.save_adapter(adapter)
    return saved


def write_rows(results: Results, file: Path | None) -> None:
    """Write the rows as JSON, if a file is given."""
    if file:
        text = json.dumps([asdict(row) for _, row in results], indent=2)
        file.write_text(text + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------- the command


def options() -> argparse.Namespace:
    """Return the options and the data that they ask for, or end with one line on what is wrong."""
    parser = terminal.Parser(
        usage="%(prog)s [options]",
        description="LoRA and DoRA against full fine-tuning, from MNIST to the UCI optical digits.",
    )
    add = parser.add_argument
    add("--method", nargs="+", choices=METHODS, metavar="M", help=f"some of {', '.join(METHODS)}")
    add("--rank", type=terminal.positive, default=4, help="of the adapters (4)")
    add("--alpha", type=float, help="lora_alpha (twice the rank)")
    add(
        "--per-class", type=terminal.positive, default=20, help="labelled images of each digit (20)"
    )
    add("--epochs", type=terminal.positive, default=40, help="over these images (40)")
    add("--seed", type=terminal.natural, default=0, help="the first seed (0)")
    add("--seeds", type=terminal.positive, help="how many seeds (1; 5 with --plot)")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="where to save (out)")
    add("--json", type=Path, metavar="FILE", help="write the tables, an object per method and seed")
    add("--mnist", type=Path, metavar="DIR", help="MNIST's standard IDX files, gzipped or not")
    add("--plot", action="store_true", help="draw a figure of ranks 1 to 16, which takes longer")
    chosen: argparse.Namespace = parser.parse_args()

    chosen.alpha = 2 * chosen.rank if chosen.alpha is None else chosen.alpha
    numbers = np.finfo(np.float32)  # alpha/rank has to be one of these
    if not float(numbers.tiny) <= chosen.alpha / chosen.rank <= float(numbers.max):
        parser.error(f"argument --alpha: must be positive and finite, not {chosen.alpha}")
    if chosen.plot and chosen.method:
        parser.error("argument --plot: the figure shows all methods, leave out --method")
    wanted, chosen.plot = chosen.plot, chosen.plot and find_spec("matplotlib") is not None
    chosen.seeds = chosen.seeds or (5 if chosen.plot else 1)
    chosen.method = [name for name in METHODS if name in (chosen.method or METHODS)]
    if chosen.rank > digits.SIZES[0]:
        parser.error(f"argument --rank: at most {digits.SIZES[0]}, not {chosen.rank}")
    try:
        chosen.old, chosen.new = digits.mnist(chosen.mnist), digits.optdigits()
    except (OSError, ValueError) as error:
        parser.error(f"argument --mnist: {error}")
    most = digits.most_per_class(chosen.new.train)
    if chosen.per_class > most:
        parser.error(
            f"argument --per-class: at most {most} images per class, not {chosen.per_class}"
        )
    expect_targets(chosen, parser)
    if wanted and not chosen.plot:
        terminal.say(plots.NO_FIGURE)
    return chosen


def expect_targets(chosen: argparse.Namespace, parser: terminal.Parser) -> None:
    """End with an error if any of the files to write cannot be written."""
    parser.expect_directory("--out", chosen.out)
    adapters = [adapter(name, chosen) for name in chosen.method if name in ADAPTERS]
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    for file in {file for seed in seeds for a in adapters for file in files(chosen.out, seed, a)}:
        parser.expect_file("--out", file)
    chosen.figure = chosen.out / "finetune_digits.png"
    if chosen.plot:
        parser.expect_file("--plot", chosen.figure)
    if chosen.json:
        parser.expect_file("--json", chosen.json)


def main() -> None:
    """Run the experiment and conclude from what is finished, even if something ends it early."""
    chosen = options()
    everything: Results = []
    try:
        for result in experiment(chosen):
            everything.append(result)
        if chosen.plot:
            plots.draw(everything, chosen.rank, chosen.figure)
    except FloatingPointError as error:
        sys.exit(f"training failed: {error}, that is a smaller --alpha")
    finally:
        conclude(everything, chosen)
    if chosen.plot:
        print(f"The figure: {chosen.figure}")


def conclude(everything: Results, chosen: argparse.Namespace) -> None:
    """Save and show what is finished; if one of these steps fails, the others are still done."""
    with terminal.patience():
        results = [(run, row) for run, row in everything if run.method.rank in (0, chosen.rank)]
        if not results:
            return
        adapters = [run for run, _ in results if run.method.adapts]
        try:
            write_rows(results, chosen.json)
        finally:
            try:
                saved = save(adapters, chosen.out)
            finally:
                print(reporting.summary(results, chosen.per_class))
    if adapters:
        print(reporting.checked(check(adapters)))
        print(reporting.saved(saved))
    if chosen.json:
        print(f"The results as JSON: {chosen.json}")


if __name__ == "__main__":
    main()
