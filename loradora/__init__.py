"""loradora: LoRA and DoRA for linear layers, on minigrad.

Read it in this order: ``adapters`` (the heart), ``by_hand`` (its gradients on paper), ``norms`` (its
one trick), ``nn`` (layers), ``init`` (how A and B start), ``config`` (the options), ``matching`` (which
layers they name), ``reaching`` (who else knows a layer), ``views`` (sharing a frozen base),
``combining`` (sums of adapters), ``checkpoint`` (files), ``adapting`` (one adapter on one model),
``peft`` (adapted models, merging), ``optim`` and ``train`` (training), ``analysis`` (what an adapter
did).  ``companion`` looks first whether minigrad is the one that belongs here.
"""

from typing import TYPE_CHECKING

from loradora.companion import check_minigrad

check_minigrad()  # before anything imports it

from loradora import analysis as analysis
from loradora import by_hand as by_hand
from loradora.adapters import DoRALinear as DoRALinear
from loradora.adapters import LoRALinear as LoRALinear
from loradora.adapters import LowRankLinear as LowRankLinear
from loradora.checkpoint import CheckpointError as CheckpointError
from loradora.checkpoint import load_model as load_model
from loradora.checkpoint import save_model as save_model
from loradora.config import LoraConfig as LoraConfig
from loradora.nn import GELU as GELU
from loradora.nn import MLP as MLP
from loradora.nn import Dropout as Dropout
from loradora.nn import Flatten as Flatten
from loradora.nn import Linear as Linear
from loradora.nn import Module as Module
from loradora.nn import ReLU as ReLU
from loradora.nn import Sequential as Sequential
from loradora.nn import Sigmoid as Sigmoid
from loradora.nn import Tanh as Tanh
from loradora.optim import SGD as SGD
from loradora.optim import AdamW as AdamW
from loradora.optim import clip_grad_norm_ as clip_grad_norm_
from loradora.optim import cosine_decay as cosine_decay
from loradora.optim import linear_decay as linear_decay
from loradora.optim import lora_plus as lora_plus
from loradora.optim import warmup as warmup
from loradora.peft import PeftModel as PeftModel
from loradora.peft import get_peft_model as get_peft_model
from loradora.peft import get_peft_model_state_dict as get_peft_model_state_dict
from loradora.peft import set_peft_model_state_dict as set_peft_model_state_dict
from loradora.train import evaluate as evaluate
from loradora.train import fit as fit
from minigrad import hints as _hints

if TYPE_CHECKING:
    __version__: str
else:
    __getattr__ = _hints.attributes_of(__name__, _hints.of_loradora)
