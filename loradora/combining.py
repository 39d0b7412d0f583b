"""Several adapters: those that act together, and LoRAs that are added up into one.

Adapters of different layers do not interact, so they may be of any kind.  The corrections of several
LoRAs of one layer add up, and their weighted sum is again a product,

    Σ wᵢ sᵢ Bᵢ Aᵢ = B A        with the Aᵢ below each other in A, the wᵢ sᵢ Bᵢ side by side in B,

whose rank is the sum of theirs ("cat").  Its largest singular values give the best approximation of a
lower rank ("svd").  PEFT can also mix the factors themselves ("linear"), which does not give that sum.
DoRAs do not add up, because each rescales the weight of the base.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import minigrad as mg
from loradora.adapters import ColumnDoRALinear, DoRALinear, LoRALinear
from loradora.config import LoraConfig
from loradora.low_rank import FORMULA, Adapted, LowRankLinear
from loradora.matching import exactly
from loradora.nn import Module, check_finite, check_positive
from loradora.views import rebuild, share_constants
from minigrad import Tensor

Array: TypeAlias = npt.NDArray[Any]

#: The adapted layers of one adapter by path.
Layers: TypeAlias = Mapping[str, LowRankLinear]

#: A (r, in) and B (out, r).
Factors: TypeAlias = tuple[Array, Array]


# ----------------------------------------------------------------------------- what adds up


MORE = "adapters that train biases or whole modules do not add up (lora_bias counts as a bias)"


def check_adds_up(config: LoraConfig, layer: type[LowRankLinear]) -> None:
    """Check that an adapter of this config and class only adds s B A to each weight.

    Raises
    ------
    ValueError
        If it does more, with the reason.
    """
    trains_more = config.bias != "none" or config.modules_to_save
    reason = MORE if trains_more else why_not_added(config, layer)
    if reason:
        raise ValueError(reason)


def why_not_added(config: LoraConfig, layer: type[LowRankLinear]) -> str:
    """Return why a layer of this config and class does not add s B A to its weight, or "" if it does."""
    if config.use_dora:
        return "DoRA adapters do not add up: each rescales the weight of the base"
    own = own_formula(layer)
    if own:
        return f"{layer.__name__} has {own[0]!r} of its own, and need not add up"
    if config.init_lora_weights in ("pissa", "olora"):
        return f"{config.init_lora_weights!r} adapters change W0 and do not add up"
    return MORE if config.lora_bias else ""


def own_formula(kind: type[LowRankLinear]) -> list[str]:
    """Return the names of the parts of the formula that a variant replaces.

    A variant that only starts differently, or trains less, replaces none.
    """
    siblings = LoRALinear, DoRALinear, ColumnDoRALinear
    plain = next((cls for cls in kind.__mro__ if cls in siblings), LoRALinear)
    names = "weight", "merge", *FORMULA
    return [n for n in names if getattr(kind, n, None) is not getattr(plain, n, None)]


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
        return self.as_base(sum(corrections, start=W0))

    @property
    def bias(self) -> Tensor | None:
        """The bias of the adapted layer."""
        return self.base_layer.bias


class Acting(NamedTuple):
    """An adapter that acts, as seen by :func:`together`.

    Attributes
    ----------
    config
        Its config.
    parts
        Its adapted layers, and its modules that train whole, by path.
    """

    config: LoraConfig
    parts: Mapping[str, Module]


def together(base: Module, adapters: Sequence[Acting]) -> Module:
    """Return a view of ``base`` in which all the adapters act at once.

    Where only one acts, it may be of any kind.  Where several act, their corrections add up.

    Raises
    ------
    ValueError
        If several act on one module and do not add up there, naming the module and the reason.
    """
    modules = dict(base.named_modules())
    for one, other in itertools.permutations(adapters, 2):
        _check_shared(modules, one, other)
    stacks: dict[int, list[Any]] = {}
    for _, parts in adapters:
        for path, part in parts.items():
            stacks.setdefault(id(modules[path]), []).append(part)

    def replace(module: Module) -> Module | None:
        parts = stacks.get(id(module), [None])
        return LoRASum(parts) if len(parts) > 1 else parts[0]

    view = rebuild(base, replace)
    share_constants(view, base)
    return view


def _check_shared(modules: Mapping[str, Module], one: Acting, other: Acting) -> None:
    """Raise ValueError if both act on one module, and the first does not add up there."""
    others = {id(modules[path]): path for path in other.parts}
    for path, part in one.parts.items():
        if not isinstance(part, LowRankLinear):
            inside = [id(m) for _, m in modules[path].named_modules()]
            shared = [others[module] for module in inside if module in others]
            if shared:
                raise ValueError(
                    f"{', '.join(shared)} cannot belong to two adapters, because {path} trains whole "
                    "in one of them"
                )
        elif id(modules[path]) in others and why_not_added(one.config, type(part)):
            raise ValueError(f"{path}: {why_not_added(one.config, type(part))}")


# ----------------------------------------------------------------------------- added up into one


def check_weights(
    names: Sequence[str], weights: Sequence[float], kind: str, svd_rank: int | None
) -> None:
    """Raise ValueError unless these can be the arguments of :func:`weighted_sum`."""
    if len(names) != len(weights) or not names:
        raise ValueError(f"expected one weight per adapter, got {names} and {weights}")
    if kind not in ("cat", "svd", "linear"):
        raise ValueError(f"combination_type must be 'cat', 'svd' or 'linear', not {kind!r}")
    check_finite(**{f"the weight of {name!r}": w for name, w in zip(names, weights)})
    if svd_rank is not None:
        check_positive(svd_rank=svd_rank)
        if kind != "svd":
            raise ValueError(f"svd_rank={svd_rank} goes with combination_type='svd'")


def weighted_sum(
    weights: Sequence[float], adapters: Sequence[Layers], kind: str, svd_rank: int
) -> dict[str, Factors]:
    """Return A and B for every layer that one of the adapters has, by path.

    Parameters
    ----------
    weights
        One for each adapter.
    adapters
        The layers of each adapter.
    kind
        "cat": B A = Σ wᵢ sᵢ Bᵢ Aᵢ exactly; "svd": its best approximation of rank ``svd_rank``;
        "linear": A and B are weighted sums of the Aᵢ and Bᵢ, and B A is a different matrix.
    svd_rank
        The rank for "svd"; a layer too small for it keeps all its singular values.

    Raises
    ------
    ValueError
        With "linear", if the ranks differ in a layer.
    """
    factors = {}
    for path in dict.fromkeys(path for layers in adapters for path in layers):
        parts = [(w, layers[path]) for w, layers in zip(weights, adapters) if path in layers]
        ranks = [layer.r for _, layer in parts]
        if kind == "linear" and len(set(ranks)) > 1:
            raise ValueError(
                f"'linear' needs equal ranks in {path}, not {', '.join(map(str, ranks))}"
            )
        scaled = [(w * layer.scaling, layer.A.data, layer.B.data) for w, layer in parts]
        A, B = _mixed(scaled) if kind == "linear" else _side_by_side(scaled)
        factors[path] = _truncated(A, B, svd_rank) if kind == "svd" else (A, B)
    return factors


#: Of one layer: w s, A and B of each adapter.
Scaled: TypeAlias = Sequence[tuple[float, Array, Array]]


def _side_by_side(parts: Scaled) -> Factors:
    """Return the Aᵢ below each other, and the wᵢ sᵢ Bᵢ side by side."""
    A = np.concatenate([A for _, A, _ in parts])
    return A, np.concatenate([ws * B for ws, _, B in parts], axis=1)


def _mixed(parts: Scaled) -> Factors:
    """Return Σ ±√|wᵢ sᵢ| Aᵢ and Σ √|wᵢ sᵢ| Bᵢ; the product also has terms ±√|wᵢ sᵢ wⱼ sⱼ| Bᵢ Aⱼ."""
    A = np.sum([math.copysign(math.sqrt(abs(ws)), ws) * A for ws, A, _ in parts], axis=0)
    return A, np.sum([math.sqrt(abs(ws)) * B for ws, _, B in parts], axis=0)


def largest_rank(configs: Iterable[LoraConfig]) -> int:
    """Return the largest rank that any of the configs names for any layer."""
    return max(r for config in configs for r in (config.r, *config.rank_pattern.values()))


def _truncated(A: Array, B: Array, rank: int) -> Factors:
    """Return the factors of the best approximation of B A of this rank, by its singular values."""
    U, S, Vt = np.linalg.svd(np.matmul(B, A, dtype=np.float64), full_matrices=False)
    return Vt[:rank], U[:, :rank] * S[:rank]


def config_for(factors: Mapping[str, Factors], lora_dropout: float) -> LoraConfig:
    """Return the config of a LoRA in exactly these layers, with these ranks and s = 1."""
    names = exactly({path: A.shape[0] for path, (A, _) in factors.items()})
    names |= {"lora_alpha": names["r"], "alpha_pattern": names["rank_pattern"]}
    return LoraConfig(lora_dropout=lora_dropout, **names)
