"""A process of its own, to see how much memory it needs: a BERT and its adapter are loaded and trained.

    python tests/benchmarks/resident.py ours|sdpa|eager BASE ADAPTER BATCH

The base and the adapter are folders, the batch is an ``.npz`` of ids and labels.  After ten steps it
prints the highest number of bytes that the process has held.  Ours imports no PyTorch.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import machine

STEPS = 10
CLASSES = 2


def train_ours(base: Path, adapter: Path, ids: np.ndarray, labels: np.ndarray) -> None:
    import bert

    import loradora as ld

    ld.keep_freed_memory()  # as in examples/finetune_minilm.py
    model = bert.Classifier(bert.load(base, dropout=0.0, rng=0), CLASSES)
    model = ld.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    optimizer = ld.AdamW(model.trainable_parameters())
    how = {"steps": STEPS, "batch_size": len(ids), "rng": 0}
    for _ in ld.fit(model, ids, labels, optimizer=optimizer, **how):
        pass
    assert "torch" not in sys.modules


def train_theirs(form: str, base: Path, adapter: Path, ids: np.ndarray, labels: np.ndarray) -> None:
    import peft
    import torch
    from twin import Twin

    torch.set_num_threads(1)
    model = peft.PeftModel.from_pretrained(Twin(base, form, CLASSES), adapter, is_trainable=True)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    x, y = torch.tensor(ids), torch.tensor(labels)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    who, *folders, file = sys.argv[1:]
    base, adapter = map(Path, folders)
    with np.load(file) as batch:
        ids, labels = batch["ids"], batch["labels"]
    if who == "ours":
        train_ours(base, adapter, ids, labels)
    else:
        train_theirs(who, base, adapter, ids, labels)
    print(machine.peak())


if __name__ == "__main__":
    main()
