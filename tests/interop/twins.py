"""Twins: the same network in PyTorch and here, with the same weights, data and steps of training."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peft
import safetensors.numpy
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

import loradora as ld
import minigrad as mg

torch.set_num_threads(1)  # the arrays are tiny
peft.PeftModel.create_or_update_model_card = lambda self, folder: None  # slow, and only prose

Array = npt.NDArray[Any]

SIZES = (7, 12, 9, 5)

#: How far results may be apart, relative to their size or to 1.
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}

#: What an adapter can be: the options of both sides' LoraConfig, on top of ``COMMON``.
COMMON = {"r": 3, "lora_alpha": 7, "target_modules": ["0", "2"]}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "rsDoRA": {"use_rslora": True, "use_dora": True},
    "negative alpha": {"lora_alpha": -2.5},
    "rank above both widths": {"r": 20},
    "rank_pattern": {"rank_pattern": {"0": 5}},
    "alpha_pattern": {"alpha_pattern": {r"layers\.2": 3}},
    "both patterns": {"rank_pattern": {"^layers.0": 2}, "alpha_pattern": {"0|2": 5}},
    "both patterns, rsDoRA": {
        "rank_pattern": {"0": 2},
        "alpha_pattern": {"2": 5},
        "use_rslora": True,
        "use_dora": True,
    },
    "bias all": {"bias": "all"},
    "bias all, DoRA": {"bias": "all", "use_dora": True},
    "bias lora_only": {"bias": "lora_only"},
    "bias lora_only, DoRA": {"bias": "lora_only", "use_dora": True},
    "modules_to_save": {"modules_to_save": ["4"]},
    "modules_to_save, DoRA": {"modules_to_save": ["layers.4"], "use_dora": True},
    "modules_to_save, bias all": {"modules_to_save": ["4"], "bias": "all"},
    "modules_to_save, bias lora_only": {"modules_to_save": ["4"], "bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "lora_bias, rsLoRA": {"lora_bias": True, "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random B": {"init_lora_weights": False},
    "random B, DoRA": {"init_lora_weights": False, "use_dora": True},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
    "orthogonal, DoRA": {"init_lora_weights": "orthogonal", "r": 4, "use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, DoRA": {"init_lora_weights": "pissa", "use_dora": True},
    "olora": {"init_lora_weights": "olora"},
    "olora, DoRA": {"init_lora_weights": "olora", "use_dora": True},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear but one": {"target_modules": "all-linear", "exclude_modules": ["2"]},
    "regular expression": {"target_modules": r"layers\.(0|4)", "use_dora": True},
    "one layer": {"target_modules": ["layers.2"]},
}


def in_float64(kind: str) -> bool:
    """Whether PEFT has this kind in float64, too."""
    return KINDS[kind].get("init_lora_weights") not in ("pissa", "olora")


KINDS_AND_DTYPES = [
    (kind, dtype) for kind in KINDS for dtype in TOLERANCE if dtype == "float32" or in_float64(kind)
]


class Net(nn.Module):
    """The same as ``ld.MLP``, with the same names: ``layers.0``, ``layers.2``, ``layers.4``."""

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(sizes):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def net(dtype: str = "float32") -> Net:
    torch.manual_seed(0)
    return Net().to(getattr(torch, dtype))


def twin(theirs: nn.Module) -> ld.MLP:
    """Return the MLP with the weights of ``theirs``."""
    state = {name: p.numpy() for name, p in theirs.state_dict().items()}
    ours = ld.MLP(SIZES, dtype=state["layers.0.weight"].dtype)
    ours.load_state_dict(state)
    return ours


def data(dtype: str = "float32", seed: int = 1) -> tuple[Array, Array]:
    """Return a batch of inputs and labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(16, SIZES[0])).astype(dtype), rng.integers(SIZES[-1], size=16)


# From here on, ``model`` is of either side.


