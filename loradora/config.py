"""What to adapt and how: PEFT's ``LoraConfig`` for linear layers.

Names, defaults and meaning are those of Hugging Face PEFT 0.21, so that a config written by one side
is read by the other.  What is not implemented here is refused by name; no option is ignored.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loradora.init import SCHEMES, Scheme
from loradora.nn import check_positive

TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")

#: Options of PEFT that stay at these values here, with the reason.
ABSENT: dict[str, tuple[Any, str]] = {
    "alora_invocation_tokens": (None, "needs a tokenised prompt"),
    "arrow_config": (None, "routes between adapters"),
    "auto_mapping": (None, "names a transformers class"),
    "base_model_name_or_path": (None, "names a model on a hub"),
    "corda_config": (None, "needs activations of a calibration set"),
    "ensure_weight_tying": (False, "tied layers are always adapted together here"),
    "eva_config": (None, "needs activations of a calibration set"),
    "kasa_config": (None, "another adapter family"),
    "layer_replication": (None, "changes the architecture"),
    "loftq_config": ({}, "needs quantised weights"),
    "lora_ga_config": (None, "needs gradients of a calibration set"),
    "megatron_config": (None, "needs Megatron"),
    "megatron_core": ("megatron.core", "needs Megatron"),
    "monteclora_config": (None, "another adapter family"),
    "qalora_group_size": (16, "needs quantised weights"),
    "revision": (None, "names a model on a hub"),
    "target_parameters": (None, "adapts bare parameters, not linear layers"),
    "trainable_token_indices": (None, "needs an embedding"),
    "use_bdlora": (None, "another adapter family"),
    "use_qalora": (False, "needs quantised weights"),
    "velora_config": (None, "another adapter family"),
}


@dataclass
class LoraConfig:
    """Which layers get an adapter, and of what kind.

    Parameters
    ----------
    r
        The rank.
    lora_alpha
        α of the scaling s = α/r.
    target_modules
        The Linear layers to adapt: a list of names, each matching whole trailing parts
        of a path ("q" matches "layer.0.q", not "layer.0.seq"); a regular expression for the whole
        path; or "all-linear".
    exclude_modules
        Layers not to adapt, in the same forms.
    lora_dropout
        Dropout rate on the input of the correction, in [0, 1).
    bias
        Which biases train along: "none", "all", or "lora_only", those of adapted layers.
    use_rslora
        Scale by α/√r.
    use_dora
        DoRA in place of LoRA.
    init_lora_weights
        How A and B start: see :mod:`loradora.init`.
    rank_pattern
        Path or regular expression → r for those layers.
    alpha_pattern
        Path or regular expression → α for those layers.
    layers_to_transform
        Adapt only layers with these numbers in their path; those named in full
        are adapted in any case.
    layers_pattern
        The path part that such a number follows; by default any but the first.
    modules_to_save
        Names of modules that train whole and are saved with the adapter.
    fan_in_fan_out
        Only False: weights are (out, in) here.
    lora_bias
        B has a bias, too (LoRA only).
    task_type
        One of PEFT's task names; kept for the file.
    inference_mode
        The adapter is frozen.
    peft_type
        "LORA".
    peft_version
        Kept for the file.

    Raises
    ------
    TypeError, ValueError
        Naming the option, what it was and what it may be.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Sequence[str] | str | None = None
    exclude_modules: Sequence[str] | str | None = None
    lora_dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Scheme = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] | None = None
    fan_in_fan_out: bool = False
    lora_bias: bool = False
    task_type: str | None = None
    inference_mode: bool = False
    peft_type: str = "LORA"
    peft_version: str | None = None

    def __post_init__(self) -> None:
        self._check_names()
        check_positive(
            r=self.r, **{f"rank_pattern[{k!r}]": v for k, v in self.rank_pattern.items()}
        )
        self.r = int(self.r)  # JSON knows Python's integers only
        self.rank_pattern = {k: int(v) for k, v in self.rank_pattern.items()}
        alphas = {f"alpha_pattern[{k!r}]": v for k, v in self.alpha_pattern.items()}
        numbers = {"lora_alpha": self.lora_alpha, "lora_dropout": self.lora_dropout, **alphas}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise TypeError(f"{name} must be a number, not {number!r}")
            if not abs(number) <= sys.float_info.max:
                raise ValueError(f"{name} must be finite, not {number!r}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must lie in [0, 1), not {self.lora_dropout!r}")
        self._check("bias", ("none", "all", "lora_only"))
        self._check("init_lora_weights", SCHEMES)
        self._check("task_type", (None, *TASKS))
        self._check("peft_type", ("LORA",))
        for flag in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "inference_mode"):
            self._check(flag, (False, True))
        if self.fan_in_fan_out:
            raise ValueError("fan_in_fan_out is not implemented: weights are (out, in) here")
        if self.lora_bias and self.use_dora:
            raise ValueError("lora_bias does not go with use_dora: m scales a weight, not a bias")
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError(f"orthogonal initialisation needs an even r, not {self.r}")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "layers_to_transform goes with a list of target_modules, not a pattern"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern goes with layers_to_transform")

    def _check_names(self) -> None:
        """Raise unless names are strings, layer numbers integers, and patterns can be compiled."""
        expressions: list[str] = []
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str) and name != "modules_to_save":
                expressions.append(value)
            elif not _all_are(str, value):
                raise TypeError(f"{name} must be a list of names, not {value!r}")
            elif name == "layers_pattern":
                expressions += value
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not _all_are(str, list(value)):
                raise TypeError(f"{name} must be a dict from names to numbers, not {value!r}")
            expressions += value
        numbers = self.layers_to_transform
        if not (numbers is None or _all_are(int, [numbers]) or _all_are(int, numbers)):
            raise TypeError(f"layers_to_transform must be a list of integers, not {numbers!r}")
        for expression in expressions:
            _check_expression(expression)

    def _check(self, name: str, allowed: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise ValueError(f"{name} must be one of {allowed}, not {value!r}")

    # -- which layers

    def targets(self, path: str) -> bool:
        """Whether the linear layer at ``path`` is to be adapted."""
        return not self.excludes(path) and not self.saves(path) and self._names(path)

    def conflicts(self, path: str) -> bool:
        """Whether ``path`` is named both as a target and as a module to train whole."""
        return self.target_modules != "all-linear" and self.saves(path) and self._names(path)

    def _names(self, path: str) -> bool:
        if self.target_modules is None:
            raise ValueError("target_modules is not set: name the Linear layers, or 'all-linear'")
        if self.target_modules == "all-linear":
            return True
        in_full = not isinstance(self.target_modules, str) and path in self.target_modules
        return in_full or (_matches(self.target_modules, path) and self._at_wanted_depth(path))

    def excludes(self, path: str) -> bool:
        """Whether ``exclude_modules`` names ``path``."""
        return self.exclude_modules is not None and _matches(self.exclude_modules, path)

    def saves(self, path: str) -> bool:
        """Whether ``path`` is, or lies inside, one of ``modules_to_save``."""
        return any(
            re.match(rf"(.*\.)?{re.escape(name)}(\..*)?$", path)
            for name in self.modules_to_save or ()
        )

    def _at_wanted_depth(self, path: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        parts = [rf"(?:^|.*?\.){pattern}" for pattern in _listed(self.layers_pattern)]
        for part in parts or [r".*?\.[^.]*"]:
            found = re.match(rf"{part}\.(\d+)\.", path)
            if found:
                return int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)
        return False

    def options(self, path: str) -> dict[str, Any]:
        """Return the arguments of the adapter layer at ``path``."""
        options: dict[str, Any] = {
            "r": _lookup(self.rank_pattern, path, self.r),
            "lora_alpha": _lookup(self.alpha_pattern, path, self.lora_alpha),
            "use_rslora": self.use_rslora,
            "lora_dropout": self.lora_dropout,
            "init_lora_weights": self.init_lora_weights,
        }
        return {**options, "lora_bias": True} if self.lora_bias else options

    # -- the file

    def to_dict(self) -> dict[str, Any]:
        """Return the config with the full set of PEFT's keys, ready for JSON."""
        known = dataclasses.asdict(self)
        for name, value in known.items():
            if isinstance(value, (set, frozenset)):
                known[name] = sorted(value)
            elif isinstance(value, (tuple, range)):
                known[name] = list(value)
        return dict(
            sorted({**{name: value for name, (value, _) in ABSENT.items()}, **known}.items())
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoraConfig:
        """Return the config that ``values``, the content of an ``adapter_config.json``, describes.

        Raises
        ------
        ValueError
            For an option of PEFT that is set and not implemented here, with the reason.

        Warns
        -----
        UserWarning
            For keys that neither side knows (a newer file).
        """
        if values.get("peft_type") != "LORA":
            raise ValueError(f"peft_type must be 'LORA', not {values.get('peft_type')!r}")
        kept = {}
        unknown = []
        for name, value in values.items():
            if name in cls.__dataclass_fields__:
                kept[name] = value
            elif name not in ABSENT:
                unknown.append(name)
            elif value and value != ABSENT[name][0] and name not in _LABELS:
                raise ValueError(f"{name}={value!r} is not implemented: it {ABSENT[name][1]}")
        if unknown:
            warnings.warn(f"unknown keys in the adapter config: {sorted(unknown)}", stacklevel=2)
        return cls(**kept)


#: Keys that only say where a file came from.
_LABELS = (
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "qalora_group_size",
    "megatron_core",
)


def _all_are(kind: type, values: Any) -> bool:
    """Whether ``values`` is a collection, not a string or a dict, of ``kind`` alone; a bool is no int."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Collection):
        return False
    return all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _check_expression(expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression: {error}") from error


def _listed(names: Sequence[str] | str | None) -> list[str]:
    return [names] if names and isinstance(names, str) else list(names or ())


def _matches(names: Iterable[str] | str, path: str) -> bool:
    """Whether a regular expression matches all of ``path``, or a list has whole trailing parts of it."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _lookup(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first pattern that matches whole trailing parts of ``path``."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default
