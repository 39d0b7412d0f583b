"""What ``finetune_digits.py`` prints: how far it is, the table, and what the numbers say in words."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import digits
import numpy as np
import terminal

from loradora.train import Step

if TYPE_CHECKING:
    from finetune_digits import Agreement, Method, Results, Row

#: Each method's name in the table.
TITLES = {
    "frozen": "frozen base",
    "scratch": "from scratch",
    "head": "head only",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "dora": "DoRA",
}


def title(method: Method) -> str:
    """Return what the table calls a method: LoRA and DoRA have their rank behind the name."""
    return TITLES[method.name] + (f" r={method.rank}" if method.adapts else "")


# ---------------------------------------------------------------------------- while it runs


class Progress:
    """What is going on, on stderr: one line that is rewritten on a terminal, else a line per job."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.started, self.job = jobs, 0, ""
        self.live = terminal.can_rewrite(sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *reason: object) -> None:
        """Leave a clean line."""
        self.clear()

    def clear(self) -> None:
        """Make room for what is printed next: take away the line that is rewritten."""
        if self.live:
            self._show("")

    def start(self, job: str) -> None:
        """Begin the next job."""
        self.started += 1
        self.job = f"[{self.started}/{self.jobs}] {job}"
        self._show(self.job)

    def step(self, step: Step) -> None:
        """Take note of a step of training."""
        if self.live and step.step % 20 == 0:
            self._show(f"{self.job}, step {step.step} of {step.total}, loss {step.loss:.3f}")

    def _show(self, text: str) -> None:
        if self.live:
            # a line that is full would begin the next one, which a carriage return cannot undo
            room = terminal.width(sys.stderr) - 1
            terminal.say(f"\r{text[:room].ljust(room)}\r", end="")
        else:
            terminal.say(text)


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


# ---------------------------------------------------------------------------- the table


#: No line is longer, so that none is broken by a terminal of the usual width.
COLUMNS = 80


