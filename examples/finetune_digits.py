"""LoRA and DoRA against full fine-tuning, on a real change of domain.

A net that reads MNIST is to read digits of other writers from another scanner, and learns it from only
a few labelled images per class.  Six methods get the same images and the same number of steps, and
each the learning rate that does best on a validation split:

    frozen    the pre-trained net as it is
    scratch   the same net, not pre-trained, on the new images alone
    head      only the last layer learns
    full      all of it learns
    lora      a low-rank correction s B A of every weight learns
    dora      the same, with the lengths of the rows of the weight learnt apart

You will see a table: how much each method trains, how well it reads the new digits, and how well it
still reads MNIST, with the adapter on and off.  LoRA comes close to full fine-tuning and trains less than
3 % as many parameters.  Left on, it forgets, too, the more the higher its learning rate; switched off, it
gives the old net back exactly, because nothing has touched it.

    python examples/finetune_digits.py                  well under a minute
    python examples/finetune_digits.py --seeds 5        mean ± standard deviation
    python examples/finetune_digits.py --plot           and a figure

Where to read on: ``loradora/adapters.py`` has the two formulas and their gradients, ``digits.py`` the
data, ``plots.py`` the figure.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

# Products this small gain little from a second thread, and lose much when it waits for a busy core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import digits
import numpy as np
import plots

import loradora as ld
import minigrad as mg
from loradora.optim import linear
from loradora.train import Step

#: Each method's name in the table.
METHODS = {
    "frozen": "frozen base",
    "scratch": "from scratch",
    "head": "head only",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "dora": "DoRA",
}
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)  # the learning rates that each may choose from
ADAPTERS = ("lora", "dora")
BATCH = 32
SWEEP = (1, 2, 4, 8, 16)  # the ranks in the figure


# ---------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Task:
    """What all methods of one seed share: the pre-trained base, the few images, the two domains."""

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
    def title(self) -> str:
        """What the table calls it."""
        return METHODS[self.name] + (f" r={self.rank}" if self.rank else "")


@dataclass(frozen=True)
class Run:
    """A model, trained by a method on a task at one learning rate."""

    method: Method
    task: Task
    rate: float
    model: Any
    seconds: float
    curve: list[tuple[int, float]]  # (step, accuracy on the new domain)


@dataclass(frozen=True)
class Row:
    """How well a run does: one object of the JSON file."""

    method: str
    trainable: int
    total: int
    new_domain_accuracy: float
    old_domain_accuracy: float
    base_accuracy: (
        float  # of the base on the old domain, after the training; adapters are switched off
    )
    seconds: float
    seed: int


Results = list[tuple[Run, Row]]


def experiment(chosen: argparse.Namespace) -> Results:
    """Return every method's best run for every seed."""
    methods = [adapter(m, chosen) if m in ADAPTERS else Method(m) for m in chosen.method]
    if chosen.plot:
        methods += [adapter(m, chosen, r) for m in ADAPTERS for r in SWEEP if r != chosen.rank]
    progress = Progress(chosen.seeds * (1 + len(methods)))
    results: Results = []
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        progress.start(f"seed {seed}: pre-training on MNIST")
        base = digits.pretrained(chosen.old.train, stream(seed, 0), report=progress.step)
        few = digits.few(chosen.new.train, chosen.per_class, stream(seed, 1))
        task = Task(seed, base, few, chosen.new, chosen.old, chosen.epochs, curves=chosen.plot)
        for method in methods:
            progress.start(f"seed {seed}: {method.title}")
            run = best(method, task, progress)
            results.append((run, measure(run)))
    progress.close()
    return results


def adapter(name: str, chosen: argparse.Namespace, rank: int | None = None) -> Method:
    """Return LoRA or DoRA as chosen, or of another rank with the same scaling α/r."""
    rank = rank or chosen.rank
    return Method(name, rank, chosen.alpha * rank / chosen.rank)


def stream(seed: int, purpose: int) -> np.random.Generator:
    """Return randomness of its own for each purpose.

    All methods of one seed see the same images in the same batches, and so compare in pairs.
    """
    return np.random.default_rng([seed, purpose])


