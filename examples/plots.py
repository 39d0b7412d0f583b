"""The pictures of the course.

``draw`` is the figure of ``finetune_digits.py``: how fast the methods learn, what each parameter buys,
what is learnt and forgotten at each learning rate, and what the adapter did to the first layer, whose
weights can be looked at because each belongs to a pixel.  ``Decomposition`` is the figure of lesson 7,
``Authors`` that of lesson 10.  All need matplotlib.

A lesson's picture is only drawn when it is shown: by a notebook, below a cell that ends with the picture,
or by a script that is asked for a file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loradora.analysis import correlation

if TYPE_CHECKING:
    from finetune_digits import Results

#: Okabe and Ito's colours, which the colour-blind can tell apart; each has a marker of its own, too.
STYLE = {
    "full": ("full fine-tuning", "#000000", "s"),
    "lora": ("LoRA", "#0072B2", "o"),
    "dora": ("DoRA", "#D55E00", "D"),
    "scratch": ("from scratch", "#999999", "v"),
    "head": ("head only", "#009E73", "^"),
}
#: The same colours, for lines without a method of that name.
COLOURS = "#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#000000"
FILTERS = 8


def draw(results: Results, rank: int, file: Path) -> None:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")  # a file, no window
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure: Any = plt.figure(figsize=(10, 12.5), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, height_ratios=[1.15, 1.05, 0.8])
    shown = [pair for pair in results if pair[0].method.rank in (0, rank)]
    left, right = above.subplots(1, 2)
    _learning_curves(left, shown, rank)
    _parameters(right, results)
    _rates(middle, shown)
    _filters(below, shown)

    mean = {name: f"{accuracies(shown, name).mean():.1f} %" for name in ("frozen", *STYLE)}
    row = next(row for _, row in shown if row.method == "lora")
    figure.suptitle(
        f"LoRA r={rank} trains {100 * row.trainable / row.total:.1f} % of the parameters and reads "
        f"{mean['lora']} of the new digits; full fine-tuning {mean['full']},\n"
        f"from scratch {mean['scratch']}, the last layer alone {mean['head']}, the base as it is "
        f"{mean['frozen']} (means over the seeds)",
        fontsize=11,
    )
    figure.savefig(file, dpi=180)
    plt.close(figure)


def accuracies(results: Results, method: str, rank: int | None = None) -> Any:
    """Return a method's accuracies on the new domain in percent, one per seed."""
    return 100 * np.array(
        [
            row.new_domain_accuracy
            for run, row in results
            if row.method == method and rank in (None, run.method.rank)
        ]
    )


def _learning_curves(axes: Any, results: Results, rank: int) -> None:
    for name, (title, color, _) in STYLE.items():
        curves = np.array([run.curve for run, row in results if row.method == name])
        steps, accuracy = curves.mean(axis=0).T
        label = f"{title} r={rank}" if name in ("lora", "dora") else title
        axes.plot(steps, 100 * accuracy, color=color, label=label, linewidth=2)
    frozen = accuracies(results, "frozen").mean()
    axes.axhline(frozen, color="#666666", linestyle=":")
    axes.annotate(f"frozen base {frozen:.1f}", (steps[-1], frozen - 0.6), ha="right", va="top")
    axes.set(
        title="How fast they learn (mean)",
        xlabel="step",
        ylabel="accuracy on the new digits (%)",
        ylim=(frozen - 8, 95),
    )
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.2))


def _parameters(axes: Any, results: Results) -> None:
    for name, (title, color, marker) in STYLE.items():
        counts, means, spreads = [], [], []
        ranks = sorted({run.method.rank for run, row in results if row.method == name})
        for rank in ranks:
            values = accuracies(results, name, rank)
            rows = [r for run, r in results if (r.method, run.method.rank) == (name, rank)]
            counts.append(rows[0].trainable)
            means.append(values.mean())
            spreads.append(values.std(ddof=1) if len(values) > 1 else 0)
        axes.errorbar(
            counts,
            means,
            spreads,
            color=color,
            marker=marker,
            markersize=7,
            linewidth=2,
            elinewidth=1,
            capsize=3,
            label=title if ranks == [0] else f"{title}, r = {', '.join(map(str, ranks))}",
        )
    low, high = axes.get_ylim()
    frozen = accuracies(results, "frozen").mean()
    axes.text(0.04, 0.02, f"↓ frozen base {frozen:.1f}", transform=axes.transAxes)
    axes.set(
        title="What a parameter buys (mean ± sd)",
        xlabel="trainable parameters",
        ylabel="accuracy on the new digits (%)",
        xscale="log",
        xlim=(900, 4e5),
        ylim=(low - 0.75 * (high - low), high),  # room for the legend
    )
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.05))