def summary(results: Results, per_class: int) -> str:
    """Return the table under a heading, and its findings below it.

    What is compared has to be of the same seeds.  If the experiment ended early, these are the seeds
    with all methods; or in its first seed, the methods that are finished.
    """
    finished = Counter(row.seed for _, row in results)
    seeds = [seed for seed, n in finished.items() if n == max(finished.values())]
    compared = [(run, row) for run, row in results if row.seed in seeds]
    heading = f"Accuracy in %, {per_class} labelled images per class"
    if len(seeds) > 1:
        heading += f",\nmean and standard deviation of {len(seeds)} seeds"
    lines = [heading, "", table(compared), "", *map(wrapped, findings(compared))]
    if rest := ", ".join(str(seed) for seed in finished if seed not in seeds):
        lines.append(wrapped(f"Left out, because some methods are not finished: seed {rest}."))
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Return prose in lines that fit, all but the first indented."""
    text = text.replace(" +/- ", "~+/-~")  # which is not to be broken
    return textwrap.fill(text, COLUMNS, subsequent_indent="    ").replace("~", " ")


def table(results: Results) -> str:
    """Return a table with a line for each method, averaged over the seeds; below it the deviations."""
    lines: list[tuple[str, ...]] = [
        ("method", "trainable", "share", "optdigits", "MNIST", "MNIST, off", "seconds")
    ]
    for name, pairs in by_title(results).items():
        runs, rows = zip(*pairs)
        cells = (
            name,
            f"{rows[0].trainable:,}",
            f"{share(rows[0])} %",
            percent(row.new_domain_accuracy for row in rows),
            percent(row.old_domain_accuracy for row in rows),
            percent(row.base_accuracy for row in rows) if runs[0].method.adapts else "-",
            f"{np.mean([row.seconds for row in rows]):.2f}",
        )
        stacked = [cell.replace(" +/-", "\n+/-").splitlines() for cell in cells]
        lines += zip_longest(*stacked, fillvalue="")
    widths = [max(map(len, column)) for column in zip(*lines)]
    head, *body = (
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
    notes = (
        "share: of all parameters, the adapter's own among them;\n"
        "MNIST, off: with the adapter switched off;\n"
        "seconds: of training at the chosen rate, without pre-training and other rates."
    )
    return "\n".join([head, "-" * len(head), *body, "", notes])


def by_title(results: Results) -> dict[str, Results]:
    """Return the results of each method, one per seed, in order of appearance."""
    found: dict[str, Results] = {}
    for run, row in results:
        found.setdefault(title(run.method), []).append((run, row))
    return found


def share(row: Row) -> str:
    """Return how much of the model is trainable, in percent."""
    return f"{100 * row.trainable / row.total:.{0 if row.trainable in (0, row.total) else 2}f}"


def percent(accuracies: Iterable[float]) -> str:
    """Return the mean in percent, and for several the standard deviation."""
    values = 100 * np.array(list(accuracies))
    return f"{values.mean():.1f}" + (f" +/- {values.std(ddof=1):.1f}" if len(values) > 1 else "")


# ---------------------------------------------------------------------------- the findings


def findings(results: Results) -> Iterator[str]:
    """Yield what these numbers say, and no more than they say."""
    rows = {name: [row for _, row in results if row.method == name] for name in TITLES}
    new = {m: 100 * np.array([row.new_domain_accuracy for row in rows[m]]) for m in TITLES}
    if rows["lora"] and rows["full"]:
        yield (
            f"LoRA trains {share(rows['lora'][0])} % of the parameters, and has "
            f"{100 * new['lora'].mean() / new['full'].mean():.1f} % of the accuracy of full fine-tuning."
        )
    if rows["lora"] and rows["dora"]:
        yield dora_against_lora(new["dora"] - new["lora"])
    if rows["scratch"] and rows["full"]:
        gain = (new["full"] - new["scratch"]).mean()
        yield f"Pre-training gains {gain:+.1f} points (full fine-tuning, against from scratch)."
    adapted = [name for name in ("lora", "dora") if rows[name]]
    if adapted:
        kept = [
            f"{TITLES[name]} {percent(row.old_domain_accuracy for row in rows[name])}"
            for name in (*adapted, "full")
            if rows[name]
        ]
        base = percent(row.base_accuracy for row in rows[adapted[0]])
        few = "" if len(rows[adapted[0]]) > 1 else " (one seed says little)"
        yield f"Kept on MNIST{few}: {', '.join(kept)}; with the adapter off {base}, as before."
    rates: dict[str, set[float]] = {}
    for run, row in results:
        if row.method != "frozen":
            rates.setdefault(row.method, set()).add(run.rate)
    if rates:
        yield "Learning rates chosen on validation: " + ", ".join(
            f"{name} {'/'.join(f'{rate:g}' for rate in sorted(chosen))}"
            for name, chosen in rates.items()
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
    spread = f" +/- {error:.1f} (paired, standard error)" if n > 1 else ""
    return f"DoRA against LoRA: {mean:+.1f}{spread} points; {verdict}."


# ---------------------------------------------------------------------------- merging, saving


def checked(agreement: Agreement) -> str:
    """Return in words what has been checked of adapters, merged and switched off."""
    return (
        f"Checked: merged into plain weights, {agreement.same:,} of {agreement.answers:,} answers\n"
        f"    on the new test images are the same (logits within {agreement.furthest:.0e});\n"
        "    switched off, each model is the base, bit for bit.\n"
    )


def saved(files: list[tuple[Path, Path]]) -> str:
    """Return where each base and adapter is, and how to load the first again."""
    base, adapter = files[0]
    lines = "\n    ".join(dict.fromkeys(str(file) for pair in files for file in pair))
    return f"""\
Saved:
    {lines}
To use them again:
    import loradora as ld
    base = ld.MLP({list(digits.SIZES)})
    ld.load_model({str(base)!a}, base)
    model = ld.PeftModel.from_pretrained(base, {str(adapter)!a})"""