def best(method: Method, task: Task, progress: Progress) -> Run:
    """Train at every candidate rate; return the run that does best on the validation split."""
    if method.name == "frozen":
        return Run(method, task, 0.0, task.base, 0.0, [])
    runs = [train(method, task, rate, progress) for rate in RATES]

    def quality(run: Run) -> tuple[float, float]:
        validation = ld.evaluate(run.model, *task.new.validation)
        return validation.accuracy, -validation.loss

    return max(runs, key=quality)


def train(method: Method, task: Task, rate: float, progress: Progress) -> Run:
    """Train a model by ``method`` on the few images, at one learning rate."""
    model = build(method, task.base, stream(task.seed, 2))
    steps = ld.fit(
        model,
        *task.few,
        optimizer=ld.AdamW(model.trainable_parameters(), lr=rate, weight_decay=0),
        steps=task.epochs * math.ceil(len(task.few.y) / BATCH),
        batch_size=BATCH,
        schedule=linear,
        rng=stream(task.seed, 3),
    )
    watch = Stopwatch()
    curve = [(0, ld.evaluate(model, *task.new.test).accuracy)] if task.curves else []
    for step in watch.time(steps):
        progress.step(step)
        if task.curves and step.step % 10 == 0:
            curve.append((step.step, ld.evaluate(model, *task.new.test).accuracy))
    return Run(method, task, rate, model, watch.seconds, curve)


def build(method: Method, base: ld.MLP, rng: np.random.Generator) -> Any:
    """Return the model to train; ``base`` is shared or copied, and stays as it is."""
    if method.name in ADAPTERS:
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


class Stopwatch:
    """Measures the time that an iterator takes, without that of the loop around it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yield the steps and add up the seconds they take."""
        started = time.perf_counter()
        for step in steps:
            self.seconds += time.perf_counter() - started
            yield step
            started = time.perf_counter()


def measure(run: Run) -> Row:
    """Return parameters, accuracies and time of a run."""
    model, task = run.model, run.task
    old = ld.evaluate(model, *task.old.test).accuracy
    if isinstance(model, ld.PeftModel):
        with model.disable_adapter():
            off = ld.evaluate(model, *task.old.test).accuracy
    else:
        off = ld.evaluate(task.base, *task.old.test).accuracy
    trainable = 0 if run.method.name == "frozen" else size(model.trainable_parameters())
    return Row(
        method=run.method.name,
        trainable=trainable,
        total=size(model.parameters()),
        new_domain_accuracy=ld.evaluate(model, *task.new.test).accuracy,
        old_domain_accuracy=old,
        base_accuracy=off,
        seconds=run.seconds,
        seed=task.seed,
    )


def size(parameters: Iterable[mg.Tensor]) -> int:
    """Return how many numbers these tensors hold."""
    return sum(p.size for p in parameters)


# ---------------------------------------------------------------------------- merging, saving


@mg.no_grad()
def check(runs: list[Run]) -> str:
    """Return in words that merging an adapter keeps its answers and switching it off undoes it.

    Raises
    ------
    RuntimeError
        If merged and live logits differ by more than rounding, or the model with its
        adapter off differs from the base in a single bit.
    """
    same = total = 0
    furthest = 0.0
    for run in runs:
        x, model, title = run.task.new.test.x, run.model.eval(), run.method.title
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
        same += int(np.sum(live.argmax(axis=1) == merged.argmax(axis=1)))
        total += len(x)
    return (
        f"merged into plain weights, {same:,} of {total:,} answers on the new test images are the same "
        f"(logits within {furthest:.0e});\n         switched off, each model is the base, bit for bit"
    )


def save(runs: list[Run], directory: Path) -> str:
    """Write the adapters and their bases, NumPy files all; return what is where and how to load it."""
    files: dict[int, list[Path]] = {}
    for run in runs:
        seed, method = run.task.seed, run.method
        base = directory / f"base_seed{seed}.npz"
        adapter = directory / f"{method.name}_r{method.rank}_seed{seed}.npz"
        ld.save_model(base, run.task.base)
        run.model.save_adapter(adapter)
        files.setdefault(seed, [base]).append(adapter)
    saved = "\n    ".join("  ".join(map(str, of_one_seed)) for of_one_seed in files.values())
    base, adapter, *_ = files[runs[0].task.seed]
    return f"""\
Saved:
    {saved}
To use them again:
    import loradora as ld
    base = ld.MLP({list(digits.SIZES)})
    ld.load_model("{base}", base)
    model = ld.PeftModel.from_pretrained(base, "{adapter}")"""


