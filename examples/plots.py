"""The figure of ``finetune_digits.py``; the only file here that needs matplotlib.

Three answers in one picture: how fast the methods learn, what each parameter buys, and what the adapter
did to the first layer, whose weights can be looked at because they are weights of pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
FILTERS = 8


def draw(results: Results, rank: int, directory: Path) -> Path:
    """Write the figure; return where it is."""
    import matplotlib

    matplotlib.use("Agg")  # a file, no window
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure: Any = plt.figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.45, 1])
    left, right = above.subplots(1, 2)
    shown = [pair for pair in results if pair[0].method.rank in (0, rank)]
    _learning_curves(left, shown, rank)
    _parameters(right, results)
    _filters(below, shown)

    lora, full = (accuracies(shown, name).mean() for name in ("lora", "full"))
    row = next(row for _, row in shown if row.method == "lora")
    figure.suptitle(
        f"LoRA r={rank}: {100 * lora / full:.1f} % of full fine-tuning's accuracy "
        f"with {100 * row.trainable / row.total:.1f} % of the parameters",
        fontsize=13,
        fontweight="bold",
    )
    file = directory / "finetune_digits.png"
    figure.savefig(file, dpi=200)
    plt.close(figure)
    return file


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
    axes.annotate(f"frozen base {frozen:.1f}", (steps[-1], frozen + 0.5), ha="right")
    axes.set(
        title="How fast they learn (mean)",
        xlabel="step",
        ylabel="accuracy on the new digits (%)",
        ylim=(frozen - 30, 95),
    )
    axes.legend(frameon=False, loc="lower right")


def _parameters(axes: Any, results: Results) -> None:
    for name, (title, color, marker) in STYLE.items():
        counts, means, spreads = [], [], []
        for rank in sorted({run.method.rank for run, row in results if row.method == name}):
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
            label=f"{title}, r = 1 … 16" if name in ("lora", "dora") else title,
        )
    low, high = axes.get_ylim()
    frozen = accuracies(results, "frozen").mean()
    axes.text(0.04, 0.04, f"↓ frozen base {frozen:.1f}", transform=axes.transAxes)
    axes.set(
        title="What a parameter buys (mean ± sd)",
        xlabel="trainable parameters",
        ylabel="accuracy on the new digits (%)",
        xscale="log",
        xlim=(900, 4e5),
        ylim=(low - 0.7 * (high - low), high),  # room for the legend
    )
    axes.legend(frameon=False, loc="lower right")


def _filters(figure: Any, results: Results) -> None:
    """Show the rows of the first weight that LoRA changed most, each a picture of 28×28 pixels."""
    run = next(run for run, row in results if row.method == "lora")
    base, merged = (
        net.state_dict()["layers.0.weight"] for net in (run.task.base, run.model.merge_and_unload())
    )
    change = merged - base
    most = np.argsort(-np.linalg.norm(change, axis=1))[:FILTERS]
    figure.suptitle(
        "The first-layer filters that LoRA changed most: "
        f"each change is a mixture of the same {run.method.rank} patterns"
    )
    for line, (label, weight) in zip(
        figure.subplots(2, FILTERS), [("base", base), ("change", change)]
    ):
        limit = np.abs(weight[most]).max()
        for axes, row in zip(line, weight[most]):
            axes.imshow(row.reshape(28, 28), cmap="PuOr", vmin=-limit, vmax=limit)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label)
