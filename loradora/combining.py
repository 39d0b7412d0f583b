"""Sums of adapters: LoRAs that act together, and LoRAs that are added up into one.

The corrections of several LoRAs of one layer add up, and their weighted sum is again a product,

    Σ wᵢ sᵢ Bᵢ Aᵢ = B A        with the Aᵢ below each other in A, the wᵢ sᵢ Bᵢ side by side in B,

whose rank is the sum of theirs ("cat").  Its best approximation of a lower rank is made of its largest
singular values ("svd").  DoRAs do not add up, because each rescales the weight of the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.adapters import Adapted, ColumnDoRALinear, DoRALinear, LoRALinear, LowRankLinear
from loradora.config import LoraConfig
from loradora.nn import Module, check_positive
from loradora.views import rebuild
from minigrad import Tensor

Array: TypeAlias = npt.NDArray[Any]

#: The adapted layers of one adapter by path.
Layers: TypeAlias = Mapping[str, LowRankLinear]

#: A (r, in) and B (out, r).
Factors: TypeAlias = tuple[Array, Array]


# ----------------------------------------------------------------------------- what adds up


def check_adds_up(config: LoraConfig, layer: type[LowRankLinear]) -> None:
    """Check that all that adapters of this config and class do is to add s B A to each weight.

    Raises
    ------
    ValueError
        If it is not, with the reason.
    """
    if config.use_dora:
        raise ValueError("DoRA adapters do not add up: each rescales the weight of the base")
    own = own_formula(layer)
    if own:
        raise ValueError(f"{layer.__name__} has {own[0]!r} of its own, and need not add up")
    if config.bias != "none" or config.modules_to_save or config.lora_bias:
        raise ValueError("adapters that train biases or whole modules do not add up")
    if config.init_lora_weights in ("pissa", "olora"):
        raise ValueError(f"{config.init_lora_weights!r} adapters change W0 and do not add up")


def own_formula(kind: type[LowRankLinear]) -> list[str]:
    """Return what a variant does in another way than the class it varies, by name.

    A variant that only starts differently, or trains less, does nothing in another way.
    """
    siblings = LoRALinear, DoRALinear, ColumnDoRALinear
    plain = next((cls for cls in kind.__mro__ if cls in siblings), LoRALinear)
    public = [n for cls in (plain, LowRankLinear, Adapted) for n in vars(cls) if n[0] != "_"]
    return [n for n in public if getattr(kind, n, None) is not getattr(plain, n)]


# ----------------------------------------------------------------------------- acting together


class LoRASum(Adapted):
    """Several LoRAs of one layer, whose corrections add up: y = x W0ᵀ + b + Σ sᵢ (x Aᵢᵀ) Bᵢᵀ."""

    def __init__(self, layers: Sequence[LowRankLinear]) -> None:
        self.base_layer = layers[0].base_layer
        self.layers = list(layers)

    def forward(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """Return y of shape (…, out) for x of shape (…, in)."""
        first, *others = self.layers
        x = first.as_input(x)
        y = first.forward(x)
        for layer in others:
            h = mg.linear(layer.lora_dropout(x), layer.A)
            y = mg.linear(layer.scaling * h, layer.B, y)
        return y

    @property
    def weight(self) -> Tensor:
        """W0 + Σ sᵢ Bᵢ Aᵢ."""
        corrections = ((layer.scaling * layer.B) @ layer.A for layer in self.layers)
        W0 = self.base_layer.weight
        return sum(corrections, start=W0)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer."""
        return self.base_layer.bias


def together(base: Module, adapters: Sequence[Layers]) -> Module:
    """Return a view of ``base`` in which the LoRAs of all the adapters act at once."""
    modules = dict(base.named_modules())
    stacks: dict[int, list[LowRankLinear]] = {}
    for layers in adapters:
        for path, layer in layers.items():
            stacks.setdefault(id(modules[path]), []).append(layer)

    def replace(module: Module) -> Module | None:
        return LoRASum(stacks[id(module)]) if id(module) in stacks else None

    return rebuild(base, replace)


# ----------------------------------------------------------------------------- added up into one


def check_weights(
    names: Sequence[str], weights: Sequence[float], kind: str, svd_rank: int | None
) -> None:
    """Raise ValueError unless these can be the arguments of :func:`weighted_sum`."""
    if len(names) != len(weights) or not names:
        raise ValueError(f"expected one weight per adapter, got {names} and {weights}")
    if kind not in ("cat", "svd"):
        raise ValueError(f"combination_type must be 'cat' or 'svd', not {kind!r}")
    if not np.all(np.isfinite(weights)):
        raise ValueError(f"weights must be finite, not {list(weights)}")
    if svd_rank is not None:
        check_positive(svd_rank=svd_rank)
        if kind != "svd":
            raise ValueError(f"svd_rank={svd_rank} goes with combination_type='svd'")


def weighted_sum(
    weights: Sequence[float], adapters: Sequence[Layers], kind: str, svd_rank: int
) -> dict[str, Factors]:
    """Return A and B with B A = Σ wᵢ sᵢ Bᵢ Aᵢ for every layer that one of the adapters has, by path.

    Parameters
    ----------
    weights
        One for each adapter.
    adapters
        Their layers.
    kind
        "cat" is exact; "svd" is the best approximation of rank ``svd_rank``.
    svd_rank
        Of "svd", in every layer that is not too small for it.
    """
    factors = {}
    for path in dict.fromkeys(path for layers in adapters for path in layers):
        parts = [(w, layers[path]) for w, layers in zip(weights, adapters) if path in layers]
        A = np.concatenate([layer.A.data for _, layer in parts])
        B = np.concatenate([w * layer.scaling * layer.B.data for w, layer in parts], axis=1)
        factors[path] = (A, B) if kind == "cat" else _truncated(A, B, svd_rank)
    return factors


def largest_rank(configs: Iterable[LoraConfig]) -> int:
    """Return the largest rank that one of the configs names, for whatever layer."""
    return max(r for config in configs for r in (config.r, *config.rank_pattern.values()))


def _truncated(A: Array, B: Array, rank: int) -> Factors:
    """Return the factors of the best approximation of B A of this rank, by its singular values."""
    U, S, Vt = np.linalg.svd(np.matmul(B, A, dtype=np.float64), full_matrices=False)
    return Vt[:rank], U[:, :rank] * S[:rank]


def config_for(factors: Mapping[str, Factors]) -> LoraConfig:
    """Return the config of a LoRA in exactly these layers, with these ranks and s = 1."""
    ranks = {re.escape(path): A.shape[0] for path, (A, _) in factors.items()}
    return LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules="|".join(ranks),
        rank_pattern={f"^{path}": r for path, r in ranks.items()},
        alpha_pattern={f"^{path}": r for path, r in ranks.items()},
    )
