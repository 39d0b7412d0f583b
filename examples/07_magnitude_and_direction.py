"""Lesson 7: what DoRA's paper measured (arXiv:2402.09353, sec. 3.2), measured again on digits.

What you will see: a net pre-trained on MNIST learns the optical digits by full fine-tuning, LoRA and
DoRA.  At eight checkpoints and in each of three layers it says how far the weight has moved,

    ΔM = mean |mᵢ − m0ᵢ|            how much the lengths of its rows have changed     (eq. 3)
    ΔD = mean (1 − cos(wᵢ, w0ᵢ))    how far its rows have turned                      (eq. 4)

and how ΔM and ΔD correlate over layers and checkpoints: the paper's figure, which ``--plot`` draws.

Why it matters: the observation is why DoRA exists.  An observation on one model is not a law: see which
part of it an MLP repeats, and which not.

Read next: loradora/analysis.py; then 08_share_adapters.py.
"""

import argparse
import copy
import os
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
import plots
from digits import few, mnist, optdigits, pretrained

import loradora as ld
from loradora.analysis import correlation, weight_decomposition
from loradora.optim import linear_decay

PAPER = {"full": -0.62, "LoRA": 0.83, "DoRA": -0.31}  # VL-BART, query matrices
FIGURE = Path("out/07_magnitude_and_direction.png")
RATES = {"full": 0.003, "LoRA": 0.01, "DoRA": 0.01}


def train(base, data, method, *, r, steps, rng):
    """Adapt the base; return ΔM and ΔD at eight checkpoints, {layer: [Change, …]}."""
    if method == "full":
        model = copy.deepcopy(base).requires_grad_(True)
    else:
        options = {"r": r, "lora_alpha": 2 * r, "use_dora": method == "DoRA"}
        config = ld.LoraConfig(target_modules="all-linear", **options)
        model = ld.get_peft_model(base, config, rng=rng)
    optimizer = ld.AdamW(model.trainable_parameters(), lr=RATES[method], weight_decay=0)
    changes = []
    for step in ld.fit(
        model, *data, optimizer=optimizer, steps=steps, schedule=linear_decay, rng=rng
    ):
        if step.step % (steps // 8) == 0:
            changes.append(weight_decomposition(base, model))
    return {path: [change[path] for change in changes] for path in changes[0]}


def decomposition(base, new, r, runs, steps):
    """Print the paper's figure as a table; return the first run's points and all runs' correlations."""
    print("dM and dD, the changes of length and of direction:", end=" ")
    print(f"50 images per class, r = {r}, {steps} steps, runs: {runs}\n")
    print("           after training: dM, dD                          correlation of dM and dD")
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
        ends = np.mean([[layer[-1] for layer in layers.values()] for layers in found], axis=0)
        last = "  ".join("{:.3f}, {:.3f}".format(*layer) for layer in ends)
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
        "   Within a layer dM and dD both grow as training goes on, so they correlate in every method."
    )
    print(
        "   Pooled, it counts whether one proportion of dM to dD holds for all three layers.  How far"
    )
    print("   the base was trained moves these numbers, too: see --epochs 5.")
    return points, pooled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=15, help="of pre-training the base (15)")
    add("--rank", type=int, default=4, help="of the adapters (4)")
    add("--runs", type=int, default=3, help="draws and starts to average (3)")
    add("--steps", type=int, default=280, help="of fine-tuning (280)")
    add("--plot", nargs="?", const=FIGURE, type=Path, metavar="FILE", help=f"draw, into {FIGURE}")
    options = parser.parse_args()
    if min(options.epochs, options.rank, options.runs) < 1 or options.steps < 16:
        parser.error("--epochs, --rank and --runs are at least 1, --steps 16")
    if options.plot and not find_spec("matplotlib"):
        print(
            "no figure: --plot needs matplotlib (extra 'plot'): pip install matplotlib",
            file=sys.stderr,
        )
        options.plot = None
    base = pretrained(mnist().train, np.random.default_rng(0), steps=94 * options.epochs)
    points, pooled = decomposition(base, optdigits(), options.rank, options.runs, options.steps)
    if options.plot:
        plots.decomposition(points, pooled, PAPER, options.plot)
        print(f"\nThe figure (points of the first run) is in {options.plot}")