def adapt(model: Any, **options: Any) -> Any:
    """Return ``model`` with an adapter; the model itself stays as it is."""
    options = COMMON | options
    if isinstance(model, nn.Module):
        torch.manual_seed(2)
        return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options))
    return ld.get_peft_model(model, ld.LoraConfig(**options), rng=np.random.default_rng(2))


def load(model: Any, folder: Path, adapter_name: str = "default", **options: Any) -> Any:
    """Return ``model`` with the adapter in ``folder``; the model itself stays as it is."""
    if isinstance(model, nn.Module):
        base = copy.deepcopy(model)
        return peft.PeftModel.from_pretrained(base, str(folder), adapter_name, **options)
    return ld.PeftModel.from_pretrained(model, folder, adapter_name, **options)


def run(model: Any, x: Array) -> Array:
    """Return the output for x in the mode that ``model`` is in."""
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    return model(x).data


def backward(model: Any, x: Array, labels: Array) -> None:
    """Set the gradients of the mean cross-entropy."""
    if isinstance(model, nn.Module):
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(labels)).backward()
    else:
        mg.cross_entropy(model(x), labels).backward()


def training(
    model: Any, optimizer: str = "SGD", dtype: str = "float32", **options: Any
) -> Iterator[int]:
    """Train the adapter, each step on another batch; yield the number of steps taken."""
    library = torch.optim if isinstance(model, nn.Module) else ld
    trainable = [p for p in model.parameters() if p.requires_grad]
    opt = getattr(library, optimizer)(trainable, **options)
    model.train()
    for step in itertools.count():
        opt.zero_grad()
        backward(model, *data(dtype, seed=step))
        opt.step()
        yield step + 1


def train(model: Any, steps: int, dtype: str = "float32", lr: float = 0.3) -> Any:
    """Train the adapter by some steps of SGD; return ``model`` in evaluation mode."""
    for _ in itertools.islice(training(model, "SGD", dtype, lr=lr), steps):
        pass
    return model.eval()


def state(model: Any) -> dict[str, Array]:
    """Return all parameters by name."""
    if isinstance(model, nn.Module):
        return {name: p.detach().numpy() for name, p in model.state_dict().items()}
    return model.state_dict()


def trained(model: Any, part: str = "data") -> dict[str, Array]:
    """Return what the adapter ``default`` trains, or its gradients, under one name for both sides."""
    renamed = {
        "base_model.model.": "base_model.",
        ".modules_to_save.default": "",
        ".lora_A.default.weight": ".A",
        ".lora_B.default.weight": ".B",
        ".lora_B.default.bias": ".B_bias",
        ".lora_magnitude_vector.default.weight": ".m",
    }
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            for theirs, ours in renamed.items():
                name = name.replace(theirs, ours)
            found[name] = np.asarray(getattr(p, part))
    return found


def adapted(model: Any) -> dict[str, tuple[int, float]]:
    """Return rank and scaling of the adapted layers by path."""
    if isinstance(model, nn.Module):
        return {
            path.removeprefix("base_model.model."): (m.r["default"], m.scaling["default"])
            for path, m in model.named_modules()
            if isinstance(m, LoraLayer)
        }
    return {
        path.removeprefix("base_model."): (m.r, m.scaling)
        for path, m in model.named_modules()
        if isinstance(m, (ld.LoRALinear, ld.DoRALinear))
    }


def on_disk(folder: Path) -> dict[str, Array]:
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


def agree(ours: Any, theirs: Any, tolerance: float | None = None) -> None:
    """Assert that arrays, or dicts of arrays, have the same names, shapes, dtypes and values."""
    if not isinstance(ours, dict):
        ours, theirs = {"": ours}, {"": theirs}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert value.shape == theirs[name].shape, name
        bound = TOLERANCE[value.dtype.name] if tolerance is None else tolerance
        np.testing.assert_allclose(value, theirs[name], rtol=bound, atol=bound, err_msg=name)
