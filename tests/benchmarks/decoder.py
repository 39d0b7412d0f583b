"""Whole training steps of the small GPT of ``examples/gpt.py``, beside OPT of transformers with PEFT.

A step is that of lesson 10: 32 texts of 64 characters through four blocks of 128, mean cross-entropy, the
backward pass, the gradient clipped to length 1, AdamW.  First both must have the same loss and gradients.
PEFT's time is that with the faster of transformers' two forms of attention.

When arrays as large as these are dropped and happen to lie at the end of glibc's memory, glibc gives them
back to the system.  So each side is timed twice: as it is, and after ``ld.keep_freed_memory()``, which
applies to PyTorch's memory, too.
"""

import functools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import memory
import numpy as np
import peft
import torch
from contenders import Array
from finetuning import FORMS, Ours, Theirs, same_gradients, same_loss, timed
from timing import at_most, table

import loradora as ld

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import gpt
from authors import opt
from text import ALPHABET

TEXTS = 32


class Case(NamedTuple):
    """What is adapted, and PEFT/ours, at least."""

    name: str
    targets: str | list[str]
    dora: bool
    bound: float


CASES = [
    Case("LoRA on q, v", ["q_proj", "v_proj"], False, 1.0),
    Case("DoRA on q, v", ["q_proj", "v_proj"], True, 1.1),
    Case("LoRA on all linear", "all-linear", False, 1.2),
]


@functools.cache
def base() -> gpt.GPT:
    return gpt.GPT(rng=1)


def batch(texts: int) -> tuple[Array, Array]:
    ids = np.random.default_rng(2).integers(len(ALPHABET), size=(texts, gpt.CONTEXT + 1))
    return ids[:, :-1], ids[:, 1:]


def adapted(case: Case) -> ld.PeftModel:
    """Return our model.  B is not zero, so that every gradient matters."""
    config = ld.LoraConfig(r=8, lora_alpha=16, target_modules=case.targets, use_dora=case.dora)
    model = ld.get_peft_model(base(), config, rng=3)
    rng = np.random.default_rng(4)
    for name, p in model.named_parameters():
        if name.endswith(".B"):
            p.data = rng.normal(0, 0.01, p.shape).astype(p.dtype)
    return model


def ours(case: Case, texts: int = TEXTS) -> Ours:
    return Ours(adapted(case), *batch(texts), clip=1.0)


def theirs(case: Case, form: str, texts: int = TEXTS) -> Theirs:
    twin = opt(base())
    twin.set_attn_implementation(form)
    with tempfile.TemporaryDirectory() as folder:
        adapted(case).save_pretrained(folder)
        model = peft.PeftModel.from_pretrained(twin, folder, is_trainable=True)
    return Theirs(model, *batch(texts), logits, clip=1.0)


def logits(model: peft.PeftModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def agree(case: Case) -> None:
    """Refuse to go on unless all compute the same loss, and the same gradients of one text.

    With 32 texts, a few of four million inputs of a ReLU are so close to 0 that rounding decides.
    """
    for form in FORMS:
        same_loss(ours(case), theirs(case, form), form)
        same_gradients(ours(case, texts=1), theirs(case, form, texts=1), form)


def report(quick: bool) -> Iterator[str]:
    cases = CASES[:1] if quick else CASES
    for case in cases:
        agree(case)
    rows = [[case.name, *beside(case, quick)] for case in cases]
    if ld.keep_freed_memory():
        rows += [[f"{case.name}, freed memory kept", *beside(case, quick)] for case in cases]
    yield from table("A training step of a small GPT, ms", ["", "ours", *FORMS, "PEFT/ours"], rows)
    title = "Memory of that step: peak above the resident model, kB"
    yield from table(
        title, ["", "ours", *FORMS, "ours/least"], [[case.name, *held(case)] for case in cases]
    )


def beside(case: Case, quick: bool) -> Iterator[str]:
    both = ours(case), {form: theirs(case, form) for form in FORMS}
    yield from timed(*both, case.bound, seconds=2 if quick else 25)


def held(case: Case) -> Iterator[str]:
    own = memory.peak(lambda: ours(case))
    others = [memory.peak_of_torch(lambda form=form: theirs(case, form)) for form in FORMS]
    yield from map(memory.kilobytes, (own, *others))
    yield at_most(1, own / min(others))
