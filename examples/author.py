"""How the small GPT changes its author: the methods of lesson 10, their training, and their measures."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from gpt import CONTEXT, GPT, loss_on
from text import Split, encode, read

import loradora as ld

Array: TypeAlias = npt.NDArray[Any]

BATCH = 32
WARMUP = 10  # steps
TITLES = {"frozen": "frozen base", "full": "full fine-tuning", "scratch": "from scratch"}


class Method(NamedTuple):
    """A way to learn: what is trained, and how fast."""

    kind: str  # frozen, LoRA, DoRA, full or scratch
    rate: float
    targets: tuple[str, ...] | str = ()  # names of layers, or "all-linear"
    rank: int = 0

    @property
    def name(self) -> str:
        """Its name in the table."""
        if not self.targets:
            return TITLES[self.kind]
        return f"{self.kind} {places(self.targets)}, r={self.rank}"

    @property
    def slug(self) -> str:
        """Its name in the names of files."""
        return self.name.replace(", ", "_").replace(",", "").replace(" ", "_").replace("=", "")

    def build(self, base: GPT, seed: int) -> Any:
        """Return the model to train; the base is shared or copied, and stays as it is."""
        if self.kind == "full":
            return copy.deepcopy(base)
        if self.kind == "scratch":
            return GPT(rng=seed)
        config = ld.LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            target_modules=self.targets,
            use_dora=self.kind == "DoRA",
            task_type="CAUSAL_LM",
        )
        return ld.get_peft_model(base, config, rng=seed)


ATTENTION = "q_proj", "k_proj", "v_proj", "out_proj"
QV = "q_proj", "v_proj"


FROZEN = Method("frozen", 0.0)


def methods(rank: int) -> list[Method]:
    """Return the methods that the table compares.

    Three learning rates, a factor of 2 to 3 apart, were tried for each, in 200 steps at rank 8.  The one
    used here did best on the validation part of the play.  LoRA and DoRA of the same layers share a rate.
    """
    return [
        FROZEN,
        *adapters(QV, rank),
        *adapters("all-linear", rank),
        Method("full", 0.002),
        Method("scratch", 0.002),
    ]


def adapters(targets: tuple[str, ...] | str, rank: int) -> list[Method]:
    """Return a LoRA and a DoRA of these layers, at half the rate if some lie outside attention."""
    in_attention = targets != "all-linear" and set(targets) <= set(ATTENTION)
    rate = 0.02 if in_attention else 0.01
    return [Method(kind, rate, targets, rank) for kind in ("LoRA", "DoRA")]


def ablation(rank: int) -> list[Method]:
    """Return LoRAs with about the same number of parameters, spent on one matrix or on several.

    Rank r on q and v costs as much as rank 2r on q alone.  ``rank`` is a multiple of 4.  (The last LoRA
    has an eighth more parameters, because the matrices outside attention are larger.)
    """
    return [
        FROZEN,
        Method("LoRA", 0.02, ("q_proj",), 2 * rank),
        Method("LoRA", 0.02, QV, rank),
        Method("LoRA", 0.02, ATTENTION, rank // 2),
        Method("LoRA", 0.01, "all-linear", rank // 4),
    ]


def places(targets: tuple[str, ...] | str) -> str:
    """Return a short form of the names of layers."""
    if isinstance(targets, str) or len(targets) == 6:
        return "all linear"
    return ",".join("o" if name == "out_proj" else name.removesuffix("_proj") for name in targets)


# ---------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Run:
    """A finished training by one method.

    Attributes
    ----------
    model
        The trained model.
    rate
        Its learning rate.
    losses
        The loss of each batch, before its step.
    seconds
        How long the training took.
    """

    method: Method
    seed: int
    model: Any
    rate: float
    losses: list[float]
    seconds: float


def train(method: Method, base: GPT, text: Array, *, rate: float, steps: int, seed: int) -> Run:
    """Train a model by ``method`` on windows of a text; its targets are the same, moved by one."""
    model = method.build(base, seed)
    began = time.perf_counter()
    training = ld.fit(
        model,
        *ld.windows(text, CONTEXT),
        optimizer=ld.AdamW(model.trainable_parameters(), lr=rate, weight_decay=0),
        steps=steps,
        batch_size=BATCH,
        schedule=ld.warmup(WARMUP / steps),
        clip_grad_norm=1.0,
        rng=seed,
    )
    losses = [step.loss for step in training]
    return Run(method, seed, model, rate, losses, time.perf_counter() - began)


def best(
    method: Method, base: GPT, text: Split, *, rates: Sequence[float], steps: int, seed: int
) -> Run:
    """Return the run whose rate does best on the validation part, which the table does not report.

    Raises
    ------
    FloatingPointError
        If no rate keeps the loss finite.
    """
    if method.kind == "frozen":
        return Run(method, seed, base, 0.0, [], 0.0)
    runs, failure = [], None
    for rate in rates:
        try:
            runs.append(train(method, base, text.train, rate=rate, steps=steps, seed=seed))
        except FloatingPointError as error:
            failure = error
    if not runs:
        raise FloatingPointError(f"{method.name}, at every rate: {failure}")
    if len(runs) == 1:
        return runs[0]
    return min(runs, key=lambda run: loss_on(run.model, text.validation))


# ---------------------------------------------------------------------------- measures


@dataclass(frozen=True)
class Row:
    """How well a run does: one object of the JSON file.  Losses are in nats per character.

    ``loss_off`` is the loss on the old author with the adapter off; None if there is none.
    """

    method: str
    seed: int
    rate: float
    trainable: int
    total: int
    loss_new: float
    loss_old: float
    loss_off: float | None
    seconds: float


def measure(run: Run, new: Array, old: Array) -> Row:
    """Return the losses of a run on both authors."""
    model = run.model
    loss_old = loss_on(model, old)
    loss_off = None
    if isinstance(model, ld.PeftModel):
        with model.disable_adapter():
            loss_off = loss_on(model, old)
    return Row(
        method=run.method.name,
        seed=run.seed,
        rate=run.rate,
        trainable=sum(p.size for p in model.trainable_parameters()) if run.losses else 0,
        total=sum(p.size for p in model.parameters()),
        loss_new=loss_on(model, new),
        loss_old=loss_old,
        loss_off=loss_off,
        seconds=run.seconds,
    )


def northanger_abbey() -> Array:
    """Return, as ids, the novel that shows how much of the old author is kept."""
    return encode(read("northanger_abbey"))


def table_line(rows: list[Row]) -> str:
    """Return a method's line of the table: the means of its rows, one row for each seed."""
    first = rows[0]
    new, old, seconds = np.mean([(r.loss_new, r.loss_old, r.seconds) for r in rows], axis=0)
    off = "-" if first.loss_off is None else f"{first.loss_off:.3f}"
    share, rate = first.trainable / first.total, f"{first.rate:.3g}" if first.rate else ""
    return (
        f"   {first.method:21}{first.trainable:8,}{share:7.1%}{rate:>6}"
        f"{new:11.3f}{old:11.3f}{off:>7}{seconds:5.0f}"
    )