def _rates(figure: Any, results: Results) -> None:
    """Show what each method learns and keeps at each rate, and then one against the other."""
    new, old, both = figure.subplots(1, 3)
    keys = "new_domain_accuracy", "old_domain_accuracy"
    for name, (_, color, marker) in STYLE.items():
        rows = [row for _, row in results if row.method == name]
        rates = [attempt.rate for attempt in rows[0].attempts]
        learnt, kept = (
            100 * np.mean([[getattr(a, key) for a in row.attempts] for row in rows], axis=0)
            for key in keys
        )
        look = {"color": color, "marker": marker, "markersize": 5, "linewidth": 2}
        new.plot(rates, learnt, **look)
        if name == "scratch":
            continue  # it has nothing to forget
        old.plot(rates, kept, **look)
        both.plot(learnt, kept, **look)
        chosen = [100 * np.mean([getattr(row, key) for row in rows]) for key in keys]
        both.plot(
            *chosen, marker=marker, markersize=13, markeredgewidth=2, fillstyle="none", color=color
        )
    base = 100 * np.mean([row.base_accuracy for _, row in results])
    for axes in (old, both):
        axes.axhline(base, color="#666666", linestyle=":")
        place = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.annotate("adapter off: the base", (1, base + 0.5), **place)
        axes.set(ylabel="accuracy on MNIST (%)", ylim=(None, base + 6))
    for axes in (new, old):
        axes.set(
            xscale="log",
            xlabel="learning rate",
            xticks=rates,
            xticklabels=[f"{r:g}" for r in rates],
        )
        axes.minorticks_off()
    new.set(title="Learnt at each rate", ylabel="accuracy on the new digits (%)")
    old.set(title="Kept of MNIST at each rate")
    both.set(title="Both: the rate rises downwards", xlabel="accuracy on the new digits (%)")
    figure.suptitle(
        "What is learnt and what is kept "
        "(means; colours and markers as above; ringed: at the chosen rates)"
    )


def _filters(figure: Any, results: Results) -> None:
    """Show the rows of the first weight that LoRA changed most, each a picture of 28×28 pixels."""
    run = next(run for run, row in results if row.method == "lora")
    base, merged = (
        net.state_dict()["layers.0.weight"] for net in (run.task.base, run.model.merge_and_unload())
    )
    change = merged - base
    most = np.argsort(-np.linalg.norm(change, axis=1))[:FILTERS]
    figure.suptitle(
        f"The {FILTERS} first-layer filters that LoRA changed most, one weight per pixel (one seed).\n"
        f"Each change s·BA is a mixture of the same {run.method.rank} patterns, the rows of A"
    )
    for line, (label, weight) in zip(
        figure.subplots(2, FILTERS), [("base W0", base), ("change", change)]
    ):
        limit = np.abs(weight[most]).max()
        for axes, row in zip(line, weight[most]):
            image = axes.imshow(row.reshape(28, 28), cmap="PuOr", vmin=-limit, vmax=limit)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label)
        bar = figure.colorbar(image, ax=line, pad=0.01)
        bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.2f}", "0", f"+{limit:.2f}"])
        bar.outline.set_visible(False)


# ---------------------------------------------------------------------------- lesson 7

FORMATS = ".jpg", ".pdf", ".png", ".svg"
NO_FIGURE = "no figure: it needs matplotlib (extra 'plot'): pip install matplotlib"


