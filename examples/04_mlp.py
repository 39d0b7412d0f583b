"""Lesson 4: a neural network, trained on digits with nothing but the pieces so far.

What you will see: a few of the images; the graph of one step, and which gradients it fills; a loss that
goes down; and the trained net in front of digits of other writers from another scanner.

Why it matters: a net is a function of its weights, and training is walking against its gradient.  The
last number, so much lower than the one before, calls for fine-tuning; how to do that with few numbers and
without losing the old net is what LoRA and DoRA are about.

Read next: loradora/nn.py, optim.py and train.py, then digits.py (the data); then 05_lora.py.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import SIZES, mnist, optdigits

import loradora as ld
import minigrad as mg
from minigrad.engine import ancestry

EPOCHS, BATCH = 4, 64


def pictures(old, new):
    """Print one image of three classes from both domains, one above the other."""
    print("1. A 2, a 5 and an 8: MNIST above, optical digits below\n")
    for digits in (old.train, new.train):
        images = [digits.x[np.flatnonzero(digits.y == k)[0]].reshape(28, 28) for k in (2, 5, 8)]
        for i in range(3, 25, 2):  # a character is twice as high as wide: two rows of pixels each
            rows = [(image[i, 3:25] + image[i + 1, 3:25]) / 2 for image in images]
            print("   " + "  ".join("".join(" .:*#@"[int(5.99 * v)] for v in row) for row in rows))
        print()


def one_step(net, x, y):
    """Print what one forward and backward pass does."""
    print("2. One step\n")
    loss = mg.cross_entropy(net(x), y)
    graph = ancestry(loss)
    print(f"   the loss is {loss:.3f} (guessing among ten: log 10 = {np.log(10):.3f})")
    print(f"   recorded from it back to the weights: {len(graph)} tensors")
    loss.backward()
    for name, p in net.named_parameters():
        print(
            f"   {name:16} {p.shape!s:11} gradient {p.grad.shape!s:11} size {np.linalg.norm(p.grad):.4f}"
        )
    print(f"   together {sum(p.size for p in net.parameters()):,} numbers\n")


def training(net, old, rng):
    """Train, and print a line per epoch."""
    print(f"3. Training on {len(old.train.y):,} images of MNIST\n")
    print("   epoch   mean loss   validation")
    optimizer = ld.AdamW(net.parameters(), lr=1e-3, weight_decay=0)
    per_epoch = -(-len(old.train.y) // BATCH)
    losses = []
    for step in ld.fit(
        net, *old.train, optimizer=optimizer, steps=EPOCHS * per_epoch, batch_size=BATCH, rng=rng
    ):
        losses.append(step.loss)
        if len(losses) == per_epoch:
            accuracy = ld.evaluate(net, *old.validation).accuracy
            print(
                f"   {step.step // per_epoch:5}   {np.mean(losses):9.3f}   {100 * accuracy:8.1f} %"
            )
            losses.clear()
    seen, unseen = ld.evaluate(net, *old.train), ld.evaluate(net, *old.validation)
    for name, part in (("what it was trained on", seen), ("the validation images", unseen)):
        print(f"   in the end, on {name}: loss {part.loss:.3f}, {100 * part.accuracy:.1f} %")


def main():
    """Run the lesson."""
    rng = np.random.default_rng(0)
    old, new = mnist(), optdigits()
    net = ld.MLP(SIZES, rng=rng)
    pictures(old, new)
    one_step(net, old.train.x[:BATCH], old.train.y[:BATCH])
    training(net, old, rng)
    print("\n4. On images it has never seen\n")
    for name, test in (("MNIST", old.test), ("optical digits", new.test)):
        print(f"   {name:16} {100 * ld.evaluate(net, *test).accuracy:5.1f} %")


if __name__ == "__main__":
    main()
