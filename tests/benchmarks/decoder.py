"""Whole training steps of the small GPT of ``examples/gpt.py``, beside OPT of transformers with PEFT.

A step is that of lesson 10: 32 texts of 64 characters through four blocks of 128, mean cross-entropy, the
way back, the gradient clipped to length 1, AdamW.  First both must have the same loss and gradients.
PEFT's time is with that of transformers' forms of attention which is the faster one here.

glibc gives arrays as large as these back to the system whenever they are dropped, if they happen to lie
at the end of its memory.  So everybody is timed twice: as it happens, and after
``ld.keep_freed_memory()``, which concerns PyTorch's memory, too.
"""

import functools
import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import memory
import numpy as np
import peft
import torch
from contenders import EPS, RATE, Array
from timing import interleaved, table

import loradora as ld
import minigrad as mg

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import gpt
from authors import opt
from text import ALPHABET

TEXTS = 32
FORMS = "sdpa", "eager"

#: What our names for trained tensors are in PEFT.
THEIRS = {"A": "lora_A", "B": "lora_B", "m": "lora_magnitude_vector"}


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


class Ours:
    """minigrad and loradora."""

    def __init__(self, case: Case, texts: int = TEXTS) -> None:
        self.x, self.labels = batch(texts)
        self.model = adapted(case)
        self.trained = self.model.trainable_parameters()
        self.optimizer = ld.AdamW(self.trained, lr=RATE, eps=EPS)

    def backward(self) -> float:
        loss = mg.cross_entropy(self.model(self.x), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item()

    def step(self) -> float:
        loss = self.backward()
        ld.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss

    def parameters(self) -> list[Array]:
        return [p.data.copy() for p in self.trained]

    def gradients(self) -> dict[str, Array]:
        """Return the gradients by PEFT's names."""
        found = {}
        for name, p in self.model.named_parameters():
            path, _, own = name.rpartition(".")
            if p.requires_grad:
                path = path.removeprefix("base_model.")
                found[f"base_model.model.{path}.{THEIRS[own]}.default.weight"] = p.grad
        return found


class Theirs:
    """PyTorch, transformers and PEFT."""

    def __init__(self, case: Case, form: str, texts: int = TEXTS) -> None:
        self.x, self.labels = map(torch.tensor, batch(texts))
        theirs = opt(base())
        theirs.set_attn_implementation(form)
        with tempfile.TemporaryDirectory() as folder:
            adapted(case).save_pretrained(folder)
            self.model = peft.PeftModel.from_pretrained(theirs, folder, is_trainable=True)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, eps=EPS)

    def backward(self) -> float:
        logits = self.model(input_ids=self.x, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.labels.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item()

    def step(self) -> float:
        loss = self.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss

    def parameters(self) -> list[Array]:
        return [p.detach().numpy().copy() for p in self.trained]

    def gradients(self) -> dict[str, Array]:
        named = self.model.named_parameters()
        return {name: p.grad.numpy() for name, p in named if p.requires_grad}


def agree(case: Case) -> None:
    """Refuse to go on unless everybody computes the same loss, and of one text the same gradients.

    Of 32 texts, some of four million inputs of a ReLU are so close to 0 that rounding decides.
    """
    for form in FORMS:
        loss = Theirs(case, form).backward()
        np.testing.assert_allclose(loss, Ours(case).backward(), 1e-6, err_msg=f"loss of {form}")
        ours, theirs = Ours(case, texts=1), Theirs(case, form, texts=1)
        ours.backward()
        theirs.backward()
        expected, found = ours.gradients(), theirs.gradients()
        assert found.keys() == expected.keys(), f"{form} trains something else"
        for name, g in found.items():
            error = np.linalg.norm(g - expected[name]) / np.linalg.norm(g)
            assert error <= 2e-5, f"{form}: the gradient of {name} is off by {error:.2g}"


def report(quick: bool) -> Iterator[str]:
    cases = CASES[:1] if quick else CASES
    for case in cases:
        agree(case)
    rows = [[case.name, *timed(case, quick)] for case in cases]
    if ld.keep_freed_memory():
        rows += [[f"{case.name}, freed memory kept", *timed(case, quick)] for case in cases]
    yield from table("A training step of a small GPT, ms", ["", "ours", *FORMS, "PEFT/ours"], rows)
    title = "Memory of that step: peak above the resident model, kB"
    yield from table(
        title, ["", "ours", *FORMS, "ours/least"], [[case.name, *held(case)] for case in cases]
    )


def timed(case: Case, quick: bool) -> Iterator[str]:
    sides = {"ours": Ours(case)} | {form: Theirs(case, form) for form in FORMS}
    gc.collect()
    steps = {name: side.step for name, side in sides.items()}
    times = interleaved(steps, seconds=2 if quick else 25)
    yield from (times[name].show(1e-3, 1) for name in sides)
    fastest = min(FORMS, key=lambda form: times[form].median)
    yield (times[fastest] / times["ours"]).against(case.bound, at_least=True)


def held(case: Case) -> Iterator[str]:
    ours = memory.peak(lambda: Ours(case))
    theirs = [memory.peak_of_torch(lambda form=form: Theirs(case, form)) for form in FORMS]
    yield from map(memory.kilobytes, (ours, *theirs))
    yield memory.at_most(1, ours / min(theirs))