# ---------------------------------------------------------------------------- what is printed


class Progress:
    """What is going on, on stderr: one line that is rewritten on a terminal, else a line per job."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.started, self.job = jobs, 0, ""
        self.live = sys.stderr.isatty()

    def start(self, job: str) -> None:
        """Begin the next job."""
        self.started += 1
        self.job = f"[{self.started}/{self.jobs}] {job}"
        self._show(self.job)

    def step(self, step: Step) -> None:
        """Take note of a step of training."""
        if self.live and step.step % 20 == 0:
            self._show(f"{self.job}, step {step.step} of {step.total}, loss {step.loss:.3f}")

    def close(self) -> None:
        """Leave a clean line."""
        if self.live:
            self._show("")

    def _show(self, text: str) -> None:
        if self.live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def table(results: Results) -> str:
    """Return a table with a line for each method, averaged over the seeds."""
    lines = [("method", "trainable", "share", "optdigits", "MNIST", "MNIST, off", "seconds")]
    for title, rows in by_title(results).items():
        first = rows[0]
        lines.append(
            (
                title,
                f"{first.trainable:,}",
                f"{share(first)} %",
                percent(row.new_domain_accuracy for row in rows),
                percent(row.old_domain_accuracy for row in rows),
                percent(row.base_accuracy for row in rows) if first.method in ADAPTERS else "–",
                f"{np.mean([row.seconds for row in rows]):.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    head, *body = (
        "   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
    notes = (
        "share: of all parameters, the adapter's own among them; MNIST, off: with the adapter switched "
        "off;\nseconds: of training at the chosen rate, without those of pre-training and other rates."
    )
    return "\n".join([head, "-" * len(head), *body, "", notes])


def by_title(results: Results) -> dict[str, list[Row]]:
    """Return the rows of each method, one per seed, in order of appearance."""
    found: dict[str, list[Row]] = {}
    for run, row in results:
        found.setdefault(run.method.title, []).append(row)
    return found


def share(row: Row) -> str:
    """Return how much of the model is trainable, in percent."""
    return f"{100 * row.trainable / row.total:.{0 if row.trainable in (0, row.total) else 2}f}"


def percent(accuracies: Iterable[float]) -> str:
    """Return the mean in percent, and for several the standard deviation."""
    values = 100 * np.array(list(accuracies))
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def findings(results: Results) -> Iterator[str]:
    """Yield what these numbers say, and no more than they say."""
    rows = {name: [row for _, row in results if row.method == name] for name in METHODS}
    new = {m: 100 * np.array([row.new_domain_accuracy for row in rows[m]]) for m in METHODS}
    if rows["lora"] and rows["full"]:
        yield (
            f"LoRA reaches {100 * new['lora'].mean() / new['full'].mean():.1f} % of the accuracy of "
            f"full fine-tuning and trains {share(rows['lora'][0])} % of the parameters."
        )
    if rows["lora"] and rows["dora"]:
        yield dora_against_lora(new["dora"] - new["lora"])
    if rows["scratch"] and rows["full"]:
        gain = (new["full"] - new["scratch"]).mean()
        yield f"Pre-training on MNIST gains {gain:+.1f} points (full fine-tuning, against from scratch)."
    adapted = [name for name in ADAPTERS if rows[name]]
    if adapted:
        kept = [
            f"{METHODS[name]} {percent(row.old_domain_accuracy for row in rows[name])}"
            for name in (*adapted, "full")
            if rows[name]
        ]
        base = percent(row.base_accuracy for row in rows[adapted[0]])
        few = "" if len(rows[adapted[0]]) > 1 else " (one seed says little)"
        yield f"Kept on MNIST{few}: {', '.join(kept)}; with the adapter off {base}, as before."
    rates = {name: {run.rate for run, row in results if row.method == name} for name in METHODS}
    yield "Learning rates chosen on validation: " + ", ".join(
        f"{name} {'/'.join(f'{rate:g}' for rate in sorted(chosen))}"
        for name, chosen in rates.items()
        if chosen and name != "frozen"
    )


def dora_against_lora(gains: digits.Array) -> str:
    """Return in words what DoRA gained over LoRA, in points, seed by seed."""
    n, mean = len(gains), gains.mean()
    error = gains.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    if n < 5:
        verdict = "too few seeds to tell, try --seeds 5"
    elif mean > 3 * error:  # few seeds, hence not 2: Student's t
        verdict = "it beats LoRA here"
    else:
        verdict = "it does not beat LoRA here"
    spread = f" ± {error:.1f} (paired, standard error)" if n > 1 else ""
    return f"DoRA against LoRA: {mean:+.1f}{spread} points; {verdict}."


# ---------------------------------------------------------------------------- the command


def options() -> argparse.Namespace:
    """Return the options and the data they ask for, or end with one line that says what is wrong."""
    parser = Parser(
        description="LoRA and DoRA against full fine-tuning, from MNIST to the UCI optical digits."
    )
    add = parser.add_argument
    add("--method", nargs="+", choices=METHODS, metavar="M", help=f"some of {', '.join(METHODS)}")
    add("--rank", type=positive, default=4, help="of the adapters (4)")
    add("--alpha", type=float, help="lora_alpha (2 × rank)")
    add("--per-class", type=positive, default=20, help="labelled images of each digit (20)")
    add("--epochs", type=positive, default=40, help="over these images (40)")
    add("--seed", type=natural, default=0, help="the first seed (0)")
    add("--seeds", type=positive, help="how many seeds (1; 5 with --plot)")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="where to save (out)")
    add("--json", type=Path, metavar="FILE", help="write the table, an object per method and seed")
    add("--mnist", type=Path, metavar="DIR", help="MNIST's standard IDX files, gzipped or not")
    add("--plot", action="store_true", help="draw a figure of ranks 1 … 16, which takes longer")
    chosen = parser.parse_args()

    chosen.alpha = 2 * chosen.rank if chosen.alpha is None else chosen.alpha
    if not 0 < chosen.alpha < math.inf:
        parser.error(f"argument --alpha: must be positive and finite, not {chosen.alpha}")
    if chosen.plot and chosen.method:
        parser.error("argument --plot: the figure shows all methods, leave out --method")
    chosen.figure = chosen.plot
    chosen.plot = chosen.plot and find_spec("matplotlib") is not None
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
    # rather fail now than after the training
    for option, place in (("--out", chosen.out), ("--json", chosen.json and chosen.json.parent)):
        try:
            if place:
                place.mkdir(parents=option == "--out", exist_ok=True)
        except OSError as error:
            parser.error(f"argument {option}: cannot use {place} as a directory: {error.strerror}")
    if chosen.json and chosen.json.is_dir():
        parser.error(f"argument --json: {chosen.json} is a directory")
    return chosen


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """End without the usage, which ``--help`` shows."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    return natural(text, least=1)


