"""loradora: LoRA and DoRA for linear layers, on minigrad.

Read it in this order:

- the layers: ``adapters`` (the heart), ``by_hand`` (its gradients on paper), ``low_rank`` (what LoRA and
  DoRA share), ``norms`` (the trick of DoRA's norm), ``init`` (how A and B start), ``nn`` (plain layers),
  ``attention`` (the layers of a transformer);
- training: ``optim`` (steps), ``train`` (loops), ``analysis`` (what an adapter did), ``memory`` (what a
  script may ask of the C library);
- adapted models: ``config`` (the options), ``patterns`` (their regular expressions), ``matching`` (which
  layers they name), ``reaching`` (what else refers to a layer), ``views`` (sharing a frozen base),
  ``combining`` (several adapters), ``adapting`` (one adapter on one model), ``peft`` (adapted models,
  merging);
- files: ``formats`` (arrays as bytes), ``saving`` (files into their places, all or none), ``files`` (what
  all files have in common), ``checkpoint`` (files of adapters), ``moments`` (an optimizer's state, by
  name), ``model_files`` (models and states on disk).

``companion`` runs first: it checks that minigrad is the one that belongs here.
"""

import typing

from loradora import companion

companion.check_minigrad()  # before anything imports minigrad

from loradora import analysis, by_hand
from loradora.adapters import DoRALinear, LoRALinear
from loradora.attention import (
    DecoderLayer,
    Embedding,
    LayerNorm,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
)
from loradora.config import LoraConfig
from loradora.files import CheckpointError
from loradora.low_rank import LowRankLinear
from loradora.memory import keep_freed_memory
from loradora.model_files import load_model, load_optimizer, save_model, save_optimizer
from loradora.moments import optimizer_from_torch, optimizer_to_torch
from loradora.nn import GELU, MLP, Dropout, Flatten, Linear, Module, ReLU, Sequential, Sigmoid, Tanh
from loradora.optim import (
    SGD,
    AdamW,
    clip_grad_norm_,
    cosine_decay,
    linear_decay,
    lora_plus,
    warmup,
)
from loradora.peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from loradora.train import evaluate, fit, windows
from minigrad import hints

__all__ = [
    "GELU",
    "MLP",
    "SGD",
    "AdamW",
    "CheckpointError",
    "DecoderLayer",
    "DoRALinear",
    "Dropout",
    "Embedding",
    "Flatten",
    "LayerNorm",
    "Linear",
    "LoRALinear",
    "LoraConfig",
    "LowRankLinear",
    "Module",
    "MultiHeadAttention",
    "PeftModel",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "analysis",
    "attention_weights",
    "by_hand",
    "causal_mask",
    "clip_grad_norm_",
    "cosine_decay",
    "evaluate",
    "fit",
    "get_peft_model",
    "get_peft_model_state_dict",
    "keep_freed_memory",
    "linear_decay",
    "load_model",
    "load_optimizer",
    "lora_plus",
    "optimizer_from_torch",
    "optimizer_to_torch",
    "save_model",
    "save_optimizer",
    "set_peft_model_state_dict",
    "warmup",
    "windows",
]

if typing.TYPE_CHECKING:
    __version__: str
else:
    __getattr__ = hints.attributes_of(__name__, hints.of_loradora)

del typing
