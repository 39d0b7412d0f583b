"""A real pre-trained transformer learns what reviewers think: LoRA and DoRA on all-MiniLM-L6-v2.

The net is a BERT of six layers with 22.6 million parameters.  It was trained on a billion pairs of
sentences, to give sentences with similar meanings similar vectors.  Here it learns a different question
from 400 sentences: does a sentence about a film praise it or not?

    head    only a linear layer learns, on the vectors of the frozen net
    lora    in addition, the queries and values of attention get a low-rank correction s B A
    dora    the same, and the lengths of the rows of these weights are learnt separately
    full    everything learns (only if asked for: it needs much more memory)

You will see a table: how much each method trains, how well it judges 1,000 other sentences, and what it
costs.  Then the nets judge sentences of yours, without an adapter and with one.  The adapters are saved
in PEFT's folders, each with its head.

    python examples/finetune_minilm.py                          about a minute
    python examples/finetune_minilm.py --seeds 5                mean and standard deviation
    python examples/finetune_minilm.py --data mine.csv          a text and its label in each line
    python examples/finetune_minilm.py --model DIR              another BERT, from a folder
    python examples/finetune_minilm.py --saved out/minilm       judge what you type, and train nothing

Read next: ``bert.py`` is the net, ``wordpiece.py`` is how it reads, ``sentences.py`` is the data, and
``minilm.py`` is the training.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import terminal

if __name__ == "__main__":
    terminal.prepare()  # first, because the other imports take a moment

import bert
import machine
import minilm
import numpy as np
import sentences
from minilm import ADAPTERS, TITLES, Recipe, Row
from reporting import Progress
from wordpiece import WordPiece

import loradora as ld
import minigrad as mg
from loradora import files
from loradora.nn import check_positive

#: Learning rates, chosen with the seeds 10 to 12.  For the head 0.003 was best.  For LoRA 0.001 and 0.002
#: were equally good.
RATES = {"head": 0.003, "lora": 0.001, "dora": 0.001, "full": 0.0001}

#: Sentences on films, judged before anything that somebody types.
ON_FILMS = (
    "It is not without charm.",
    "Two hours that I will never get back.",
    "I expected little, and left the cinema smiling.",
)


# ---------------------------------------------------------------------------- what is asked for


def options() -> argparse.Namespace:
    """Return the options and what they name, already read; or end, saying what is missing or wrong."""
    parser = terminal.begin(__doc__)
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="config.json, model.safetensors and vocab.txt")
    add("--data", type=Path, metavar="FILE", help="a .tsv or .csv, in each line a text and a label")
    add("--train", type=terminal.positive, metavar="N", help="to learn from (400, or 4 of 5)")
    add("--test", type=terminal.positive, metavar="N", help="to be tested on (1000, or the rest)")
    add("--method", nargs="+", choices=TITLES, metavar="M", help=f"of {', '.join(TITLES)}")
    add("--rank", type=terminal.positive, default=8, help="of the adapters (8)")
    add("--target-modules", nargs="+", metavar="M", help="to adapt (query value)")
    rates = ", ".join(f"{method} {rate:g}" for method, rate in RATES.items())
    add("--rate", type=float, help=f"the learning rate of all methods ({rates})")
    add("--epochs", type=terminal.positive, default=5, help="over the training sentences (5)")
    add("--batch-size", type=terminal.positive, default=16, metavar="N", help="of sentences (16)")
    add("--dropout", type=float, default=0.0, help="the rate in all places where a BERT has it (0)")
    add("--longest", type=terminal.positive, metavar="N", help="tokens of a sentence (128)")
    add("--seed", type=terminal.natural, default=0, help="the first seed (0)")
    add("--seeds", type=terminal.positive, default=1, help="how many (1)")
    add("--out", type=Path, metavar="DIR", help="to save (out/minilm, or out/NAME of the data)")
    add("--json", type=Path, metavar="FILE", help="write an object per method and seed")
    add("--sentence", nargs="+", metavar="TEXT", help="judge these instead of what is typed")
    add("--saved", type=Path, metavar="DIR", help="train nothing: judge with what was saved there")
    chosen: argparse.Namespace = parser.parse_args()

    if chosen.rate is not None and not 0 < chosen.rate < float("inf"):
        parser.error(f"argument --rate: must be positive and finite, not {chosen.rate}")
    if chosen.saved and (chosen.data or chosen.json):
        parser.error("argument --saved: nothing is trained, so leave out --data and --json")
    if not 0 <= chosen.dropout < 1:
        parser.error(f"argument --dropout: must lie in [0, 1), not {chosen.dropout}")
    usual = TITLES if chosen.saved else TITLES.keys() - {"full"}
    chosen.method = [m for m in TITLES if m in (chosen.method or usual)]
    chosen.out = chosen.out or Path("out") / (chosen.data.stem if chosen.data else "minilm")
    if chosen.model and not chosen.model.is_dir():
        parser.error(f"argument --model: {chosen.model} is no folder; nothing is downloaded here")
    packaged = chosen.model is None
    chosen.model = chosen.model or minilm.folder()
    if missing := absent(chosen):
        parser.error("this is missing:\n" + "\n".join(f"- {what}" for what in missing))
    try:
        prepare(chosen, packaged)
    except OSError as error:
        parser.error(f"cannot read {error.filename}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    if not chosen.saved:
        expect_targets(chosen, parser)
    return chosen


def expect_targets(chosen: argparse.Namespace, parser: terminal.Parser) -> None:
    """End if a file cannot be written, or would overwrite one that is read."""
    for file in chosen.model.iterdir():
        parser.keep("--model", file)
    if chosen.data:
        parser.keep("--data", chosen.data)
    for method in chosen.method:
        parser.expect_directory("--out", chosen.out / method)
    if chosen.json:
        if chosen.out.resolve() in chosen.json.resolve().parent.parents:
            parser.error(f"argument --json: the folders in {chosen.out} are for the models")
        parser.expect_file("--json", chosen.json)


def absent(chosen: argparse.Namespace) -> list[str]:
    """Return in words what is missing, with the commands that get it."""
    missing = []
    if not find_spec("safetensors"):
        missing.append("what reads the model, safetensors (extra 'peft'): pip install safetensors")
    if chosen.model is None:
        missing.append(f"the model (or give --model):\n    {minilm.COMMAND}")
    if not (chosen.data or chosen.saved or sentences.ARCHIVE.exists()):
        get = sentences.COMMAND.format(shlex.quote(str(sentences.ARCHIVE.parent)))
        missing.append(f"the sentences (or give --data):\n    {get}")
    return missing


def prepare(chosen: argparse.Namespace, packaged: bool) -> None:
    """Read everything except the model's weights, and check what can be checked without them.

    Raises
    ------
    OSError, ValueError
        If something is wrong with the model's folder or the sentences, or there is too little memory.
    """
    config = bert.read_config(chosen.model)
    weights = bert.weights_of(config, chosen.model)
    chosen.tokenizer = tokenizer_for(config, chosen.model)
    if chosen.longest is None:
        chosen.longest = min(128, config.max_position_embeddings)
    if not 3 <= chosen.longest <= config.max_position_embeddings:
        raise ValueError(
            f"--longest is {chosen.longest}, and the model has {config.max_position_embeddings} "
            "places; at least 3 are needed"
        )
    chosen.parts = []
    if not chosen.saved:
        if chosen.rank > config.hidden_size:
            raise ValueError(
                f"--rank is {chosen.rank}, and the model has a width of {config.hidden_size}"
            )
        read_sentences(chosen)
    if packaged:
        minilm.check_weights(weights)
    check_memory(config, chosen)


def tokenizer_for(config: bert.Config, folder: Path) -> WordPiece:
    """Return the tokenizer in a folder; ValueError if it does not belong to the model."""
    tokenizer = WordPiece.from_folder(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder}: vocab.txt has {len(tokenizer):,} pieces, and the model knows "
            f"{config.vocab_size:,}"
        )
    if tokenizer.pad_id != config.pad_token_id:
        raise ValueError(
            f"{folder}: [PAD] is number {tokenizer.pad_id} in vocab.txt, and config.json has "
            f"{config.pad_token_id} as its pad_token_id"
        )
    return tokenizer


def read_sentences(chosen: argparse.Namespace) -> None:
    """Read the sentences, and split them for each seed into those to learn from and those to test on."""
    given = sentences.read(chosen.data) if chosen.data else sentences.movies()
    check_classes(given)
    chosen.sentences, n = given, len(given.texts)
    chosen.train = chosen.train or min(400, n * 4 // 5)
    chosen.test = chosen.test or max(min(1000, n - chosen.train), 1)
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        parts = sentences.split(given, seed=seed, train=chosen.train, test=chosen.test)
        chosen.parts.append(
            [minilm.encoded(chosen.tokenizer, part, chosen.longest) for part in parts]
        )


def check_classes(given: sentences.Sentences) -> None:
    """Raise ValueError for a class with a single sentence, which cannot be both learnt and tested."""
    lone = np.flatnonzero(np.bincount(given.labels) == 1)
    if len(lone):
        text = given.texts[np.flatnonzero(given.labels == lone[0])[0]]
        raise ValueError(
            f"only one text has the label {given.names[lone[0]]!a}: {text!a}; a class needs two, one to "
            "learn from and one to be tested on (a heading row is: text, label)"
        )


def check_memory(config: bert.Config, chosen: argparse.Namespace) -> None:
    """Raise ValueError if this process cannot get the memory that it needs."""
    longest = max((part.x.shape[1] for parts in chosen.parts for part in parts), default=1)
    full = "full" in chosen.method and not chosen.saved
    needed = minilm.memory_needed(config, chosen.batch_size, longest, full)
    available = machine.available()
    if available is not None and available < needed:
        raise ValueError(
            f"about {needed / 1e6:,.0f} MB of memory are needed, and {available / 1e6:,.0f} MB can be "
            "had: a smaller --batch-size or --longest needs less, but at least "
            f"{12 * bert.size_of(config) / 1e6:,.0f} MB"
        )


# ---------------------------------------------------------------------------- training


def train(base: bert.Bert, chosen: argparse.Namespace) -> dict[str, Judge]:
    """Train by all methods with all seeds and print the table.

    The models of the first seed are saved as soon as they are trained, and returned.
    """
    print(HEAD)
    names, judges, rows = chosen.sentences.names, {}, []
    with Progress(len(chosen.method) * chosen.seeds) as progress:
        for method in chosen.method:
            same = []
            for number, (learnt, tested) in enumerate(chosen.parts):
                recipe = recipe_of(method, chosen.seed + number, chosen)
                progress.start(f"seed {recipe.seed}: {TITLES[method]}")
                model, row = minilm.run(recipe, base, len(names), learnt, tested, progress.step)
                if number == 0:
                    judges[method] = Judge(model, names, chosen.longest)
                    save(method, judges[method], base, chosen.out)
                same.append(row)
            rows += same
            progress.clear()
            print(line(same), flush=True)
            if chosen.json:
                text = json.dumps([asdict(row) for row in rows], indent=2)
                chosen.json.write_text(text + "\n", encoding="utf-8")
    return judges


def targets(chosen: argparse.Namespace) -> tuple[str, ...]:
    """Return which layers are adapted: by default, those that LoRA's authors adapted."""
    return tuple(chosen.target_modules or ("query", "value"))