def natural(text: str, least: int = 0) -> int:
    """Return a whole number of at least ``least``."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, not {text!r}")
    return int(text)


def main() -> None:
    """Run the experiment, then print, check, save and draw what came of it."""
    chosen = options()
    try:
        everything = experiment(chosen)
    except FloatingPointError as error:
        sys.exit(f"training failed: {error}, that is a smaller --alpha")
    results = [(run, row) for run, row in everything if run.method.rank in (0, chosen.rank)]
    adapters = [run for run, _ in results if run.method.name in ADAPTERS]

    seeds = f", mean ± standard deviation of {chosen.seeds} seeds" if chosen.seeds > 1 else ""
    print(f"Accuracy in %, {chosen.per_class} labelled images per class{seeds}\n")
    print(f"{table(results)}\n")
    print(*findings(results), sep="\n")
    if adapters:
        print(f"Checked: {check(adapters)}.\n")
        print(save(adapters, chosen.out))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for _, row in results], indent=2) + "\n")
        print(f"The table as JSON: {chosen.json}")
    if chosen.plot:
        print(f"The figure: {plots.draw(everything, chosen.rank, chosen.out)}")
    elif chosen.figure:
        print("No figure: --plot needs matplotlib, pip install -e '.[plot]'", file=sys.stderr)


if __name__ == "__main__":
    main()
