"""Training steps of a BERT of MiniLM's shape (``examples/bert.py``), beside transformers with PEFT.

    python tests/benchmarks/encoder.py [--quick]

A step is that of ``examples/finetune_minilm.py``: 16 sentences, LoRA or DoRA on query and value and a
head, mean cross-entropy, the backward pass, AdamW.  In one batch the sentences have similar lengths, as
in training.  In the other they have mixed lengths, and the shorter ones are padded.  First both sides
must have the same loss and gradients.  PEFT's time is that with the faster of transformers' two forms of
attention.  Freed memory is kept, as in the example.

The weights are those of all-MiniLM-L6-v2 if its package is installed, and random otherwise.  With
``--quick`` there is a single layer with random weights.
"""

import one_thread  # isort: skip  # first: NumPy and PyTorch look once

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
from finetuning import FORMS, Array, Ours, Theirs, same_gradients, same_loss, timed
from resident import CLASSES
from timing import at_most, table
from twin import Twin
from where import by_kernel, watched

import loradora as ld

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import bert
import minilm

SPEED, MEMORY = 0.95, 0.7

#: How many tokens each sentence of a batch has.
SIMILAR = np.linspace(22, 27, 16).astype(int)
MIXED = np.linspace(8, 45, 16).astype(int)


class Case(NamedTuple):
    """What is adapted, and what is read."""

    name: str
    dora: bool
    lengths: Array


CASES = [
    Case("LoRA, mixed lengths", False, MIXED),
    Case("DoRA, mixed lengths", True, MIXED),
    Case("LoRA, similar lengths", False, SIMILAR),
    Case("DoRA, similar lengths", True, SIMILAR),
]


# ----------------------------------------------------------------------------- the two sides


def base(scratch: Path, config: bert.Config | None) -> Path:
    """Return a folder with a BERT: a random one if a config is given or none is installed."""
    installed = minilm.folder()
    if installed and config is None:
        return installed
    config = config or bert.MINILM
    folder = scratch / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config._asdict()}))
    ld.save_model(folder / "model.safetensors", bert.Bert(config, rng=1))
    return folder


def batch(folder: Path, lengths: Array) -> tuple[Array, Array]:
    rng, config = np.random.default_rng(2), bert.read_config(folder)
    texts = [rng.integers(1, config.vocab_size, size=n) for n in lengths]
    return bert.padded(texts, config.pad_token_id), rng.integers(CLASSES, size=len(lengths))


def adapted(case: Case, folder: Path) -> ld.PeftModel:
    """Return our model.  Neither B nor the head is zero, so that every gradient matters."""
    config = ld.LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
        use_dora=case.dora,
    )
    model = bert.Classifier(bert.load(folder, dropout=0.0, rng=0), CLASSES)
    model = ld.get_peft_model(model, config, rng=3)
    rng = np.random.default_rng(4)
    for name, p in model.named_parameters():
        if name.endswith((".B", "classifier.weight")):
            p.data = rng.normal(0, 0.01, p.shape).astype(p.dtype)
    return model


def sides(case: Case, folder: Path) -> tuple[Ours, dict[str, Theirs]]:
    model, read = adapted(case, folder), batch(folder, case.lengths)
    theirs = {}
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        for form in FORMS:
            twin = Twin(folder, form, CLASSES)
            twin = peft.PeftModel.from_pretrained(twin, saved, is_trainable=True)
            theirs[form] = Theirs(twin, *read, lambda model, ids: model(ids))
    return Ours(model, *read), theirs


def agree(ours: Ours, theirs: dict[str, Theirs]) -> None:
    """Refuse to go on unless all compute the same loss and the same gradients."""
    for form, side in theirs.items():
        same_loss(ours, side, form)
        same_gradients(ours, side, form)


# ----------------------------------------------------------------------------- the tables