def recipe_of(method: str, seed: int, chosen: argparse.Namespace) -> Recipe:
    """Return how a model is trained by a method."""
    return Recipe(
        method=method,
        rank=chosen.rank,
        targets=targets(chosen),
        rate=RATES[method] if chosen.rate is None else chosen.rate,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        seed=seed,
    )


HEAD = f"   {'':17}{'trained':>11}{'share':>8}{'accuracy':>15}{'ms a step':>11}{'sec.':>7}{'MB':>7}"


def line(rows: list[Row]) -> str:
    """Return the line of the table for a method: means over its rows, one for each seed."""
    first, accuracy = rows[0], 100 * np.array([row.accuracy for row in rows])
    spread = f" +- {np.std(accuracy, ddof=1):.1f}" if len(rows) > 1 else ""
    step, seconds = np.mean([(row.milliseconds, row.seconds) for row in rows], axis=0)
    memory = [row.memory for row in rows if row.memory is not None]
    held = f"{max(memory) / 1e6:.0f}" if memory else "-"
    return (
        f"   {TITLES[first.method]:17}{first.trainable:11,}{first.trainable / first.total:8.2%}"
        f"{f'{np.mean(accuracy):.1f}{spread} %':>15}{step:11.1f}{seconds:7.1f}{held:>7}"
    )


