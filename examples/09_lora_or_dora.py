# %% [markdown]
"""
# Lesson 9: LoRA or DoRA?  It depends on the learning rate, and on the rate of m.

What you will see: LoRA and DoRA with r = 1 learn the same few optical digits from the same base.  They
are compared at a small learning rate, at one that suits LoRA, and with ten times that rate for DoRA's m.
In the last line m learns alone: one length for every output, 394 numbers, and no direction at all.

Why it matters: the paper reports that DoRA is better and more robust at low rank.  In the four settings
that were tried, with 3 and 10 draws, 100 and 280 steps,

- at the small shared rate DoRA is ahead, by 0.8 to 1.4 points, at least five times its standard error;
- at LoRA's rate the gain depends on the steps: with 10 draws it is +1.1 ± 0.4 after 100, and +0.3 ± 0.5
  after 280;
- with a faster m DoRA is ahead, by 1.8 to 3.1 points;
- m alone is not found to be worse than LoRA, which trains four times as many numbers: +0.2 to +1.6.

A comparison that tunes only one side proves little.  A rate of its own was tried for m, but none for
LoRA's B (LoRA+, arXiv:2402.12354).  And the steps are fixed, not enough for every rate to converge: at
the small rate LoRA reads 73.5 % after 100 steps and 83.0 % after 280 (3 draws).

Read next: examples/finetune_digits.py, the whole comparison, with every rate chosen on a validation
split; examples/reporting.py; then 10_change_author.py.
"""

# %%
import terminal

parser = terminal.begin(__doc__)  # first, because the imports take a moment

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import few, mnist, optdigits, pretrained

import loradora as ld
from loradora.optim import linear_decay

# %% [markdown]
# A notebook has no command line.  There, change the defaults below.

# %%
parser.add_argument("--draws", type=int, default=3, help="of images and starts (3; at least 2)")
parser.add_argument("--steps", type=int, default=100, help="of training (100)")
options = parser.parse_args()
if options.draws < 2 or options.steps < 1:
    parser.error("a spread needs --draws 2 or more, and training --steps 1 or more")

# %% [markdown]
# ## Two learning rates
#
# An optimizer takes its parameters in groups, each with options of its own.  So m can have a learning
# rate that is not that of A and B.


# %%
def adapt(base, data, name, rate, rate_of_m, rng):
    """Return the base with an adapter of rank 1, trained; m has a learning rate of its own."""
    config = ld.LoraConfig(r=1, lora_alpha=2, target_modules="all-linear", use_dora=name != "LoRA")
    model = ld.get_peft_model(base, config, rng=rng)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not name.endswith(".m")]},
        {"params": [p for name, p in named if name.endswith(".m")], "lr": rate_of_m},
    ]
    optimizer = ld.AdamW(groups, lr=rate, weight_decay=0)
    how = {"steps": options.steps, "schedule": linear_decay, "rng": rng}
    for _ in ld.fit(model, *data, optimizer=optimizer, **how):
        pass
    return model


# %% [markdown]
# ## A fair draw
#
# How good an adapter gets depends on luck: on the images, the start and the order of the batches.  So
# each draw gives all of them the same luck, and there are several.

# %%
base = pretrained(mnist().train, np.random.default_rng(0), steps=470)
new = optdigits()


def accuracies(name, rate, rate_of_m):
    """Return the accuracy in percent for each draw of 20 images per digit."""
    scores = []
    for draw in range(options.draws):
        rng = np.random.default_rng(draw)
        model = adapt(base, few(new.train, 20, rng), name, rate, rate_of_m, rng)
        scores.append(100 * ld.evaluate(model, *new.test).accuracy)
    return np.array(scores)


# %% [markdown]
# ## The comparison
#
# What matters is the difference, draw by draw, and its standard error: what the draws leave uncertain.

# %%
RUNS = [  # learning rate, name, learning rate of m
    (0.003, "LoRA", 0.003),
    (0.003, "DoRA", 0.003),
    (0.02, "LoRA", 0.02),
    (0.02, "DoRA", 0.02),
    (0.02, "DoRA, m at 0.2", 0.2),
    (0.0, "m alone, at 0.2", 0.2),
]

print(f"20 images per class, r = 1, {options.steps} steps, draws: {options.draws}\n")
print(f"   {'the base':26} {100 * ld.evaluate(base, *new.test).accuracy:5.1f} %")
for rate, name, rate_of_m in RUNS:
    scores = accuracies(name, rate, rate_of_m)
    line = f"   rate {rate:<5g} {name:15} {scores.mean():5.1f} %"
    if name == "LoRA":
        lora = scores
    else:
        gain = scores - lora
        error = gain.std(ddof=1) / np.sqrt(options.draws)
        line += f"   {gain.mean():+.1f} +/- {error:.1f}"
        if abs(gain.mean()) > 3 * error:  # few draws, hence not 2
            line += "   ahead" if gain.mean() > 0 else "   behind"
    print(line)

# %% [markdown]
# Of a few draws, a gain that is not three times its standard error may well be luck.  Of three draws, so
# may one that is not 4.3 times.

# %%
print("\n   On the right, the gain over the last LoRA above, same draws, +/- its")
print("   standard error; 'ahead' or 'behind' if it is more than three times that.")
print("   Three draws say little about the error itself: see --steps 280 --draws 10.")
