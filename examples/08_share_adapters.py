"""Lesson 8: one base, many adapters: keep, combine, merge and share them.

What you will see: one net, pre-trained on MNIST, with an adapter for optical digits and one for shifted
MNIST; each good at its own task, both together as their sum; merged into plain weights; saved in files a
fraction of the size of the net, and loaded by somebody else.  The base is never touched.

Why it matters: a fine-tuned copy per task costs a whole net each; an adapter costs a few per cent of one,
and switching it off gives the old net back, exactly.

Read next: loradora/peft.py and checkpoint.py; then 09_lora_or_dora.py.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import Digits, few, mnist, optdigits, pretrained

import loradora as ld
from loradora.optim import linear_decay


def shifted(digits, pixels=3):
    """Return the same digits, moved to the right."""
    images = np.roll(digits.x.reshape(-1, 28, 28), pixels, axis=2)
    return Digits(images.reshape(-1, 784), digits.y)


def train(model, data, rng):
    """Train the active adapter; nothing else requires a gradient."""
    optimizer = ld.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    for _ in ld.fit(model, *data, optimizer=optimizer, steps=200, schedule=linear_decay, rng=rng):
        pass


def accuracies(model, tests):
    """Return a line of the table: the accuracy on each test set."""
    return "".join(f"{100 * ld.evaluate(model, *test).accuracy:15.1f} %" for test in tests.values())


def config(kind):
    """Return a LoRA or DoRA of every layer."""
    return ld.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=kind == "DoRA")


def main():
    """Run the lesson."""
    rng = np.random.default_rng(0)
    old, new = mnist(), optdigits()
    base = pretrained(old.train, rng, steps=470)
    before = base.state_dict()
    tests = {"MNIST": old.test, "shifted": shifted(old.test), "optical": new.test}

    print("1. One base, three adapters: accuracies\n")
    print(f"   {'active':18}" + "".join(f"{name:>17}" for name in tests))
    print(f"   {'the base':18}{accuracies(base, tests)}")
    model = ld.get_peft_model(base, config("LoRA"), "optical", rng=rng)
    train(model, few(new.train, 50, rng), rng)
    model.add_adapter("shifted", config("LoRA"), rng=rng)
    model.set_adapter("shifted")
    train(model, few(shifted(old.train), 50, rng), rng)
    model.add_adapter("optical-dora", config("DoRA"), rng=rng)
    model.set_adapter("optical-dora")
    train(model, few(new.train, 50, rng), rng)
    for name in ("optical", "optical-dora", "shifted"):
        model.set_adapter(name)
        print(f"   {name:18}{accuracies(model, tests)}")
    model.set_adapter(["optical", "shifted"])
    print(f"   {'optical + shifted':18}{accuracies(model, tests)}")
    with model.disable_adapter():
        print(f"   {'all off':18}{accuracies(model, tests)}")
        off = np.array_equal(model(old.test.x).data, base(old.test.x).data)
    unchanged = all(np.array_equal(before[n], p.data) for n, p in base.named_parameters())
    print(
        "\n   Each is good at its own task.  'optical + shifted' adds up both corrections: that they can"
    )
    print(
        "   be added does not mean that they get along, for neither was trained beside the other."
    )
    print(f"   off equals the base bit by bit: {off}; the base has not changed: {unchanged}\n")

    print("2. Merged: plain layers, no adapter, the same answers\n")
    for name in ("optical", "optical-dora"):
        model.set_adapter(name)
        merged = model.merge_and_unload()
        gap = np.abs(merged(new.test.x).data - model(new.test.x).data).max()
        print(f"   {name:13} {type(merged).__name__}, largest difference of a logit {gap:.0e}")

    print("\n3. Files\n")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        ld.save_model(folder / "base.npz", base)
        for name in ("optical", "optical-dora"):
            model.save_adapter(folder / f"{name}.npz", name)
        for file in sorted(folder.iterdir()):
            print(f"   {file.name:18} {file.stat().st_size:9,} bytes")
        model.set_adapter("optical-dora")
        loaded = ld.PeftModel.from_pretrained(base, folder / "optical-dora.npz")
        same = np.array_equal(loaded(new.test.x).data, model.eval()(new.test.x).data)
        print(f"   loaded again, the same logits bit by bit: {same}")
        try:
            model.save_pretrained(folder / "peft")
        except ImportError as error:
            print(f"   {error}")
        else:
            again = ld.PeftModel.from_pretrained(base, folder / "peft" / "optical-dora")
            same = np.array_equal(again(new.test.x).data, loaded(new.test.x).data)
            names = sorted(file.name for file in (folder / "peft" / "optical-dora").iterdir())
            print(f"   PEFT's folder: {', '.join(names)}; the same logits: {same}")


if __name__ == "__main__":
    main()
