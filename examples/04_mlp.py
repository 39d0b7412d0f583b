# %% [markdown]
"""
# Lesson 4: a neural network, trained on digits with nothing but minigrad and a few layers.

What you will see: a few of the images; the graph of one step, and which gradients it fills; a loss that
goes down; and how the trained net does on digits of other writers, from another scanner.

Why it matters: a loss is a function of the net's weights, and training walks against its gradient.  The
last accuracy is much lower than the one before it, so the net needs fine-tuning.  LoRA and DoRA do that
with few numbers, and without losing the old net.

Read next: minigrad/tensor.py, minigrad/scopes.py, minigrad/foreign.py and minigrad/hints.py, what a
Tensor is besides its graph; loradora/nn.py, loradora/optim.py, loradora/train.py and loradora/memory.py,
networks and their training; examples/terminal.py, what every lesson begins with; then 05_lora.py.
"""

# %%
import terminal

terminal.begin(__doc__).parse_args()  # first, because the imports take a moment

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
# `old` is MNIST, `new` are the optical digits.  An image is a row of 784 numbers from 0 to 1.  Here we
# show them as characters.  A character is twice as high as wide, so it stands for two rows of pixels.

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
# which is small if the output of the right digit is well above the others.  A net that knows nothing
# gives each digit a tenth, and its loss is log 10.

# %%
rng = np.random.default_rng(0)
net = ld.MLP(SIZES, rng=rng)
x, labels = old.train.x[:64], old.train.y[:64]

loss = mg.cross_entropy(net(x), labels)
print("2. One step\n")
print(f"   the loss is {loss:.3f} (guessing among ten: log 10 = {np.log(10):.3f})")
recorded = ancestry(loss)  # the results, and the leaves that they were computed from
leaves = sum(isinstance(one, mg.Tensor) for one in recorded)
print(f"   recorded from it back to the weights: {len(recorded) - leaves} results, {leaves} leaves")

# %% [markdown]
# The walk back gives every weight and every bias a gradient of its own shape.

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
# does that, and AdamW says how far to move.  An epoch is once through all images.  We stop after four,
# which is early: the loss is still going down.  It is enough for a net to start from.

# %%
EPOCHS, BATCH = 4, 64
per_epoch = -(-len(old.train.y) // BATCH)
optimizer = ld.AdamW(net.parameters(), lr=1e-3, weight_decay=0)
how = {"steps": EPOCHS * per_epoch, "batch_size": BATCH, "rng": rng}

print(f"3. Training on {len(old.train.y):,} images of MNIST\n")
print("   epoch   mean loss   validation")
losses, means = [], []
for step in ld.fit(net, *old.train, optimizer=optimizer, **how):
    losses.append(step.loss)
    if len(losses) == per_epoch:
        accuracy = ld.evaluate(net, *old.validation).accuracy
        means.append(np.mean(losses))
        print(f"   {step.step // per_epoch:5}   {means[-1]:9.3f}   {100 * accuracy:8.1f} %")
        losses.clear()
assert means == sorted(means, reverse=True)

# %% [markdown]
# A net does a little better on the images that it was trained on.  To see by how much, the validation
# images were kept out of the training.

# %%
seen, unseen = ld.evaluate(net, *old.train), ld.evaluate(net, *old.validation)
for name, part in (("what it was trained on", seen), ("the validation images", unseen)):
    print(f"   in the end, on {name}: loss {part.loss:.3f}, {100 * part.accuracy:.1f} %")

# %% [markdown]
# ## 4. Other writers, another scanner
#
# These are the same ten digits, but scanned at a lower resolution and enlarged.  The net gets more than a
# third of them wrong.  (MNIST's test images are a little harder for it, too, than those for validation.)

# %%
print("\n4. On images it has never seen\n")
for name, test in (("MNIST", old.test), ("optical digits", new.test)):
    print(f"   {name:16} {100 * ld.evaluate(net, *test).accuracy:5.1f} %")
