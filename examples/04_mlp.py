# %% [markdown]
"""
# Lesson 4: a neural network, trained on digits with nothing but the pieces so far.

What you will see: a few of the images; the graph of one step, and which gradients it fills; a loss that
goes down; and the trained net in front of digits of other writers from another scanner.

Why it matters: a net is a function of its weights, and training is walking against its gradient.  The
last number, so much lower than the one before, calls for fine-tuning; how to do that with few numbers and
without losing the old net is what LoRA and DoRA are about.

Read next: loradora/nn.py, optim.py and train.py, then digits.py (the data); then 05_lora.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, for the imports take a moment

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import SIZES, mnist, optdigits

import loradora as ld
import minigrad as mg
from minigrad.engine import ancestry

# %% [markdown]
# ## 1. Two kinds of digits
#
# `old` is MNIST, `new` are the optical digits.  An image is a row of 784 numbers from 0 to 1.  Here
# they are as characters, which are twice as high as wide: so each stands for two rows of pixels.

# %%
old, new = mnist(), optdigits()
print("1. A 2, a 5 and an 8: MNIST above, optical digits below\n")
for digits in (old.train, new.train):
    images = [digits.x[np.flatnonzero(digits.y == k)[0]].reshape(28, 28) for k in (2, 5, 8)]
    for i in range(3, 25, 2):
        rows = [(image[i, 3:25] + image[i + 1, 3:25]) / 2 for image in images]
        print("   " + "  ".join("".join(" .:*#@"[int(5.99 * v)] for v in row) for row in rows))
    print()

# %% [markdown]
# ## 2. One step
#
# The net is 784-256-128-10, with a relu between the layers.  Its ten outputs go into the cross-entropy,
# which is small if the largest of them is that of the right digit.  A net that knows nothing gives each
# digit a tenth, and its loss is log 10.

# %%
rng = np.random.default_rng(0)
net = ld.MLP(SIZES, rng=rng)
x, labels = old.train.x[:64], old.train.y[:64]

loss = mg.cross_entropy(net(x), labels)
print("2. One step\n")
print(f"   the loss is {loss:.3f} (guessing among ten: log 10 = {np.log(10):.3f})")
print(f"   recorded from it back to the weights: {len(ancestry(loss))} nodes")

# %% [markdown]
# The walk back gives every weight and every bias its gradient, of its own shape.

# %%
loss.backward()
for name, p in net.named_parameters():
    print(f"   {name:16} {p.shape!s:11} gradient {p.grad.shape!s:11}", end="")
    print(f" size {np.linalg.norm(p.grad):.4f}")
print(f"   together {sum(p.size for p in net.parameters()):,} numbers\n")

# %% [markdown]
# ## 3. Training
#
# Take 64 images, walk back, move each number a little against its gradient, and start again.  `fit`
# does that, and AdamW says how far to move.  An epoch is once through all images.

# %%
EPOCHS, BATCH = 4, 64
per_epoch = -(-len(old.train.y) // BATCH)
optimizer = ld.AdamW(net.parameters(), lr=1e-3, weight_decay=0)
how = {"steps": EPOCHS * per_epoch, "batch_size": BATCH, "rng": rng}

print(f"3. Training on {len(old.train.y):,} images of MNIST\n")
print("   epoch   mean loss   validation")
losses = []
for step in ld.fit(net, *old.train, optimizer=optimizer, **how):
    losses.append(step.loss)
    if len(losses) == per_epoch:
        accuracy = ld.evaluate(net, *old.validation).accuracy
        print(f"   {step.step // per_epoch:5}   {np.mean(losses):9.3f}   {100 * accuracy:8.1f} %")
        losses.clear()

# %% [markdown]
# A net is a little better on the images that it was trained on.  The validation images are kept apart
# to see by how much.

# %%
seen, unseen = ld.evaluate(net, *old.train), ld.evaluate(net, *old.validation)
for name, part in (("what it was trained on", seen), ("the validation images", unseen)):
    print(f"   in the end, on {name}: loss {part.loss:.3f}, {100 * part.accuracy:.1f} %")

# %% [markdown]
# ## 4. Other writers, another scanner
#
# The same ten digits, and yet the net gets a good third of them wrong.

# %%
print("\n4. On images it has never seen\n")
for name, test in (("MNIST", old.test), ("optical digits", new.test)):
    print(f"   {name:16} {100 * ld.evaluate(net, *test).accuracy:5.1f} %")
