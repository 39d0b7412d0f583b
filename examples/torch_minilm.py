"""Judges sentences in PyTorch, with an adapter that was trained in NumPy.

    python torch_minilm.py MODEL ADAPTER SENTENCE...

MODEL is the folder of the BERT.  ADAPTER is what ``finetune_minilm.py`` has saved of LoRA or DoRA, say
out/minilm/lora: a folder of PEFT, which holds the classifier, too, and in ``notes.json`` the names of
the classes.  For each sentence you see how likely each class is.

Nothing of minigrad or loradora is imported: whoever uses such an adapter needs PyTorch, transformers and
PEFT alone.
"""

import argparse
import json
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import BertModel, BertTokenizer, logging


class Classifier(nn.Module):
    """What ``bert.Classifier`` is, under the same names: a linear layer on the mean of the vectors."""

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
    parser.add_argument("model", type=Path, help="the folder of the BERT")
    parser.add_argument("adapter", type=Path, help="a folder that finetune_minilm.py has saved")
    parser.add_argument("sentences", nargs="+", metavar="sentence")
    chosen = parser.parse_args()
    logging.set_verbosity_error()  # it would say that the file has more than is needed
    logging.disable_progress_bar()
    judged = judge(chosen.model, chosen.adapter, chosen.sentences)
    for sentence, likely in zip(chosen.sentences, judged):
        print(sentence)
        for name, p in likely.items():
            print(f"   {name:12}{p:10.7f}")