def table_head(title: str) -> str:
    """Return the head of the table."""
    return f"   {'':21}{'trained':>8}{'share':>7}{'rate':>6}{title:>11}  Austen on    off sec."


def own(file: Path) -> Split:
    """Return a text of your own, split into three parts: 18, 1 and 1 twentieths.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, is too short, or has characters that are not in the alphabet.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows puts a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text in UTF-8: {error.reason}") from None
    ids, least = encode(text, str(file)), 20 * (CONTEXT + 1)
    if len(ids) < least:
        raise ValueError(
            f"{file} is too short: it has {len(ids):,} characters and needs at least {least:,}, because "
            f"a twentieth of it must be longer than the context of {CONTEXT}"
        )
    return Split(*np.split(ids, [len(ids) * 18 // 20, len(ids) * 19 // 20]))


def moved_heads(run: Run, base: GPT, name: str) -> Array:
    """Return how far the heads of one of attention's matrices have moved, (layers, heads).

    Each head has its own rows in Wq, Wk and Wv.  Over these rows, the measure is ‖W − W0‖/‖W0‖.
    """
    moved = []
    merged = run.model.merge_and_unload() if isinstance(run.model, ld.PeftModel) else run.model
    for after, before in zip(merged.model["decoder"].layers, base.model["decoder"].layers):
        W, W0 = (getattr(layer.self_attn, name).weight.data for layer in (after, before))
        h = before.self_attn.num_heads
        norms = [np.linalg.norm(M.reshape(h, -1), axis=1) for M in (W - W0, W0)]
        moved.append(norms[0] / norms[1])
    return np.array(moved)
