"""Lesson 9: LoRA or DoRA?  It depends on the learning rate, and on the rate of m.

What you will see: both with r = 1, adapted to the same few optical digits from the same base, at a small
learning rate, at one that suits LoRA, and DoRA with ten times that rate for m; at last m alone, A and B
left where they start.

Why it matters: the paper reports that DoRA is better and more robust at low rank.  At a shared small rate
it is so here, too; where LoRA has the rate that suits it, the gain is gone.  A comparison that tunes only
one side proves little, and that goes for the last lines as well: they try something for DoRA that was not
tried for LoRA (which could have a rate of its own for B: LoRA+, arXiv:2402.12354).  The very last line
says how much of the gain is m's: a length for every output, 394 numbers, and no direction at all.

Read next: finetune_digits.py, the whole comparison, with every rate chosen on a validation split.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import few, mnist, optdigits, pretrained

import loradora as ld
from loradora.optim import linear_decay

#: Learning rate, kind, learning rate of m.
RUNS = [
    (0.003, "LoRA", 0.003),
    (0.003, "DoRA", 0.003),
    (0.02, "LoRA", 0.02),
    (0.02, "DoRA", 0.02),
    (0.02, "DoRA", 0.2),
    (0.0, "DoRA", 0.2),
]


def adapt(base, data, kind, rate, rate_of_m, steps, rng):
    """Return the base with an adapter of rank 1, trained; m has a learning rate of its own."""
    config = ld.LoraConfig(r=1, lora_alpha=2, target_modules="all-linear", use_dora=kind == "DoRA")
    model = ld.get_peft_model(base, config, rng=rng)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not name.endswith(".m")]},
        {"params": [p for name, p in named if name.endswith(".m")], "lr": rate_of_m},
    ]
    optimizer = ld.AdamW(groups, lr=rate, weight_decay=0)
    for _ in ld.fit(model, *data, optimizer=optimizer, steps=steps, schedule=linear_decay, rng=rng):
        pass
    return model


def compare(base, new, draws, steps):
    """Print what DoRA gains over LoRA, on the same images, start and batches."""
    print(f"20 images per class, r = 1, {steps} steps, draws: {draws}\n")
    for rate, kind, rate_of_m in RUNS:
        scores = np.zeros(draws)
        for i in range(draws):
            rng = np.random.default_rng(i)
            data = few(new.train, 20, rng)
            model = adapt(base, data, kind, rate, rate_of_m, steps, rng)
            scores[i] = 100 * ld.evaluate(model, *new.test).accuracy
        name = kind + (f", m at {rate_of_m:g}" if rate_of_m != rate else "")
        line = f"   rate {rate:<6} {name:15} {scores.mean():5.1f} %"
        if kind == "LoRA":
            lora = scores
        else:
            gain = scores - lora
            line += f"   {gain.mean():+.1f} +/- {gain.std(ddof=1) / np.sqrt(draws):.1f}"
        print(line)
    print(
        "\n   On the right, the gain over the last LoRA above, same draws, +/- its standard error."
    )
    print("   A few draws and steps prove little: see --steps 280 --draws 10.")


def main():
    """Run the lesson."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=3, help="of images and starts (3; at least 2)")
    parser.add_argument("--steps", type=int, default=100, help="of training (100)")
    options = parser.parse_args()
    if options.draws < 2 or options.steps < 1:
        parser.error("a spread needs --draws 2 or more, and training --steps 1 or more")
    base = pretrained(mnist().train, np.random.default_rng(0), steps=470)
    compare(base, optdigits(), options.draws, options.steps)


if __name__ == "__main__":
    main()
