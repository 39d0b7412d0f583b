"""Lesson 8: one base, many adapters: keep, combine, merge and share them.

What you will see: one net, pre-trained on MNIST, with an adapter for optical digits and one for shifted
MNIST; each good at its own task, both together as their sum; merged into plain weights; saved in files a
fraction of the size of the net, and loaded by somebody else.  The base is never touched.  At last, which
to choose: LoRA and DoRA at a small and at a tuned learning rate, and with a rate of its own for m.

Why it matters: a fine-tuned copy per task costs a whole net each; an adapter costs a few per cent of one,
and switching it off gives the old net back, exactly.

Read next: loradora/peft.py and checkpoint.py; then finetune_digits.py, the whole comparison.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from digits import Digits, few, mnist, optdigits, pretrained

import loradora as ld
from loradora.optim import linear


def shifted(digits, pixels=3):
    """Return the same digits, moved to the right."""
    images = np.roll(digits.x.reshape(-1, 28, 28), pixels, axis=2)
    return Digits(images.reshape(-1, 784), digits.y)


def train(model, data, rng, steps=200, rate=0.01, rate_of_m=None):
    """Train the active adapter; nothing else requires a gradient."""
    m = {p for name, p in model.named_parameters() if name.endswith(".m") and p.requires_grad}
    others = [p for p in model.trainable_parameters() if p not in m]
    groups = [{"params": others}, {"params": m, "lr": rate if rate_of_m is None else rate_of_m}]
    optimizer = ld.AdamW(groups, lr=rate, weight_decay=0)
    for _ in ld.fit(model, *data, optimizer=optimizer, steps=steps, schedule=linear, rng=rng):
        pass


def accuracies(model, tests):
    """Return a line of the table: the accuracy on each test set."""
    return "".join(f"{100 * ld.evaluate(model, *test).accuracy:15.1f} %" for test in tests.values())


def config(kind, r=4):
    """Return a LoRA or DoRA of every layer."""
    return ld.LoraConfig(
        r=r, lora_alpha=2 * r, target_modules="all-linear", use_dora=kind == "DoRA"
    )


def compare(base, new, draws, steps):
    """Print what DoRA gains over LoRA, both adapted to the same draws from the same base."""
    print(f"\n4. LoRA or DoRA?  20 images per class, r = 1, {steps} steps, draws: {draws}\n")
    for rate, kind, rate_of_m in [
        (0.003, "LoRA", 0.003), (0.003, "DoRA", 0.003),
        (0.02, "LoRA", 0.02), (0.02, "DoRA", 0.02), (0.02, "DoRA", 0.2),
    ]:  # fmt: skip
        score = np.zeros(draws)
        for i in range(draws):
            rng = np.random.default_rng(i)
            data = few(new.train, 20, rng)
            model = ld.get_peft_model(base, config(kind, r=1), rng=rng)
            train(model, data, rng, steps, rate, rate_of_m)
            score[i] = 100 * ld.evaluate(model, *new.test).accuracy
        name = kind + (f", m at {rate_of_m:g}" if rate_of_m != rate else "")
        line = f"   rate {rate:<6} {name:15} {score.mean():5.1f} %"
        if kind == "LoRA":
            lora = score
        else:
            gain = score - lora
            line += f"   {gain.mean():+.1f} ± {gain.std(ddof=1) / np.sqrt(draws):.1f}"
        print(line)
    print(
        "\n   On the right, the gain over LoRA on the same draws, ± its standard error.  A gain at a"
    )
    print(
        "   shared rate may be gone where each has its best one, and a few draws prove little: see"
    )
    print("   --steps 280 --draws 10.")


def main():
    """Run the lesson."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=3, help="in part 4, at least 2")
    parser.add_argument("--steps", type=int, default=100, help="of training in part 4")
    options = parser.parse_args()
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
    print(f"   {'optical + shifted':18}{accuracies(model, tests)}   (their corrections added up)")
    with model.disable_adapter():
        print(f"   {'all off':18}{accuracies(model, tests)}")
        off = np.array_equal(model(old.test.x).data, base(old.test.x).data)
    unchanged = all(np.array_equal(before[n], p.data) for n, p in base.named_parameters())
    print(f"\n   off equals the base bit by bit: {off}; the base has not changed: {unchanged}\n")

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
    compare(base, new, options.draws, options.steps)


if __name__ == "__main__":
    main()
