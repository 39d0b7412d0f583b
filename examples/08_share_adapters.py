# %% [markdown]
"""
# Lesson 8: one base, many adapters: keep, combine, merge and share them.

What you will see: one net, pre-trained on MNIST, with an adapter for optical digits and one for shifted
MNIST.  Each is good at its own task, and both can act at once, as a sum.  They are merged into plain
weights, saved in files a fraction of the size of the net, and loaded again.  The base is never touched.

Why it matters: a fine-tuned copy for each task costs a whole net each time.  An adapter costs a few per
cent of one, and switching it off gives back exactly the old net.

Read next: loradora/config.py, loradora/matching.py, loradora/patterns.py, loradora/reaching.py,
loradora/views.py, loradora/peft.py, loradora/combining.py, loradora/adapting.py, loradora/checkpoint.py,
loradora/formats.py, loradora/files.py, loradora/saving.py, loradora/companion.py; then
09_lora_or_dora.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, because the imports take a moment

import os
import tempfile
import textwrap
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import Digits, few, mnist, optdigits, pretrained

import loradora as ld
from loradora.optim import linear_decay

# %% [markdown]
# ## 1. One base
#
# The base has learnt MNIST.  It gets two more tasks: the optical digits, and MNIST moved to the right by
# three pixels.


# %%
def shifted(digits, pixels=3):
    """Return the same digits, moved to the right."""
    images = np.pad(digits.x.reshape(-1, 28, 28), ((0, 0), (0, 0), (pixels, 0)))[:, :, :28]
    return Digits(images.reshape(-1, 784), digits.y)


rng = np.random.default_rng(0)
old, new = mnist(), optdigits()
base = pretrained(old.train, rng, steps=470)
before = base.state_dict()
tests = {"MNIST": old.test, "shifted": shifted(old.test), "optical": new.test}

# %% [markdown]
# On its own, it is good at what it has seen.


# %%
def show(name, model):
    """Print a line of the table: the accuracy on each test set."""
    scores = (100 * ld.evaluate(model, *test).accuracy for test in tests.values())
    print(f"   {name:18}" + "".join(f"{score:15.1f} %" for score in scores))


print("1. One base, three adapters: accuracies\n")
print(f"   {'active':18}" + "".join(f"{name:>17}" for name in tests))
show("the base", base)

# %% [markdown]
# ### Three adapters
#
# `get_peft_model` returns a model that shares the base and has an adapter of its own.  More adapters of
# either kind can be added to it.  One of them is active while it learns, from 50 images of each digit.


# %%
def config(kind):
    """Return a LoRA or DoRA of every layer."""
    return ld.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=kind == "DoRA")


def train(data):
    """Train the active adapter; nothing else requires a gradient."""
    optimizer = ld.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    how = {"steps": 200, "schedule": linear_decay, "rng": rng}
    losses = [step.loss for step in ld.fit(model, *data, optimizer=optimizer, **how)]
    assert np.mean(losses[-25:]) < losses[0] / 10, "it has not learnt its task"


model = ld.get_peft_model(base, config("LoRA"), "optical", rng=rng)
train(few(new.train, 50, rng))
model.add_adapter("shifted", config("LoRA"), rng=rng)
model.set_adapter("shifted")
train(few(shifted(old.train), 50, rng))
model.add_adapter("optical-dora", config("DoRA"), rng=rng)
model.set_adapter("optical-dora")
train(few(new.train, 50, rng))

# %% [markdown]
# Switch from one to the other: each is good at its own task, and has forgotten much of the others.

# %%
for name, task in (("optical", "optical"), ("optical-dora", "optical"), ("shifted", "shifted")):
    model.set_adapter(name)
    show(name, model)
    assert ld.evaluate(model, *tests[task]).accuracy > 0.8, f"{name} is not good at its own task"

# %% [markdown]
# ### Both at once, and none
#
# The corrections of LoRA adapters can be added up, those of DoRA cannot.  With all of them off, only the
# base is left.

# %%
model.set_adapter(["optical", "shifted"])
show("optical + shifted", model)
with model.disable_adapter():
    show("all off", model)
    off = np.array_equal(model(old.test.x).data, base(old.test.x).data)
unchanged = all(np.array_equal(before[n], p.data) for n, p in base.named_parameters())
print("\n   Each is good at its own task.  'optical + shifted' adds up both")
print("   corrections.  That they can be added does not mean that they get along:")
print("   neither was trained beside the other.")
print(f"   off equals the base bit for bit: {off}; the base has not changed: {unchanged}\n")

# %% [markdown]
# ## 2. Merged
#
# For use, an adapter can be merged into the weights.  The result is a new, plain net that knows nothing
# of adapters; the model stays as it is.

# %%
print("2. Merged: plain layers, no adapter, the same answers\n")
for name in ("optical", "optical-dora"):
    model.set_adapter(name)
    merged = model.merge_and_unload()
    gap = np.abs(merged(new.test.x).data - model(new.test.x).data).max()
    print(f"   {name:13} {type(merged).__name__}, largest difference of a logit {gap:.0e}")

# %% [markdown]
# ## 3. Files
#
# To share an adapter, send its file.  Whoever has the base needs nothing else.

# %%
directory = tempfile.TemporaryDirectory()
folder = Path(directory.name)
ld.save_model(folder / "base.npz", base)
for name in ("optical", "optical-dora"):
    model.save_adapter(folder / f"{name}.npz", name)

print("\n3. Files\n")
for file in sorted(folder.iterdir()):
    print(f"   {file.name:18} {file.stat().st_size:9,} bytes")

# %% [markdown]
# Loaded again, it gives the same answers, to the last bit.

# %%
model.set_adapter("optical-dora")
loaded = ld.PeftModel.from_pretrained(base, folder / "optical-dora.npz")
same = np.array_equal(loaded(new.test.x).data, model.eval()(new.test.x).data)
print(f"   loaded again, the same logits bit for bit: {same}")

# %% [markdown]
# Hugging Face's library PEFT saves an adapter as a folder.  With safetensors installed, such folders
# are written and read here, too.

# %%
try:
    model.save_pretrained(folder / "peft")
except ImportError as error:
    print(textwrap.indent(textwrap.fill(str(error), 75), "   "))
else:
    again = ld.PeftModel.from_pretrained(base, folder / "peft" / "optical-dora")
    same = np.array_equal(again(new.test.x).data, loaded(new.test.x).data)
    for file in sorted((folder / "peft" / "optical-dora").iterdir()):
        print(f"   {file.name:27} {file.stat().st_size:9,} bytes")
    print(f"   PEFT's folder: loaded again, the same logits: {same}")

# %% [markdown]
# The files are no longer needed.

# %%
directory.cleanup()
