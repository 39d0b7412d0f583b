# %% [markdown]
"""
# Lesson 10: a small GPT changes its author: LoRA on the queries and values of attention.

What you will see: a net that has learnt to write like Jane Austen reads four acts of *Romeo and Juliet*.
Adapters of 2 to 9 % of its size make it write lines for speakers; switched off, they give the novelist
back.  A table says how well each method has learnt, and samples before and after show it.

In a transformer each character has a vector.  Attention lets these vectors look at one another.  From
each it makes three:

    q = Wq x    the query: what this character looks for
    k = Wk x    the key: what it can be found by
    v = Wv x    the value: what it tells those who find it

Where a query fits a key, the value comes over: y = softmax(Q Kᵀ/√d) V, where the rows of Q, K and V are
the q, k and v of all characters, d numbers each.  (Biases are left out here.)  A character only looks at
itself and at those before it, because the net has to guess what comes next.  A fourth matrix, Wo, mixes
what several such heads have found.  So attention has four matrices to adapt, and the net that follows it
has two more.

LoRA on Wq and Wv leaves both as they are and adds to what they compute: q = Wq x + s B (A x), and v
likewise.  Here A is (8, 128) and B (128, 8).  That makes 4 layers × 2 matrices × 8 (128 + 128) = 16,384
numbers to train, instead of 810,112.

Why it matters: this is where LoRA was tried first.  Its authors asked which of the four matrices to adapt
if the number of trained parameters is fixed (arXiv:2106.09685, sec. 7.1).  Their answer: more matrices at
a lower rank are better than one at a higher rank; and if there are to be two, Wq and Wv are better than
Wq and Wk.  That is why so many scripts say `target_modules=["q_proj", "v_proj"]`.  With `--ablation` you
can ask this net.

Read next: loradora/attention.py; examples/gpt.py, the whole net; examples/text.py, examples/author.py,
examples/pretrain_gpt.py; then 11_outgrow.py.
"""

# %%
import terminal

parser = terminal.begin(__doc__)  # first, because the imports take a moment

import json
import math
import os
import tempfile
import textwrap
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import author
import gpt
import numpy as np
import plots
from text import play

import loradora as ld

# %% [markdown]
# A notebook has no command line.  There, change the defaults below.  The first ones say what is learnt,
# and how.

# %%
LAYERS = "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"

add = parser.add_argument
either = parser.add_mutually_exclusive_group().add_argument
either(
    "--target-modules",
    nargs="+",
    choices=LAYERS,
    metavar="M",
    help=f"to adapt: any of {' '.join(LAYERS)}",
)
either("--ablation", action="store_true", help="which matrices to adapt, at about equal size")
add("--rank", type=int, default=8, help="of the adapters (8)")
add("--steps", type=int, default=40, help="batches of 32 windows (40; in the README 200)")
add("--rates", nargs="+", type=float, metavar="R", help="try these, and choose by validation")
add("--text", type=Path, metavar="FILE", help="adapt to a text of your own")
add("--seed", type=int, default=0, help="the first seed (0)")
add("--seeds", type=int, default=1, help="how many, to be averaged (1)")
FIGURE = Path("out/10_change_author.png")

# %% [markdown]
# The others say what is shown of it, and what is kept.

# %%
add("--prompt", default="Juliet.\nO ", help="what the samples continue from")
add("--temperature", type=float, default=0.6, help="0 takes the likeliest character (0.6)")
add("--out", type=Path, metavar="DIR", help="keep the adapters there")
add("--json", type=Path, metavar="FILE", help="write the table, an object per method and seed")
add("--plot", nargs="?", const=FIGURE, type=Path, metavar="FILE", help=f"draw, into {FIGURE}")
options = parser.parse_args()
if not 1 <= options.rank <= 128 or options.seeds < 1 or options.steps <= author.WARMUP:
    parser.error("--rank is 1 to 128, --seeds at least 1, --steps more than the 10 of the warm-up")
if options.ablation and options.rank % 4:
    parser.error("--ablation needs a --rank that is a multiple of 4")
if options.seed < 0 or not all(
    0 <= x < math.inf for x in (options.temperature, *(options.rates or ()))
):
    parser.error("--seed, --temperature and --rates are finite and not negative")
if options.plot and not find_spec("matplotlib"):
    terminal.say(plots.NO_FIGURE)
    options.plot = None
if options.plot and options.plot.suffix.lower() not in plots.FORMATS:
    parser.error(f"argument --plot: a figure is one of {', '.join(plots.FORMATS)}")

# %% [markdown]
# Before the work begins, the files are checked: no input may be overwritten, and every result can be
# saved.

# %%
if options.text:
    parser.keep("--text", options.text)
for option, file in {"--plot": options.plot, "--json": options.json}.items():
    if file:
        parser.expect_file(option, file)
if options.out:
    parser.expect_directory("--out", options.out)
try:
    gpt.check_prompt(options.prompt)
    new = author.own(options.text) if options.text else play()
except ValueError as error:
    parser.error(str(error))
except OSError as error:
    parser.error(f"argument --text: cannot use {options.text}: {error.strerror}")

