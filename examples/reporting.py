"""What ``finetune_digits.py`` prints: its progress, two tables, and what the numbers say in words."""

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

#: Each method's name in the tables.
TITLES = {
    "frozen": "frozen base",
    "scratch": "from scratch",
    "head": "head only",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "dora": "DoRA",
}


def title(method: Method) -> str:
    """Return the name of a method in the tables: LoRA and DoRA carry their rank."""
    return TITLES[method.name] + (f" r={method.rank}" if method.adapts else "")


# ---------------------------------------------------------------------------- while it runs


class Progress:
    """Shows progress on stderr: on a terminal one line that is rewritten, otherwise a line per job."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.started, self.job = jobs, 0, ""
        self.live = terminal.can_rewrite(sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *reason: object) -> None:
        """Leave a clean line."""
        self.clear()

    def clear(self) -> None:
        """Erase the line that is rewritten, to make room for what is printed next."""
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
            # a full line would begin the next one, which a carriage return cannot undo
            room = terminal.width(sys.stderr) - 1
            terminal.say(f"\r{text[:room].ljust(room)}\r", end="")
        else:
            terminal.say(text)


class Stopwatch:
    """Measures the time that an iterator takes, without the time of the loop around it."""

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


#: No line is longer, so that none is broken on a terminal of the usual width.
COLUMNS = 80


def summary(results: Results, per_class: int) -> str:
    """Return both tables under a heading, and the findings below them.

    Only results of the same seeds are compared.  If the experiment ended early, these are the seeds in
    which all methods are finished.  If it ended in its first seed, the finished methods are compared.
    """
    finished = Counter(row.seed for _, row in results)
    seeds = [seed for seed, n in finished.items() if n == max(finished.values())]
    compared = [(run, row) for run, row in results if row.seed in seeds]
    heading = f"Accuracy in %, {per_class} labelled images per class"
    if len(seeds) > 1:
        heading += f",\nmean and standard deviation of {len(seeds)} seeds"
    lines = [heading, "", table(compared), ""]
    if any(row.method != "frozen" for _, row in compared):
        lines += ["Accuracy at each learning rate in %", "", table_of_rates(compared), ""]
    lines += map(wrapped, findings(compared))
    if rest := ", ".join(str(seed) for seed in finished if seed not in seeds):
        lines.append(wrapped(f"Left out, because some methods are not finished: seed {rest}."))
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Return prose in lines that fit, all but the first indented."""
    text = text.replace(" +/- ", "~+/-~")  # no break here
    return textwrap.fill(text, COLUMNS, subsequent_indent="    ").replace("~", " ")


