"""Teach a small GPT to write like Jane Austen: this made ``data/austen_gpt.npz``.

    python examples/pretrain_gpt.py --out out/austen_gpt.npz

It reads five novels in 4,000 batches of 32 windows of 64 characters, which takes about twelve minutes on
one core.  What it has learnt is measured on a sixth, *Northanger Abbey*, in nats per character.  The file
holds its 810,112 numbers in float16.  If this is run again, the net ends within 0.01 nats of the one
that is there, not exactly on it: rounding differs between CPUs.
"""

from __future__ import annotations

import os
from pathlib import Path

import terminal

parser = terminal.begin(__doc__)  # first, because the imports take a moment

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts: these products are small

import numpy as np
from gpt import CONTEXT, GPT, loss_on
from text import encode, novels, read

import loradora as ld


def main() -> None:
    """Train, report the loss on the way, and save."""
    add = parser.add_argument
    add("--steps", type=terminal.positive, default=4000, help="batches of 32 windows (4000)")
    add("--rate", type=float, default=0.002, help="the highest learning rate (0.002)")
    add("--seed", type=int, default=0, help="of the start and the order (0)")
    add("--out", type=Path, default=Path("out/austen_gpt.npz"), help="where to save (%(default)s)")
    chosen = parser.parse_args()
    if chosen.steps < 20 or chosen.seed < 0 or not 0 < chosen.rate < 1:
        parser.error("--steps is at least 20, --seed at least 0, --rate between 0 and 1")
    if chosen.out.suffix not in (".npz", ".safetensors"):
        parser.error(f"argument --out: a checkpoint is an .npz or a .safetensors, not {chosen.out}")
    parser.expect_file("--out", chosen.out)

    ld.keep_freed_memory()  # a step makes many large arrays: this saves a fifth of its time
    model = GPT(rng=chosen.seed)
    sixth = encode(read("northanger_abbey"))
    steps = ld.fit(
        model,
        *ld.windows(novels(), CONTEXT),
        optimizer=ld.AdamW(model.parameters(), lr=chosen.rate, weight_decay=0),
        steps=chosen.steps,
        batch_size=32,
        schedule=ld.warmup(10 / chosen.steps),
        clip_grad_norm=1.0,
        rng=chosen.seed,
    )
    losses = []
    for step in steps:
        losses.append(step.loss)
        if step.step % 100 == 0:
            print(f"step {step.step:5}: loss {np.mean(losses[-100:]):.3f}", flush=True)
    print(f"Northanger Abbey: {loss_on(model, sixth):.3f} nats per character")

    rounded = GPT(dtype=np.float16)
    rounded.load_state_dict(model.state_dict())
    ld.save_model(chosen.out, rounded)
    print(f"saved in {chosen.out}, {chosen.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