# ---------------------------------------------------------------------------- saving and loading


class Judge(NamedTuple):
    """A model, with the names of its classes and the number of tokens of a sentence that it reads."""

    model: Any
    names: list[str]
    longest: int


NOTES = "notes.json"


def save(method: str, judge: Judge, base: bert.Bert, out: Path) -> None:
    """Write a model into a folder of its own: an adapter with its head as PEFT does, else a file.

    Beside it are notes: the names of the classes, the longest text, and a checksum of the base.  They are
    written last.  So where there are notes, everything is there.
    """
    folder = out / method
    (folder / NOTES).unlink(missing_ok=True)
    if method in ADAPTERS:
        judge.model.save_pretrained(folder)
    elif method == "head":
        ld.save_model(folder / "model.npz", judge.model.classifier)
    else:
        ld.save_model(folder / "model.npz", judge.model)
    notes = {"labels": judge.names, "longest": judge.longest, "base": minilm.fingerprint(base)}
    (folder / NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")


def load(base: bert.Bert, out: Path, methods: list[str]) -> dict[str, Judge]:
    """Return what ``save`` has written into the folders in ``out``, by method.

    Raises
    ------
    CheckpointError
        If nothing is there, if it is damaged, if it belongs to another base, or if the methods have
        learnt different classes.
    """
    judges = {m: _load(m, base, out / m) for m in methods if (out / m / NOTES).exists()}
    if not judges:
        raise ld.CheckpointError(
            f"{out} has no {NOTES} of a saved model in any of the folders {', '.join(methods)}"
        )
    classes = {method: judge.names for method, judge in judges.items()}
    if any(names != next(iter(classes.values())) for names in classes.values()):
        raise ld.CheckpointError(
            f"{out} holds models of several trainings; choose one by --method: "
            + "; ".join(f"{method} tells {', '.join(names)}" for method, names in classes.items())
        )
    return judges


def _load(method: str, base: bert.Bert, folder: Path) -> Judge:
    notes = files.parsed(folder, NOTES, files.read(folder / NOTES, files.MOST_BYTES))
    names, longest = notes.get("labels"), notes.get("longest", 0)
    with files.reported(f"{NOTES} in {folder}"):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it has no list of labels")
        if len(set(names)) < max(len(names), 2):
            raise ValueError("its labels are not two or more different ones")
        check_positive(longest=longest)
        if not 3 <= longest <= base.config.max_position_embeddings:
            raise ValueError(
                f"longest is {longest}, not from 3 to {base.config.max_position_embeddings}"
            )
        if notes.get("base") != minilm.fingerprint(base):
            raise ValueError("the model was trained on another base: give that with --model")
    model: Any = bert.Classifier(base, len(names))
    if method in ADAPTERS:
        model = ld.PeftModel.from_pretrained(model, folder)
    elif method == "head":
        ld.load_model(folder / "model.npz", model.classifier)
    else:
        model = copy.deepcopy(model)
        ld.load_model(folder / "model.npz", model)
    return Judge(model, names, int(longest))


# ---------------------------------------------------------------------------- judging


def typed() -> Iterator[str]:
    """Yield the sentences that somebody types, until an empty one, or all that are piped."""
    asking = sys.stdin.isatty()
    while True:
        if asking:
            print("\n   A sentence of yours (an empty one ends): ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or (asking and not line.strip()):
            return
        if line.strip():
            yield line.strip()


@mg.no_grad()
def verdicts(judges: dict[str, Judge], tokenizer: WordPiece, given: Iterable[str]) -> None:
    """Print how each model judges each sentence, and how sure it is."""
    for sentence in given:
        print(f"\n   {sentence}")
        if not tokenizer.knows(sentence):
            print("      has no word that the model knows")
            continue
        for method, (model, names, longest) in judges.items():
            ids = np.array([tokenizer.encode(sentence, longest)])
            p = mg.softmax(model.eval()(ids)).data[0]
            print(f"      {TITLES[method]:17}{names[p.argmax()]:>12}{100 * p.max():7.1f} %")


# ---------------------------------------------------------------------------- the command


def main() -> None:
    """Load the model, train it and show the results, or only judge."""
    chosen = options()
    ld.keep_freed_memory()  # a step makes many large arrays
    try:
        base = bert.load(chosen.model, chosen.dropout, rng=chosen.seed)
        judges = load(base, chosen.saved, chosen.method) if chosen.saved else {}
        minilm.check_targets(base, () if chosen.saved else targets(chosen))
    except ValueError as error:
        sys.exit(f"finetune_minilm.py: error: {error}")
    print(f"1. A BERT of {sum(p.size for p in base.parameters()):,} parameters: {chosen.model}")
    if not chosen.saved:
        judges = trained(base, chosen)
    given = chosen.sentence or ([] if chosen.data or chosen.saved else ON_FILMS)
    asked = not chosen.sentence and (chosen.saved or sys.stdin.isatty())
    if given or asked:
        print("\n3. Sentences, judged without an adapter (head alone) and with one:")
        verdicts(judges, chosen.tokenizer, given)
        verdicts(judges, chosen.tokenizer, typed() if asked else ())


def trained(base: bert.Bert, chosen: argparse.Namespace) -> dict[str, Judge]:
    """Train, show the table, and return the models of the first seed."""
    print(
        f"\n2. {chosen.train} sentences to learn from, {chosen.test:,} to be tested on; "
        f"classes: {', '.join(chosen.sentences.names)}\n"
    )
    try:
        judges = train(base, chosen)
    except FloatingPointError as error:
        sys.exit(f"training failed: {error}")
    print(f"\n   Saved in {chosen.out}, of seed {chosen.seed}: {', '.join(judges)}")
    return judges


if __name__ == "__main__":
    main()