class Picture:
    """A picture that ``_figure`` draws only when it is shown or written."""

    def write(self, file: Path) -> None:
        """Write the picture in the format that the name of the file ends with, one of ``FORMATS``."""
        self._figure().savefig(file, dpi=150)

    def __repr__(self) -> str:
        if find_spec("matplotlib") is None:
            return NO_FIGURE
        return f"{type(self).__name__} of {', '.join(self._shown())}"

    def _repr_png_(self) -> bytes | None:
        if find_spec("matplotlib") is None:
            return None  # a notebook shows ``NO_FIGURE`` instead
        file = io.BytesIO()
        self._figure().savefig(file, format="png", dpi=150)
        return file.getvalue()

    def _shown(self) -> Any:
        """Return the names of what is shown."""
        raise NotImplementedError

    def _figure(self) -> Any:
        """Return the figure; pyplot is not used, because its backend is the notebook's."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Decomposition(Picture):
    """ΔM against ΔD: a panel per method, a colour and a marker per layer.

    Parameters
    ----------
    points
        For each method and layer the (ΔM, ΔD) of its checkpoints.
    paper
        For each method the correlation in the paper.
    """

    points: Any
    paper: Any

    def _shown(self) -> Any:
        return self.points

    def _figure(self) -> Any:
        from matplotlib.figure import Figure

        figure: Any = Figure(figsize=(9, 4), layout="constrained")
        panels = figure.subplots(1, 3, sharex=True, sharey=True)
        looks = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")]  # safe for the colour-blind
        pooled = {
            name: correlation(chain(*layers.values())) for name, layers in self.points.items()
        }
        for panel, (method, layers) in zip(panels, self.points.items(), strict=True):
            for (path, changes), (colour, marker) in zip(layers.items(), looks, strict=True):
                M, D = np.transpose(changes)
                panel.plot(D, M, color=colour, marker=marker, label=path, linewidth=1)
            M, D = np.transpose([change for changes in layers.values() for change in changes])
            ends = np.array([0, D.max()])
            line = np.polyval(np.polyfit(D, M, 1), ends)
            panel.plot(ends, line, color="0.6", linewidth=6, alpha=0.5, zorder=0, label="best fit")
            title = f"{method}: {pooled[method]:+.2f}\n(the paper: {self.paper[method]:+.2f})"
            panel.set_title(title.replace("-", "−"), fontweight="bold")
            panel.set_xlabel("ΔD: how far rows turned")
        panels[0].set_ylabel("ΔM: how much row lengths changed")
        panels[0].legend(loc="upper left", fontsize="small")
        highest = max(pooled, key=pooled.__getitem__)
        message = f"Turning and stretching go together most in {highest}"
        if highest == "LoRA" and min(pooled.values()) > 0:
            message += ", as in the paper; but no correlation is negative here"
        figure.suptitle(f"{message}\n(one run: its points, and their correlation)")
        return figure


# ---------------------------------------------------------------------------- lesson 10


@dataclass(frozen=True, repr=False)
class Authors(Picture):
    """How the loss falls, a line per method, and how far an adapter has moved each head of attention.

    Parameters
    ----------
    curves
        For each method the loss of each batch.
    frozen
        The loss of the base.
    heads
        For Wq and Wv, ‖W − W0‖/‖W0‖ for the rows of each head, (layers, heads).
    adapter
        The name of the method whose heads these are.
    """

    curves: Any
    frozen: float
    heads: Any
    adapter: str

    def _shown(self) -> Any:
        return self.curves

    def _figure(self) -> Any:
        from matplotlib.figure import Figure

        figure: Any = Figure(figsize=(10, 4), layout="constrained")
        left, *right = figure.subplots(
            1, 1 + len(self.heads), width_ratios=[2, *[0.9] * len(self.heads)]
        )
        for (name, losses), colour in zip(self.curves.items(), COLOURS):
            steps = np.arange(1, len(losses) + 1)
            last = np.array([np.mean(losses[max(0, k - 20) : k]) for k in steps])
            line = "--" if name.startswith("DoRA") else "-"
            left.plot(steps, last, line, color=colour, label=name, linewidth=2)
        left.axhline(self.frozen, color="0.4", linestyle=":", label="frozen base")
        left.set(
            xlabel="step",
            ylabel="nats per character",
            title="Training loss, mean of the last 20 batches",
        )
        left.legend(framealpha=1, edgecolor="white", fontsize="small")  # over the dotted line
        most = max(moved.max() for moved in self.heads.values())
        for panel, (name, moved) in zip(right, self.heads.items()):
            image = panel.imshow(moved, cmap="Blues", vmin=0, vmax=most)
            for (layer, head), value in np.ndenumerate(moved):
                shade = "white" if value > most / 2 else "black"
                panel.text(head, layer, f"{value:.2f}", ha="center", va="center", color=shade)
            panel.set(
                title=name, xlabel="head", xticks=range(moved.shape[1]), yticks=range(len(moved))
            )
        right[0].set_ylabel("layer")
        figure.colorbar(image, ax=right, shrink=0.6, label="‖W − W0‖/‖W0‖")
        figure.suptitle(
            f"How the loss falls, and which heads {self.adapter} has moved", weight="bold"
        )
        return figure
