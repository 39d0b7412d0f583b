"""all-MiniLM-L6-v2 learns to judge films, by PyTorch, transformers and PEFT, beside ours.

    python tests/benchmarks/accuracies.py [--seeds 3]

The recipe is that of ``examples/finetune_minilm.py``.  Both sides start with the same A and see the same
batches.  Each row has the accuracy of both on 1,000 other sentences, how many of these they judge
differently, and the largest difference of their losses in any step.  (Extra ``bench``; about a minute for
each row on one core.)
"""

import one_thread  # isort: skip  # first: NumPy and PyTorch look once

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from twin import Twin

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import bert
import minilm
import sentences
from finetune_minilm import RATES
from minilm import ADAPTERS, TITLES, Examples, Recipe
from wordpiece import WordPiece

import loradora as ld
import minigrad as mg
from loradora.optim import linear_decay

TRAIN, TEST, LONGEST = 400, 1000, 128


def recipe(method: str, seed: int) -> Recipe:
    return Recipe(method, 8, ("query", "value"), RATES[method], epochs=5, batch_size=16, seed=seed)


def batches(how: Recipe, train: Examples, classes: int) -> list[np.ndarray]:
    """Return which examples are in each batch of a training, using a model that only records them."""
    seen = []

    class Remembering(ld.Module):
        def __init__(self) -> None:
            self.weight = mg.Tensor(np.zeros(classes), requires_grad=True)

        def forward(self, numbers: np.ndarray) -> mg.Tensor:
            seen.append(numbers)
            return self.weight + np.zeros((len(numbers), 1))

    numbers = np.arange(len(train.x))
    for _ in minilm.training(how, Remembering(), train._replace(x=numbers)):
        pass
    return seen


def train_theirs(
    model: torch.nn.Module, how: Recipe, train: Examples, drawn: list[np.ndarray]
) -> list[float]:
    """Train their model as ``minilm.training`` trains ours, and return the losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=how.rate, weight_decay=0.0)
    losses = []
    for k, chosen in enumerate(drawn):
        optimizer.param_groups[0]["lr"] = how.rate * linear_decay(k / len(drawn))
        logits = model(torch.tensor(train.x[chosen]))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(train.labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def compared(how: Recipe, folder: Path, base: bert.Bert, classes: int, parts: Any) -> Iterator[str]:
    """Train both, and yield the cells of a row."""
    train, test = parts
    ours = minilm.build(how, base, classes)
    with tempfile.TemporaryDirectory() as start:
        ours.save_pretrained(start)
        twin = Twin(folder, "sdpa", classes)
        theirs = peft.PeftModel.from_pretrained(twin, start, is_trainable=True)
    losses = [step.loss for step in minilm.training(how, ours, train)]
    their_losses = train_theirs(theirs, how, train, batches(how, train, classes))

    @torch.no_grad()
    def judged(ids: np.ndarray) -> mg.Tensor:
        return mg.Tensor(theirs(torch.tensor(ids)).numpy())

    ours.eval()
    answers, their_answers = (
        minilm.in_batches(model, test.x, test.lengths, size=32).argmax(axis=1)
        for model in (ours, judged)
    )
    yield f"{np.mean(answers == test.labels):9.1%}"
    yield f"{np.mean(their_answers == test.labels):9.1%}"
    yield f"{np.sum(answers != their_answers):11}"
    yield f"{np.abs(np.subtract(losses, their_losses)).max():19.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    folder = minilm.folder()
    if folder is None:
        parser.error(f"the model is missing:\n    {minilm.COMMAND}")
    try:
        films = sentences.movies()
    except ValueError as error:
        parser.error(str(error))
    minilm.check_weights(folder / "model.safetensors")
    one_thread.settle()
    ld.keep_freed_memory()
    base, tokenizer = bert.load(folder, dropout=0.0), WordPiece.from_folder(folder)
    print("          seed     ours     PEFT  different  difference of losses", flush=True)
    for seed in range(chosen.seeds):
        drawn = sentences.split(films, seed=seed, train=TRAIN, test=TEST)
        parts = [minilm.encoded(tokenizer, part, LONGEST) for part in drawn]
        for method in ADAPTERS:
            cells = compared(recipe(method, seed), folder, base, len(films.names), parts)
            print(f"{TITLES[method]:8}{seed:6}", *cells, sep="", flush=True)


if __name__ == "__main__":
    main()
