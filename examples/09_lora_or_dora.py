# %% [markdown]
"""
# Lesson 9: LoRA or DoRA?  It depends on the learning rate, and on the rate of m.

What you will see: LoRA and DoRA with r = 1 learn the same few optical digits from the same base.  They
are compared at a small learning rate, at one that suits LoRA, and with ten times that rate for DoRA's m.
In the last line m learns alone: one length for every output, 394 numbers, and no direction at all.

Why it matters: the paper reports that DoRA is better and more robust at low rank.  In the four settings
that were tried, with 3 and 10 draws, 100 and 280 steps,

- at the small shared rate DoRA is ahead, by 0.8 to 1.4 points, at least five times its standard error;
- at LoRA's rate no gain is sure: it is −0.5 ± 0.3 to +1.3 ± 1.1;
- with a faster m it is 1.8 to 3.1 points, which is sure in three of the four settings;
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
parser.add_argument("--draws", type=int, default=3, help="of images and starts (3, the least)")
parser.add_argument("--steps", type=int, default=100, help="of training (100)")
options = parser.parse_args()
if options.draws < 3 or options.steps < 1:
    parser.error("a spread needs --draws 3 or more, and training --steps 1 or more")

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
# The fewer the draws, the less is known about this error itself.  So with few draws a gain must be a
# larger multiple of it to count: 4.3 times with three draws, 3.2 with four, and 3 is enough with more
# (Student's t, 95 %).

# %%
RUNS = [  # learning rate, name, learning rate of m
    (0.003, "LoRA", 0.003),
    (0.003, "DoRA", 0.003),
    (0.02, "LoRA", 0.02),
    (0.02, "DoRA", 0.02),
    (0.02, "DoRA, m at 0.2", 0.2),
    (0.0, "m alone, at 0.2", 0.2),
]

limit = {3: 4.3, 4: 3.2}.get(options.draws, 3)
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
        if abs(gain.mean()) > limit * error:
            line += "   ahead" if gain.mean() > 0 else "   behind"
    print(line)

# %% [markdown]
# What is neither ahead nor behind may well be luck.

# %%
print("\n   On the right, the gain over the last LoRA above, same draws, +/- its")
print(f"   standard error; 'ahead' or 'behind' if it is more than {limit:g} times that.")
print("   More draws say more: see --steps 280 --draws 10.")
