"""The classifier of ``examples/bert.py`` in PyTorch and transformers, called like ours."""

import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import torch_minilm

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Twin(torch_minilm.Classifier):
    """From ids (N, T) to logits, with nothing dropped, and a head that is 0 at first."""

    def __init__(self, folder: Path, form: str, classes: int) -> None:
        bert = transformers.BertModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            attn_implementation=form,
            dtype=torch.float32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        super().__init__(bert, classes)
        torch.nn.init.zeros_(self.classifier.weight)
        torch.nn.init.zeros_(self.classifier.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        there = (ids != self.bert.config.pad_token_id).long()
        longest = int(there.sum(dim=1).max())
        return super().forward(ids[:, :longest], there[:, :longest])
