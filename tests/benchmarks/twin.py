"""The classifier of ``examples/bert.py``, by PyTorch and transformers."""

from pathlib import Path

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Twin(torch.nn.Module):
    """From ids (N, T) to logits: a linear layer, at first 0, on the mean of a text's vectors.

    Its parameters have the names that they have in ``bert.Classifier``.  Nothing is dropped.
    """

    def __init__(self, folder: Path, form: str, classes: int) -> None:
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            attn_implementation=form,
            dtype=torch.float32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.classifier = torch.nn.Linear(self.bert.config.hidden_size, classes)
        torch.nn.init.zeros_(self.classifier.weight)
        torch.nn.init.zeros_(self.classifier.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        there = ids != self.bert.config.pad_token_id
        lengths = there.sum(dim=1, keepdim=True)
        longest = int(lengths.max())
        ids, there = ids[:, :longest], there[:, :longest]
        x = self.bert(input_ids=ids, attention_mask=there.long()).last_hidden_state
        weights = there / lengths
        return self.classifier((weights[:, None] @ x)[:, 0])