def report(quick: bool) -> Iterator[str]:
    cases = CASES[:1] if quick else CASES
    ld.keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        small = bert.MINILM._replace(num_hidden_layers=1) if quick else None
        folder = base(Path(scratch), small)
        rows = [[case.name, *beside(case, folder, quick)] for case in cases]
        layers = bert.read_config(folder).num_hidden_layers
        title = f"A training step of a BERT of MiniLM's shape, layers: {layers}; ms"
        yield from table(title, ["", "ours", *FORMS, "PEFT/ours"], rows)
        title = "Memory of a process that loads it and takes ten steps: peak resident size, MB"
        rows = [[case.name, *resident(case, folder)] for case in cases[:2]]
        yield from table(title, ["", "ours", "PEFT", "ours/PEFT"], rows)
        title = f"Where that step goes, by operation ({CASES[0].name}), ms"
        head = ["", "forward", "back", "both", "share", "PyTorch, eager"]
        yield from table(title, head, list(by_operation(CASES[0], folder, 2 if quick else 20)))
        yield (
            "PyTorch: time on the clock, as its profiler sees it, which a busy machine lengthens. Its "
            "other operations include its graph and AdamW."
        )


def beside(case: Case, folder: Path, quick: bool) -> Iterator[str]:
    ours, theirs = sides(case, folder)
    agree(ours, theirs)
    yield from timed(ours, theirs, SPEED, seconds=2 if quick else 25)


def resident(case: Case, folder: Path) -> Iterator[str]:
    """Yield the cells of a row.  Each side has a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        adapter, file = Path(scratch) / "adapter", Path(scratch) / "batch.npz"
        adapted(case, folder).save_pretrained(adapter)
        ids, labels = batch(folder, case.lengths)
        np.savez(file, ids=ids, labels=labels)
        script = Path(__file__).with_name("resident.py")
        peaks = []
        for who in ("ours", "sdpa"):
            command = [sys.executable, script, who, folder, adapter, file]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(int(done.stdout))
    yield from (f"{peak / 1e6:.0f}" for peak in peaks)
    yield at_most(MEMORY, peaks[0] / peaks[1])


#: The lines of the table: our operations, and the kernels of PyTorch that do the same.
LINES = {
    "linear": (["linear"], ["aten::addmm", "aten::mm"]),
    "gelu": (["gelu"], ["aten::gelu", "aten::gelu_backward"]),
    "layer_norm, affine": (
        ["layer_norm", "affine"],
        ["aten::native_layer_norm", "aten::native_layer_norm_backward"],
    ),
    "matmul": (["matmul"], ["aten::bmm", "aten::baddbmm"]),
    "softmax": (["softmax"], ["aten::_softmax", "aten::_softmax_backward_data"]),
}


def by_operation(case: Case, folder: Path, times: int) -> Iterator[list[str]]:
    """Yield the rows: the time of each operation in a step, forward and backward."""
    ours, theirs = sides(case, folder)
    ours.step()
    start = time.process_time()
    with watched() as split:
        for _ in range(times):
            ours.step()
    whole = time.process_time() - start
    kernels = by_kernel(theirs["eager"].step, times)
    lines = {
        name: np.array(
            [*(sum(part[o] for o in ops) for part in split), sum(kernels[k] for k in aten)]
        )
        for name, (ops, aten) in LINES.items()
    }
    in_all = np.array([*(part.total() for part in split), kernels.total()])
    lines["other operations"] = in_all - sum(lines.values())

    def row(name: str, both: float, *others: float | None) -> list[str]:
        forward, back, both_ways, kernel = (
            "" if s is None else f"{1e3 * s / times:.1f}" for s in (*others[:2], both, others[2])
        )
        return [name, forward, back, both_ways, f"{both / whole:.0%}", kernel]

    for name, parts in lines.items():
        yield row(name, parts[:2].sum(), *parts)
    yield row("graph, sums of cotangents, AdamW", whole - in_all[:2].sum(), None, None, None)
    yield row("all", whole, None, None, in_all[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a single layer")
    options = parser.parse_args()
    one_thread.settle()
    for line in report(options.quick):
        print(line, flush=True)


if __name__ == "__main__":
    main()