# %% [markdown]
# ## 1. The novelist
#
# The net was made by `pretrain_gpt.py`, from five novels.  A sixth, which it has not read, costs it 1.3
# nats per character.  In other words, among 65 characters it gives the right one a probability of e⁻¹·³,
# about a quarter, in the geometric mean.

# %%
ld.keep_freed_memory()  # a step makes many large arrays: this saves a fifth of its time
base = gpt.pretrained()
old = author.northanger_abbey()
title = options.text.stem[:10] if options.text else "Romeo"

size = sum(p.size for p in base.parameters())
print(f"1. A net of {size:,} parameters has read five novels of Jane Austen.")
loss = gpt.loss_on(base, old)
print(f"   A sixth costs it {loss:.3f} nats per character (in 256 windows of 64).")

# %% [markdown]
# ## 2. The ways to learn another author
#
# The net learns from Acts I to IV of the play.  Two scenes of Act V serve to choose a learning rate, and
# the table reports the loss on the last scene.  `rate` is the one that did best on those two scenes: see
# `--rates`.  With several seeds, the first one chooses.  So few steps are only a beginning: no method has
# converged, and the table compares how far each gets in the same number of steps.

# %%
methods = author.methods(options.rank)
if options.ablation:
    methods = author.ablation(options.rank)
if options.target_modules:
    targets = tuple(dict.fromkeys(options.target_modules))
    methods = [author.FROZEN, *author.adapters(targets, options.rank)]

seeds = range(options.seed, options.seed + options.seeds)
print(f"\n2. {options.steps} steps on {title}, losses; seeds: {', '.join(map(str, seeds))}\n")
print(author.table_head(title))
runs, rows = {}, []
for method in methods:
    rates, same = options.rates or [method.rate], []
    for seed in seeds:
        try:
            run = author.best(method, base, new, rates=rates, steps=options.steps, seed=seed)
        except FloatingPointError as error:
            parser.exit(1, f"training failed: {error}\n")
        runs.setdefault(method, run)
        rates = [run.rate]
        same.append(author.measure(run, new.test, old))
    print(author.table_line(same), flush=True)
    rows += same

if options.json:
    options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(f"\n   The table as JSON: {options.json}")

# %% [markdown]
# With its adapter on, the net has forgotten much of the old author, just as after full fine-tuning.  With
# the adapter off, nothing has changed: the loss is that of the base, to the last digit.
#
# ## 3. Before and after
#
# One character is drawn at a time, with probability softmax(z/T) for the logits z and the temperature T.


# %%
def show(model):
    """Print the prompt and how a model continues it; the rest of a long line is indented."""
    rng = np.random.default_rng(options.seed)
    text = gpt.sample(model, options.prompt, 250, temperature=options.temperature, rng=rng)
    for line in (options.prompt + text).split("\n"):
        for part in textwrap.wrap(line, 70, subsequent_indent="      ") or [""]:
            print(f"   | {part}".rstrip())


adapted = [run for run in runs.values() if isinstance(run.model, ld.PeftModel)]
best = min(adapted, key=lambda run: np.mean(run.losses[-10:]))
print(f"\n3. {best.method.name}, seed {best.seed}.  The adapter is off:\n")
with best.model.disable_adapter():
    show(best.model)
hint = "" if options.text or options.steps >= 200 else " (speakers appear after about 200)"
print(f"\n   And on, after {options.steps} steps{hint}:\n")
show(best.model)

# %% [markdown]
# ## 4. What is kept
#
# An adapter is a small file beside the base, which all of them share.  `from_pretrained` puts one back on
# the base, also in another process, and `gpt.sample` writes with it.

# %%
shared = gpt.CHECKPOINT.stat().st_size / 1000
print(
    f"\n4. The adapters of seed {options.seed}, beside a base of {shared:,.0f} kB that they share:\n"
)
with tempfile.TemporaryDirectory() as folder:
    for run in adapted:
        file = (options.out or Path(folder)) / f"{run.method.slug}.npz"
        run.model.save_adapter(file)
        print(f"   {file if options.out else file.name}  {file.stat().st_size / 1000:.0f} kB")
    again = ld.PeftModel.from_pretrained(base, file)
    ids = new.test[: gpt.CONTEXT]
    same = np.array_equal(again(ids).data, adapted[-1].model(ids).data)
    print(f"\n   The last one, read again, gives the same logits bit for bit: {same}")

# %% [markdown]
# ## The picture
#
# The picture shows how the loss falls, and how far the heads have moved.  Each head has its own rows in
# Wq, Wk and Wv.  Where ‖W − W0‖/‖W0‖ is above 1, the change of these rows is larger than the rows were.

# %%
moved = [name for name in author.ATTENTION[:3] if author.moved_heads(adapted[0], base, name).any()]
picture = plots.Authors(
    curves={m.name: run.losses for m, run in runs.items() if m.kind not in ("frozen", "scratch")},
    frozen=gpt.loss_on(base, new.train),
    heads={name: author.moved_heads(adapted[0], base, name) for name in moved or author.QV},
    adapter=adapted[0].method.name,
)
if options.plot:
    picture.write(options.plot)
    print(f"\nThe figure is in {options.plot}")
picture
