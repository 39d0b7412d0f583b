"""The table of lesson 10 by PyTorch, transformers and PEFT, beside ours: a row per method and seed.

    python tests/benchmarks/authors.py [--steps 200] [--seeds 3]

Both sides start with the same numbers and see the same batches.  They report the loss on the last scene
of the play.  Only rounding may make a difference.  It grows with the steps, to 0.01 nats at most.
(Extra ``bench``; about half an hour on one core.)
"""

import one_thread  # isort: skip  # first: NumPy and PyTorch look once

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
from transformers import OPTConfig, OPTForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import author
import gpt
import text

import loradora as ld
import minigrad as mg


def opt(model):
    """Return the OPT that computes what our GPT computes."""
    decoder = model.model["decoder"]
    characters, width = decoder.embed_tokens.weight.shape
    config = OPTConfig(
        vocab_size=characters,
        hidden_size=width,
        word_embed_proj_dim=width,
        num_hidden_layers=len(decoder.layers),
        ffn_dim=decoder.layers[0].fc1.out_features,
        num_attention_heads=decoder.layers[0].self_attn.num_heads,
        max_position_embeddings=gpt.CONTEXT,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        pad_token_id=None,
    )
    theirs = OPTForCausalLM(config)
    state = {name: torch.tensor(a) for name, a in model.state_dict().items()}
    keys = theirs.load_state_dict(state, strict=False)
    assert keys.missing_keys in ([], ["lm_head.weight"]), keys
    assert not keys.unexpected_keys, keys
    theirs.tie_weights()
    return theirs


def start(method, base, seed):
    """Return our model at its start, and theirs with the same numbers."""
    ours = method.build(base, seed)
    if not isinstance(ours, ld.PeftModel):
        return ours, opt(ours)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = peft.PeftModel.from_pretrained(opt(base), folder, is_trainable=True)
    return ours, theirs


def batches(x, y, steps, seed):
    """Return the batches that ``fit`` draws: a model that only records them is trained."""
    seen = []

    class Remembering(ld.Module):
        def __init__(self):
            self.weight = mg.Tensor(0.0, requires_grad=True)

        def forward(self, ids):
            seen.append([ids])
            return self.weight

    def loss(output, targets):
        seen[-1].append(targets)
        return output * 1.0

    nobody = Remembering()
    how = {"steps": steps, "batch_size": author.BATCH, "loss": loss, "rng": seed}
    for _ in ld.fit(nobody, x, y, optimizer=ld.SGD(nobody.parameters(), lr=0.1), **how):
        pass
    return [tuple(torch.tensor(part.astype(np.int64)) for part in batch) for batch in seen]


def train(theirs, drawn, rate):
    """Train their model as ``author.train`` trains ours."""
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = ld.warmup(author.WARMUP / len(drawn))
    theirs.train()
    for k, (ids, targets) in enumerate(drawn):
        optimizer.param_groups[0]["lr"] = rate * schedule(k / len(drawn))
        logits = theirs(input_ids=ids).logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def loss_on(theirs, ids, most=256):
    """Return what ``gpt.loss_on`` returns, of their model."""
    x, y = ld.windows(ids, gpt.CONTEXT)
    chosen = np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)
    theirs.eval()
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor(x[chosen].astype(np.int64))).logits
        targets = torch.tensor(y[chosen].astype(np.int64))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    one_thread.settle()
    base, play = gpt.pretrained(), text.play()
    print(f"{chosen.steps} steps, loss on the new author\n")
    print(f"{'':28}  seed    ours  PyTorch  difference")
    for method in author.methods(8):
        if method.kind in ("frozen", "scratch"):  # these do not start from common numbers
            continue
        for seed in range(chosen.seeds):
            _, theirs = start(method, base, seed)
            how = {"rate": method.rate, "steps": chosen.steps, "seed": seed}
            run = author.train(method, base, play.train, **how)
            train(
                theirs,
                batches(*ld.windows(play.train, gpt.CONTEXT), chosen.steps, seed),
                method.rate,
            )
            a, b = gpt.loss_on(run.model, play.test), loss_on(theirs, play.test)
            print(f"{method.name:28}{seed:6}{a:8.4f}{b:9.4f}{a - b:+12.4f}", flush=True)


if __name__ == "__main__":
    main()
