"""What to adapt and how: PEFT's ``LoraConfig`` for linear layers.

Names, defaults and meaning are those of Hugging Face PEFT 0.21, so that each side can read what the other
wrote.  Options that are not implemented here are refused by name; none is ignored.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from loradora.init import SCHEMES, Scheme
from loradora.nn import check_finite, check_positive, short, warn
from loradora.patterns import LEADING, NUMBER, TRAILING, PatternError, compiled

TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")

#: Tasks for which PEFT trains a head whole, if the model has one by these names.
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

#: The PEFT whose format this is.
PEFT_VERSION = "0.21.2"

#: Options for the norm of a DoRA, which PEFT does not have.
OWN = ("detach_norm", "norm_axis")


def absent(default: Any, reason: str) -> Any:
    """Return the field of an option of PEFT that has to stay at its default here, for this reason."""
    metadata = {"default": default, "absent": reason}
    return field(default_factory=lambda: copy.copy(default), metadata=metadata)


@dataclass(kw_only=True, eq=False)
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
        path; or "all-linear", in upper or lower case.  That leaves out an output layer whose weight is
        the table of an Embedding.  (PEFT leaves out the output layer of a model of transformers, tied or
        not, and adapts a tied one of any other model.  So a file names the layers one by one.)  An
        expression whose search could take long is refused, here and in every option that takes one:
        see :mod:`loradora.patterns`.
    exclude_modules
        Layers not to adapt, in the same forms.
    lora_dropout
        Dropout rate on the input of the correction, in [0, 1).
    bias
        Which biases train as well: "none", "all", or "lora_only", those of adapted layers.
    use_rslora
        Scale by α/√r.
    use_dora
        DoRA in place of LoRA.
    detach_norm, norm_axis
        The options of a DoRA's norm, as for :class:`~loradora.adapters.DoRALinear`.  PEFT does not have
        these two; they are in a file only if they are set.
    init_lora_weights
        How A and B start: see :mod:`loradora.init`.
    rank_pattern
        Path or regular expression → r for those layers.
    alpha_pattern
        Path or regular expression → α for those layers.
    layers_to_transform
        Adapt only layers with these numbers in their path.  Layers named in full are always adapted.
    layers_pattern
        The part of the path before such a number; by default any number but in the first part counts.
    modules_to_save
        Modules that train whole and are saved with the adapter: all those whose path ends in one of
        these names.  So "classifier" also names "pre_classifier", as in PEFT.  What is constant in them
        stays constant, unless the whole module was frozen.
    lora_bias
        B gets a bias as well (LoRA only).
    ensure_weight_tying
        A module that shares a tensor with one of ``modules_to_save`` trains whole with it and keeps
        sharing it, for example an output layer whose weight is the table of an Embedding.  Without this
        option it keeps the base's values, as in PEFT, and a warning says so.  (A layer under several
        names is always adapted under all of them.)
    task_type
        One of PEFT's task names; SEQ_CLS and TOKEN_CLS also train modules named classifier or score,
        and QUESTION_ANS those named qa_outputs.
    inference_mode
        The adapter is frozen until ``set_adapter`` activates it for training.
    auto_mapping, base_model_name_or_path, peft_type, peft_version, revision
        Notes of PEFT in the file, kept for it.  The mapping is a dict of plain values, the others are
        strings.

    PEFT's other options are known as well.  Unless they have their default, they are refused with the
    reason.

    Raises
    ------
    TypeError, ValueError
        Naming the option, what it was and what it may be.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Collection[str] | str | None = None
    exclude_modules: Collection[str] | str | None = None
    lora_dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    detach_norm: bool = True
    norm_axis: int = 1
    init_lora_weights: Scheme = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    layers_to_transform: Collection[int] | int | None = None
    layers_pattern: Collection[str] | str | None = None
    modules_to_save: Collection[str] | None = None
    lora_bias: bool = False
    ensure_weight_tying: bool = False
    task_type: str | None = None
    inference_mode: bool = False
    auto_mapping: dict[str, Any] | None = None
    base_model_name_or_path: str | None = None
    peft_type: str = "LORA"
    peft_version: str | None = None
    revision: str | None = None

    alora_invocation_tokens: Any = absent(None, "it needs a tokenised prompt")
    arrow_config: Any = absent(None, "it routes between adapters")
    corda_config: Any = absent(None, "it needs activations of a calibration set")
    eva_config: Any = absent(None, "it needs activations of a calibration set")
    fan_in_fan_out: Any = absent(False, "weights are (out, in) here")
    kasa_config: Any = absent(None, "it is another adapter family")
    layer_replication: Any = absent(None, "it changes the architecture")
    loftq_config: Any = absent({}, "it needs quantised weights")
    lora_ga_config: Any = absent(None, "it needs gradients of a calibration set")
    megatron_config: Any = absent(None, "it needs Megatron")
    megatron_core: Any = absent("megatron.core", "it needs Megatron")
    monteclora_config: Any = absent(None, "it is another adapter family")
    qalora_group_size: Any = absent(16, "it needs quantised weights")
    target_parameters: Any = absent(None, "it adapts bare parameters, not linear layers")
    trainable_token_indices: Any = absent(None, "it adapts rows of an embedding, not linear layers")
    use_bdlora: Any = absent(None, "it is another adapter family")
    use_qalora: Any = absent(False, "it needs quantised weights")
    velora_config: Any = absent(None, "it is another adapter family")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, ReadOnly):  # of a frozen config
                setattr(self, name, _json(value))
        self._check_absent()
        self._check_notes()
        self._set_names()
        self._check_names()
        self._check_expressions()
        self._check_numbers()
        self._check("bias", ("none", "all", "lora_only"))
        self._check("init_lora_weights", SCHEMES)
        self._check("task_type", (None, *TASKS))
        self._check("peft_type", ("LORA",))
        self._check("norm_axis", (0, 1))
        flags = ("use_rslora", "use_dora", "detach_norm", "lora_bias", "inference_mode")
        for flag in (*flags, "ensure_weight_tying"):
            self._check(flag, (False, True))
        self._check_combinations()
        if self.heads():
            self.modules_to_save = [*dict.fromkeys([*(self.modules_to_save or ()), *self.heads()])]

    def heads(self) -> tuple[str, ...]:
        """Return the names of modules that train whole because of the task, if the model has them."""
        return HEADS.get(self.task_type or "", ())

    def own_options(self) -> dict[str, Any]:
        """Return the options that PEFT does not have, if they are set."""
        values = {name: getattr(self, name) for name in OWN}
        return {name: v for name, v in values.items() if v != getattr(LoraConfig, name)}

    def _check_combinations(self) -> None:
        """Raise if options are set that exclude each other."""
        for name, value in self.own_options().items():
            if not self.use_dora:
                raise ValueError(f"{name}={short(value)} goes with use_dora=True")
        if self.lora_bias and self.use_dora:
            raise ValueError("lora_bias does not go with use_dora: m scales a weight, not a bias")
        if self.lora_bias and not isinstance(self.init_lora_weights, bool):
            raise ValueError(
                f"lora_bias goes with init_lora_weights=True or False, not {self.init_lora_weights!r}"
            )
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError(f"orthogonal initialisation needs an even r, not {self.r}")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "layers_to_transform goes with a list of target_modules, not a pattern"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern goes with layers_to_transform")

    def _check_absent(self) -> None:
        """Raise if an option is set that is not implemented; values that mean no, like None, pass."""
        for option in dataclasses.fields(self):
            name, value, notes = option.name, getattr(self, option.name), option.metadata
            if "absent" in notes and value and value != notes["default"]:
                raise ValueError(f"{name}={short(value)} is not implemented: {notes['absent']}")

    def _check_notes(self) -> None:
        """Raise unless the values kept for PEFT are such as PEFT writes."""
        for name in ("base_model_name_or_path", "peft_version", "revision"):
            value = getattr(self, name)
            if value is not None and not _is_text(value):
                raise TypeError(f"{name} must be a string, not {short(value)}")
        mapping = self.auto_mapping
        if mapping is not None and not (isinstance(mapping, Mapping) and _is_plain(mapping)):
            raise TypeError(f"auto_mapping must be a dict of plain values, not {short(mapping)}")

    def _set_names(self) -> None:
        """Put names that may be in upper case into lower case, and fill in the version."""
        targets: Any = self.target_modules
        if isinstance(targets, str) and targets.lower() == "all-linear":
            self.target_modules = "all-linear"
        scheme: Any = self.init_lora_weights
        if isinstance(scheme, str) and scheme.lower() in SCHEMES:
            small: Any = scheme.lower()
            self.init_lora_weights = small
        self.peft_version = self.peft_version or PEFT_VERSION

    def _check_names(self) -> None:
        """Raise unless names and patterns are strings, and layer numbers integers."""
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            value = getattr(self, name)
            one = value is None or (_is_text(value) and name != "modules_to_save")
            if not one and not _all_are(_is_text, value):
                raise TypeError(f"{name} must be a list of names, not {short(value)}")
        if "" in (self.modules_to_save or ()):  # every path ends in it
            raise ValueError("modules_to_save holds an empty name, which is the end of every path")
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not _all_are(_is_text, list(value)):
                raise TypeError(f"{name} must be a dict from names to numbers, not {short(value)}")
        wanted = self.layers_to_transform
        if not (wanted is None or _is_integer(wanted) or _all_are(_is_integer, wanted)):
            raise TypeError(f"layers_to_transform must be a list of integers, not {short(wanted)}")

    def _check_expressions(self) -> None:
        """Raise PatternError unless every pattern can be compiled and run."""
        for name in ("target_modules", "exclude_modules"):
            pattern = getattr(self, name)
            compiled(name, [pattern] if isinstance(pattern, str) else [])
        compiled("layers_pattern", listed(self.layers_pattern), LEADING, NUMBER)
        for name in ("rank_pattern", "alpha_pattern"):
            compiled(name, getattr(self, name), TRAILING)

    def _check_numbers(self) -> None:
        """Raise unless ranks are positive integers and the others finite; make them Python's own."""
        ranks = {f"rank_pattern[{short(k)}]": v for k, v in self.rank_pattern.items()}
        check_positive(r=self.r, **ranks)
        alphas = {f"alpha_pattern[{short(k)}]": v for k, v in self.alpha_pattern.items()}
        numbers = {"lora_alpha": self.lora_alpha, "lora_dropout": self.lora_dropout, **alphas}
        check_finite(**numbers)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must lie in [0, 1), not {short(self.lora_dropout)}")
        self.r = int(self.r)
        self.lora_alpha, self.lora_dropout = _plain(self.lora_alpha), float(self.lora_dropout)
        self.rank_pattern = {k: int(v) for k, v in self.rank_pattern.items()}
        self.alpha_pattern = {k: _plain(v) for k, v in self.alpha_pattern.items()}
        wanted: Any = self.layers_to_transform
        if wanted is not None:
            one = isinstance(wanted, Integral)
            self.layers_to_transform = int(wanted) if one else [int(i) for i in wanted]

    def _check(self, name: str, allowed: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        matching = [a for a in allowed if isinstance(value, type(a)) and value == a]
        if not matching or (isinstance(value, int) and type(value) is not type(matching[0])):
            raise ValueError(f"{name} must be one of {allowed}, not {short(value)}")
        setattr(self, name, matching[0])  # PEFT's TaskType is a str, but JSON would not know it

    # -- the config of an adapter, which says how it was made

    def frozen(self) -> LoraConfig:
        """Return a copy that refuses to be edited.  A copy of that copy can be edited again."""
        new = copy.copy(self)
        vars(new).update({name: _fixed(value) for name, value in vars(new).items()}, _frozen=True)
        return new

    def __setattr__(self, name: str, value: Any) -> None:
        self._check_not_frozen(name)
        if name not in self.__dataclass_fields__ and type(self) is LoraConfig:
            raise AttributeError(f"LoraConfig has no option {name!r}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._check_not_frozen(name)
        super().__delattr__(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoraConfig) and self.to_dict() == other.to_dict()

    def _check_not_frozen(self, name: str) -> None:
        if "_frozen" in vars(self):
            raise AttributeError(
                f"{name} of an adapter that is made cannot change: make another one with "
                f"add_adapter(name, dataclasses.replace(config, {name}=value))"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds."""
        state = dict(vars(self))
        frozen = state.pop("_frozen", False)
        return {name: _json(value) for name, value in state.items()} if frozen else state

    # -- the file

    def to_dict(self) -> dict[str, Any]:
        """Return the config with the full set of PEFT's keys, and its own if set, ready for JSON."""
        own = self.own_options()
        names = sorted(
            f.name for f in dataclasses.fields(self) if f.name not in OWN or f.name in own
        )
        return {name: _json(getattr(self, name)) for name in names}

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
        if not isinstance(values, Mapping) or not _all_are(_is_text, list(values)):
            raise TypeError(f"a config is a dict from options to values, not {short(values)}")
        if values.get("peft_type") != "LORA":
            raise ValueError(f"peft_type must be 'LORA', not {short(values.get('peft_type'))}")
        known = cls.__dataclass_fields__
        unknown = sorted(set(values) - set(known))
        if unknown:
            warn(f"unknown keys in the adapter config: {short(unknown)}")
        return cls(**{name: value for name, value in values.items() if name in known})

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``adapter_config.json`` into a directory, which is made if it is not there.

        Raises
        ------
        TypeError, ValueError
            For a config that is no longer valid, because an option was set afterwards.
        CheckpointError
            If the file cannot be written; an old one stays as it was.
        """
        from loradora import checkpoint  # which imports this module

        checkpoint.save_config(Path(directory), dataclasses.replace(self))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> LoraConfig:
        """Return the config in the ``adapter_config.json`` of a directory.

        Raises
        ------
        CheckpointError
            If it is missing or damaged, or sets what is not implemented here, with the reason.

        Warns
        -----
        UserWarning
            For keys that neither side knows (a newer file).
        """
        from loradora import checkpoint  # which imports this module

        return checkpoint.load_config(Path(directory))


#: Options of PEFT that matter only while a LoRA is made.
ONLY_AT_THE_START = (
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "loftq_config",
    "lora_ga_config",
)


def as_trained(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an ``adapter_config.json`` without options that only matter before training.

    EVA, LoRA-GA and MiCA choose the first A and B, and act on the weight of the base, so the file holds
    a plain LoRA.  Whether weights were stored as (in, out) does not matter to A, B and m.

    Raises
    ------
    ValueError
        For a start that replaces the weight of the base by another, which is not in the file.
    """
    scheme = values.get("init_lora_weights", True)
    start = scheme.lower() if isinstance(scheme, str) else ""
    if start in ("corda", "loftq") or start.startswith("pissa_niter_"):
        raise ValueError(
            f"{short(scheme)} adapters act on another weight than the base's, and it is not in the file; "
            "for PiSSA and CorDA, save them again in PEFT with "
            "path_initial_model_for_weight_conversion"
        )
    trained = {name: value for name, value in values.items() if name not in ONLY_AT_THE_START}
    return trained | {"init_lora_weights": True if start in ("eva", "lora_ga", "mica") else scheme}


#: Options that only say which layers are adapted, and at which rank.
NAMING = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern")


def of_trained(values: Mapping[str, Any]) -> LoraConfig:
    """Return the config in the file of a trained adapter.

    An option with a refused pattern is left out, because the tensors also name the layers.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_trained` and :meth:`LoraConfig.from_dict`.
    """
    trained = as_trained(values)
    for _ in NAMING:
        try:
            return LoraConfig.from_dict(trained)
        except PatternError as error:
            if error.option not in NAMING:
                raise
            refused = trained.pop(error.option)
            # ranks are known still, but not which layers have them
            if error.option == "rank_pattern":
                trained[error.option] = {f"a layer of rank {r}": r for r in refused.values()}
    return LoraConfig.from_dict(trained)


def _plain(number: Any) -> float:
    """Return a number as Python's own int or float."""
    return int(number) if isinstance(number, Integral) else float(number)


def _json(value: Any) -> Any:
    """Return a copy of ``value`` made of dicts and lists, a set in order."""
    if isinstance(value, (str, int, float)) or not isinstance(value, Collection):
        return value
    if isinstance(value, Mapping):
        return {key: _json(v) for key, v in value.items()}
    return [_json(v) for v in (sorted(value) if isinstance(value, Set) else value)]


class ReadOnly(dict[str, Any]):
    """A dict that refuses to be edited; a copy of it is a plain one."""

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise TypeError("what belongs to an adapter cannot be edited here: make another adapter")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def _fixed(value: Any) -> Any:
    """Return a copy of ``value`` that cannot change at any depth."""
    if isinstance(value, Mapping):
        return ReadOnly({key: _fixed(v) for key, v in value.items()})
    if isinstance(value, (set, frozenset)):
        return frozenset(value)
    return tuple(_fixed(v) for v in value) if isinstance(value, (list, tuple)) else value


def _is_text(value: Any) -> bool:
    """Whether ``value`` is a string that any file can hold, without half a surrogate pair."""
    return isinstance(value, str) and (
        value.isascii() or value.encode(errors="replace").decode() == value
    )


def _is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer, not a bool, and no larger than any reader of JSON takes."""
    whole_number = isinstance(value, Integral) and not isinstance(value, bool)
    return whole_number and abs(int(value)) <= sys.maxsize


def _is_plain(value: Any, levels: int = 4) -> bool:
    """Whether ``value`` is made of JSON's types, and at most this many levels deep."""
    if value is None or isinstance(value, (bool, float)) or _is_text(value) or _is_integer(value):
        return True
    if isinstance(value, Mapping):
        return _all_are(_is_text, list(value)) and _is_plain(list(value.values()), levels)
    many = isinstance(value, (list, tuple)) and levels > 0
    return many and all(_is_plain(v, levels - 1) for v in value)


def _all_are(is_one: Callable[[Any], bool], values: Any) -> bool:
    """Whether ``values`` is a collection, not a string or a dict, whose items all pass ``is_one``."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Collection):
        return False
    return all(map(is_one, values))


def listed(names: Collection[str] | str | None) -> list[str]:
    """Return the names as a list; a single name may be given without one."""
    return [names] if names and isinstance(names, str) else list(names or ())