def table(results: Results) -> str:
    """Return a table with a line for each method, averaged over the seeds; below it the deviations."""
    lines: list[tuple[str, ...]] = [
        ("method", "trainable", "share", "optdigits", "MNIST after", "when off", "seconds")
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
    notes = (
        "share: of all parameters, including the adapter's own;\n"
        "MNIST after: what is still read after the training, with an adapter left on;\n"
        "when off: the same with the adapter switched off;\n"
        "seconds: training at the chosen rate, without pre-training and other rates."
    )
    return f"{aligned(lines)}\n\n{notes}"


def table_of_rates(results: Results) -> str:
    """Return a table for each domain: the accuracy at every learning rate, averaged over the seeds."""
    trained = {
        name: [row for _, row in pairs]
        for name, pairs in by_title(results).items()
        if pairs[0][1].method != "frozen"
    }
    rates = [f"{attempt.rate:g}" for attempt in next(iter(trained.values()))[0].attempts]
    tables = []
    for domain, heading in (("new", "optdigits"), ("old", "MNIST after")):
        lines = [(heading, *rates)]
        for name, rows in trained.items():
            lines.append((name, *(f"{value:.1f}" for value in at_each_rate(rows, domain))))
        tables.append(aligned(lines))
    return "\n\n".join(tables)


def at_each_rate(rows: list[Row], domain: str) -> digits.Array:
    """Return the accuracy on the ``new`` or ``old`` domain at each rate in percent, a mean over seeds."""
    return 100 * np.mean(
        [[getattr(a, f"{domain}_domain_accuracy") for a in row.attempts] for row in rows], axis=0
    )


def aligned(lines: list[tuple[str, ...]]) -> str:
    """Return lines of cells as text, with a rule below the first line.

    The first column is aligned to the left, all others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines)]
    head, *body = (
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
    return "\n".join([head, "-" * len(head), *body])


def by_title(results: Results) -> dict[str, Results]:
    """Return the results of each method, one per seed, in order of appearance."""
    found: dict[str, Results] = {}
    for run, row in results:
        found.setdefault(title(run.method), []).append((run, row))
    return found


def share(row: Row) -> str:
    """Return the share of the parameters that is trainable, in percent."""
    return f"{100 * row.trainable / row.total:.{0 if row.trainable in (0, row.total) else 2}f}"


def percent(accuracies: Iterable[float]) -> str:
    """Return the mean in percent, with the standard deviation if there are several."""
    values = 100 * np.array(list(accuracies))
    return f"{values.mean():.1f}" + (f" +/- {values.std(ddof=1):.1f}" if len(values) > 1 else "")


# ---------------------------------------------------------------------------- the findings


def findings(results: Results) -> Iterator[str]:
    """Yield what these numbers say, and no more than they say."""
    rows = {name: [row for _, row in results if row.method == name] for name in TITLES}
    new = {m: 100 * np.array([row.new_domain_accuracy for row in rows[m]]) for m in TITLES}
    if rows["lora"] and rows["full"]:
        others = "".join(
            f"; {TITLES[name]} has {100 * new[name].mean() / new['full'].mean():.1f} %"
            for name in ("scratch", "head")
            if rows[name]
        )
        yield (
            f"LoRA trains {share(rows['lora'][0])} % of the parameters, and has "
            f"{100 * new['lora'].mean() / new['full'].mean():.1f} % of the accuracy of full "
            f"fine-tuning{others}."
        )
    if rows["lora"] and rows["dora"]:
        yield dora_against_lora(new["dora"] - new["lora"])
    if rows["scratch"] and rows["full"]:
        gains = new["full"] - new["scratch"]
        few = " One seed says little." if len(gains) == 1 else ""
        yield (
            f"Pre-training gains {gains.mean():+.1f} points (full fine-tuning, against from scratch)."
            f"{few}"
        )
    yield from forgetting(rows)
    rates = {
        name: sorted({row.rate for row in rows[name]})
        for name in TITLES
        if name != "frozen" and rows[name]
    }
    if rates:
        yield "Learning rates chosen on validation: " + ", ".join(
            f"{name} {'/'.join(f'{rate:g}' for rate in chosen)}" for name, chosen in rates.items()
        )


def forgetting(rows: dict[str, list[Row]]) -> Iterator[str]:
    """Yield what is kept of MNIST: at the chosen rates, from the lowest to the highest, at equal ones."""
    adapted = [name for name in ("lora", "dora") if rows[name]]
    if not adapted:
        return
    compared = [name for name in (*adapted, "full") if rows[name]]
    kept = {name: at_each_rate(rows[name], "old") for name in compared}
    chosen = ", ".join(
        f"{TITLES[name]} {percent(row.old_domain_accuracy for row in rows[name])}"
        for name in compared
    )
    base = percent(row.base_accuracy for row in rows[adapted[0]])
    few = "" if len(rows[adapted[0]]) > 1 else " (one seed says little)"
    yield (
        f"Kept on MNIST at the chosen rates{few}: {chosen}; with the adapter off {base}, as before."
    )
    spans = (f"{TITLES[name]} {kept[name][0]:.1f} to {kept[name][-1]:.1f}" for name in compared)
    yield f"Kept from the lowest rate to the highest: {', '.join(spans)}."
    if "lora" in kept and "full" in kept:
        more = kept["lora"] - kept["full"]
        yield (
            f"At equal rates LoRA keeps more than full fine-tuning at {np.sum(more > 0)} of "
            f"{len(more)} rates ({more.min():+.1f} to {more.max():+.1f} points)."
        )


def dora_against_lora(gains: digits.Array) -> str:
    """Return in words how many points DoRA gained over LoRA, compared seed by seed."""
    n, mean = len(gains), gains.mean()
    error = gains.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    if n < 5:
        verdict = "too few seeds to tell, try --seeds 5"
    elif mean > 3 * error:  # not 2, because there are few seeds: Student's t
        verdict = "it beats LoRA here"
    else:
        verdict = "it does not beat LoRA here"
    spread = f" +/- {error:.2f} (paired, standard error)" if n > 1 else ""
    return f"DoRA against LoRA: {mean:+.2f}{spread} points; {verdict}."


# ---------------------------------------------------------------------------- merging, saving


def checked(agreement: Agreement) -> str:
    """Return in words what was checked about the adapters, merged and switched off."""
    return (
        f"Checked: merged into plain weights, {agreement.same:,} of {agreement.answers:,} answers\n"
        f"    on the new test images are the same (logits within {agreement.furthest:.0e});\n"
        "    switched off, each model is the base, bit for bit.\n"
    )


def saved(files: list[tuple[Path, Path]]) -> str:
    """Return where each base and adapter was saved, and how to load the first of them again."""
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
