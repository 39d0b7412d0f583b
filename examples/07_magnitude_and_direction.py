"""Lesson 7: what DoRA's paper measured (arXiv:2402.09353, §3.2), measured again on digits.

What you will see: a net pre-trained on MNIST learns the optical digits by full fine-tuning, LoRA and
DoRA.  At eight checkpoints and in each of three layers, ΔM says how much the lengths of the rows have
changed (eq. 3), ΔD how far the rows have turned (eq. 4); their correlation is the paper's figure, which
``--plot`` draws.

Why it matters: the observation is why DoRA exists.  An observation on one model is not a law: see which
part of it an MLP repeats, and which not.

Read next: loradora/analysis.py; then 08_share_adapters.py.
"""

import argparse
import copy
import os
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import few, mnist, optdigits, pretrained

import loradora as ld
from loradora.analysis import correlation, weight_decomposition
from loradora.optim import linear

PAPER = {"full": -0.62, "LoRA": 0.83, "DoRA": -0.31}  # VL-BART, query matrices
RATES = {"full": 0.003, "LoRA": 0.01, "DoRA": 0.01}


def train(base, data, method, *, r, steps, rng):
    """Adapt the base; return ΔM and ΔD at eight checkpoints, {layer: [Change, …]}."""
    if method == "full":
        model = copy.deepcopy(base).requires_grad_(True)
    else:
        config = ld.LoraConfig(
            r=r, lora_alpha=2 * r, target_modules="all-linear", use_dora=method == "DoRA"
        )
        model = ld.get_peft_model(base, config, rng=rng)
    optimizer = ld.AdamW(model.trainable_parameters(), lr=RATES[method], weight_decay=0)
    changes = []
    for step in ld.fit(model, *data, optimizer=optimizer, steps=steps, schedule=linear, rng=rng):
        if step.step % (steps // 8) == 0:
            changes.append(weight_decomposition(base, model))
    return {path: [change[path] for change in changes] for path in changes[0]}


def decomposition(base, new, r, runs, steps):
    """Print the paper's figure as a table; return the points of the first run, {method: {layer: […]}}."""
    print(f"ΔM and ΔD: 50 images per class, r = {r}, {steps} steps, runs: {runs}\n")
    print("           after training: ΔM, ΔD                          correlation of ΔM and ΔD")
    print("           layers.0      layers.2      layers.4         pooled   in a layer   the paper")
    points, pooled = {}, {}
    for method in RATES:
        found = []
        for run in range(runs):
            rng = np.random.default_rng(run)
            found.append(train(base, few(new.train, 50, rng), method, r=r, steps=steps, rng=rng))
        points[method] = found[0]
        pooled[method] = np.mean([correlation(chain(*layers.values())) for layers in found])
        inside = np.mean([correlation(layer) for layers in found for layer in layers.values()])
        last = "  ".join("{:.3f}, {:.3f}".format(*layer[-1]) for layer in found[0].values())
        print(
            f"   {method:5}  {last}   {pooled[method]:+8.2f}  {inside:+9.2f}  {PAPER[method]:+11.2f}"
        )
    highest = max(pooled, key=pooled.get)
    negative = [method for method, value in pooled.items() if value < 0] or ["none"]
    print(f"\n   The paper's order: LoRA is the highest.  Here the highest is {highest}.")
    print(
        f"   The paper's signs: full and DoRA are negative.  Here, negative: {', '.join(negative)}."
    )
    print(
        "   Within a layer ΔM and ΔD both grow as training goes on, so they correlate in every method;"
    )
    print(
        "   pooled, it counts whether all layers stretch and turn in one proportion.  How far the base"
    )
    print("   was trained moves these numbers, too: see --epochs 5, and --runs 5.")
    return points


def plot(points, file):
    """Draw ΔD against ΔM: a panel per method, a colour and a marker per layer."""
    import matplotlib

    matplotlib.use("Agg")  # a file, no window
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, 3, figsize=(9, 4), sharex=True, sharey=True, layout="constrained"
    )
    every = {method: list(chain(*layers.values())) for method, layers in points.items()}
    looks = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")]  # safe for the colour-blind
    for panel, (method, layers) in zip(panels, points.items(), strict=True):
        for (path, changes), (colour, marker) in zip(layers.items(), looks, strict=True):
            M, D = np.transpose(changes)
            panel.plot(D, M, color=colour, marker=marker, label=path, linewidth=1)
        M, D = np.transpose(every[method])
        ends = np.array([0, D.max()])
        line = np.polyval(np.polyfit(D, M, 1), ends)
        panel.plot(
            ends, line, color="0.6", linewidth=6, alpha=0.5, zorder=0, label="line of best fit"
        )
        here, there = correlation(every[method]), PAPER[method]
        panel.set_title(f"{method}: {here:+.2f}".replace("-", "−"), fontweight="bold")
        panel.set_xlabel(f"ΔD: how far rows turned\n(the paper: {there:+.2f})".replace("-", "−"))
    panels[0].set_ylabel("ΔM: how much row lengths changed")
    panels[0].legend(loc="upper left", fontsize="small")
    highest = max(every, key=lambda method: correlation(every[method]))
    figure.suptitle(
        f"Turning and stretching go together most in {highest}: correlation of ΔD and ΔM"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    print(f"\nThe figure is in {file}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15, help="of pre-training the base")
    parser.add_argument("--rank", type=int, default=4, help="r")
    parser.add_argument("--runs", type=int, default=1, help="draws and starts to average")
    parser.add_argument("--steps", type=int, default=280, help="of fine-tuning")
    parser.add_argument("--plot", nargs="?", const="out/07_magnitude_and_direction.png", type=Path)
    options = parser.parse_args()
    if options.plot and not find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install -e '.[plot]'")
    base = pretrained(mnist().train, np.random.default_rng(0), steps=94 * options.epochs)
    new = optdigits()
    points = decomposition(base, new, options.rank, options.runs, options.steps)
    if options.plot:
        plot(points, options.plot)
