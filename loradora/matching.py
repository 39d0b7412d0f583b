"""Which layers of a model a config names, and what each of them gets.

A list of names matches whole trailing parts of a path: "q" names "layer.0.q", but not "layer.0.seq".  A
string is a regular expression for the whole path.  A module that is excluded, or trains whole, is not a
target.  Modules that train whole are named just by the end of their path: "classifier" also names
"pre_classifier".  These are PEFT's rules.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from loradora.attention import Embedding
from loradora.config import LoraConfig, listed
from loradora.nn import Linear, Module, check_formula, short, warn
from loradora.patterns import (
    ANY_NUMBER,
    LEADING,
    MOST_LETTERS,
    NUMBER,
    TRAILING,
    check_time,
    compiled,
    starts,
)
from minigrad import Tensor


class Match(NamedTuple):
    """What a config names in a model.

    Attributes
    ----------
    targets
        The layers to adapt: id → path.  A layer with several names has the first that the config names.
    whole
        The ids of the modules that train whole.
    options
        The arguments of the adapter layer at each of these paths.
    """

    targets: dict[int, str]
    whole: set[int]
    options: dict[str, dict[str, Any]]


def match(model: Module, config: LoraConfig) -> Match:
    """Return which modules of ``model`` to adapt and which to train whole; change nothing.

    Raises
    ------
    ValueError
        For targets that match nothing, listing the Linear layers there are, for targets that are not
        Linear, and for patterns that could take long in a model of this size.
    TypeError
        For a Linear with a ``forward`` of its own.

    Warns
    -----
    UserWarning
        If ``exclude_modules`` excludes nothing.
    """
    modules, rules = _inside(model), Rules(config)
    rules.check_time(modules)
    whole = _trained_whole(model, rules)
    inside = _parts_of(model, whole)
    targets: dict[int, str] = {}
    for path, layer in _named_linears(model, rules).items():
        if id(layer) not in inside:  # under another name
            targets.setdefault(id(layer), path)
    if config.exclude_modules and not any(map(rules.excluded, modules)):
        excluded = short(config.exclude_modules)
        warn(f"exclude_modules={excluded} excludes nothing")
    return Match(targets, whole, rules.options(dict.fromkeys(targets.values())))


def _named_linears(model: Module, rules: Rules) -> dict[str, Module]:
    modules, config = _inside(model), rules.config
    named = {path: m for path, m in modules.items() if rules.is_target(path)}
    if config.target_modules == "all-linear":
        tables = {m.weight for m in modules.values() if isinstance(m, Embedding)}
        named = {
            path: m for path, m in named.items() if isinstance(m, Linear) and m.weight not in tables
        }
    wrong = [f"{p} ({type(m).__name__})" for p, m in named.items() if not isinstance(m, Linear)]
    if wrong:
        raise ValueError(f"only Linear layers can be adapted, not {', '.join(wrong)}")
    for path, layer in named.items():
        check_formula(cast(Linear, layer), f"{path} ({type(layer).__name__})")
    if not named:
        linears = [path for path, m in modules.items() if isinstance(m, Linear)]
        limits = "exclude_modules", "layers_to_transform", "modules_to_save"
        given = ["target_modules", *(name for name in limits if getattr(config, name) is not None)]
        options = ", ".join(f"{name}={short(getattr(config, name))}" for name in given)
        raise ValueError(
            f"{options} matches no Linear layer; there are: "
            + (", ".join(linears) or f"none inside this {type(model).__name__}")
        )
    return named


def check_names(model: Module, config: LoraConfig, found: Match) -> None:
    """Check that every name in the config's other options names something.

    This is for configs that people write.  PEFT's own files hold some that would not pass; there the
    tensors tell what is meant.

    Raises
    ------
    ValueError
        For a pattern or a module to save that matches nothing, a target all of whose layers
        train whole, or a layer to adapt that has to stay tied to another module.

    Warns
    -----
    UserWarning
        If a module that trains whole does not stay tied to another one.
    """
    rules, paths = Rules(config), list(_inside(model))
    _check_patterns(rules, found)
    _check_modules_to_save(config, paths)
    _check_overlap(model, rules, found)
    _check_tied(model, config, found)


def _check_patterns(rules: Rules, found: Match) -> None:
    targets = list(found.targets.values())
    for option, patterns in rules.patterns.items():
        for pattern, expression in patterns:
            if not any(map(expression.fullmatch, targets)):
                raise ValueError(
                    f"{option} key {short(pattern)} matches none of {', '.join(targets)}"
                )


def _check_modules_to_save(config: LoraConfig, paths: list[str]) -> None:
    names = [name for name in config.modules_to_save or () if name not in config.heads()]
    ends = _Ends(names)
    hits = {name for path in paths for name in ends.of(path)}
    for name in names:
        if name not in hits:
            raise ValueError(
                f"modules_to_save={short(name)} matches no module; there are: {', '.join(paths)}"
            )


def _check_overlap(model: Module, rules: Rules, found: Match) -> None:
    targets = rules.config.target_modules
    inside = _parts_of(model, found.whole)
    linears = {p: m for p, m in _inside(model).items() if isinstance(m, Linear)}
    named = [p for p in linears if rules.named_as_target(p) and not rules.excluded(p)]
    hits: dict[str, list[str]] = {} if isinstance(targets, str) else {n: [] for n in targets or ()}
    for path in named:
        for i in starts(path):
            if path[i:] in hits:
                hits[path[i:]].append(path)
    both = [
        path
        for paths in hits.values()
        if all(id(linears[p]) in inside for p in paths)
        for path in paths
    ]
    if both or not found.targets:
        by_name = _parts_of(model, _named_whole(model, rules))
        both = both or named
        asked = [path for path in both if id(linears[path]) in by_name]
        if asked:
            raise ValueError(
                f"{', '.join(asked)}: named by both target_modules and modules_to_save"
            )
        raise ValueError(
            f"{', '.join(both)}: a target, and tied to a module of modules_to_save (ensure_weight_tying)"
        )


def _check_tied(model: Module, config: LoraConfig, found: Match) -> None:
    """Refuse to break a tie that has to be kept; warn about one that is broken."""
    if config.ensure_weight_tying:
        _check_tied_targets(model, found)
        return
    tied = _tied_to(model, found.whole)
    if tied:
        warn(
            f"{', '.join(tied)} shares a tensor with a module that trains whole, and keeps the values of "
            "the base: ensure_weight_tying=True has both train as one"
        )


def _check_tied_targets(model: Module, found: Match) -> None:
    """Raise ValueError if a layer to adapt shares its weight with a module that would not change."""
    modules = dict(model.named_modules())
    holders: dict[Tensor, dict[int, str]] = {}
    for path, module in modules.items():
        for _, part in module.named_parts():
            if isinstance(part, Tensor):
                holders.setdefault(part, {})[id(module)] = path or "the model"
    for key, path in found.targets.items():
        weight = cast(Linear, modules[path]).weight
        others = [other for i, other in holders[weight].items() if i != key]
        if others:
            raise ValueError(
                f"ensure_weight_tying: {path} shares its weight with {', '.join(others)}, and an adapter "
                f"would act on {path} alone: leave it out of target_modules, or set "
                "ensure_weight_tying=False"
            )


def _named_whole(model: Module, rules: Rules) -> set[int]:
    return {id(m) for path, m in _inside(model).items() if rules.saved_whole(path)}


def _trained_whole(model: Module, rules: Rules) -> set[int]:
    """Return the ids of the modules that train whole: those named and, if asked, those tied to them."""
    whole = _named_whole(model, rules)
    tied = _tied_to(model, whole) if rules.config.ensure_weight_tying else {}
    for path, module in tied.items():
        if any(module.children()):
            raise ValueError(
                f"ensure_weight_tying: {path} shares a tensor with a module that trains whole, and holds "
                "other modules, which would also train: put the tensor into a Module of its own"
            )
    return whole | {id(module) for module in tied.values()}


def _tied_to(model: Module, whole: Container[int]) -> dict[str, Module]:
    """Return the other modules that share a tensor with those that train whole."""
    inside = _parts_of(model, whole)
    modules = {path or "the model": m for path, m in model.named_modules()}

    def own(module: Module) -> set[int]:
        return {id(part) for _, part in module.named_parts() if isinstance(part, Tensor)}

    tensors = {tensor for m in modules.values() if id(m) in inside for tensor in own(m)}
    return {path: m for path, m in modules.items() if id(m) not in inside and own(m) & tensors}


def _inside(model: Module) -> dict[str, Module]:
    return {path: module for path, module in model.named_modules() if path}


def _parts_of(model: Module, ids: Container[int]) -> set[int]:
    """Return the ids of the modules in ``model`` with these ids, and of all modules inside them."""
    roots = [module for _, module in model.named_modules() if id(module) in ids]
    return {id(part) for root in roots for _, part in root.named_modules()}


# ----------------------------------------------------------------------------- what a path gets


class Rules:
    """What a config says about paths, prepared for many of them.

    Names are kept in sets, so a look-up takes the same time for any number of them.  Expressions are
    compiled once.

    Attributes
    ----------
    config
        The config.
    patterns
        Those of ``rank_pattern`` and ``alpha_pattern``, in order, with their expressions.

    Raises
    ------
    PatternError
        For an expression that is refused.
    """

    def __init__(self, config: LoraConfig) -> None:
        self.config = config
        self._targets = _Names("target_modules", config.target_modules)
        self._excluded = _Names("exclude_modules", config.exclude_modules)
        self._whole = _Ends(config.modules_to_save or ())
        wanted = config.layers_to_transform
        self._numbers = {wanted} if isinstance(wanted, int) else set(wanted or ())
        parts = listed(config.layers_pattern)
        self._numbered = compiled("layers_pattern", parts, LEADING, NUMBER)
        self.patterns = {
            option: list(zip(keys, compiled(option, keys, TRAILING)))
            for option in ("rank_pattern", "alpha_pattern")
            for keys in [getattr(config, option)]
        }

    def check_time(self, paths: Collection[str]) -> None:
        """Raise PatternError if it could take long to find out which of these paths are targets."""
        check_time("target_modules", self._targets.expressions, paths)
        check_time("exclude_modules", self._excluded.expressions, paths)
        check_time("layers_pattern", self._numbered if self._numbers else [], paths, LEADING)

    def is_target(self, path: str) -> bool:
        """Whether the linear layer at ``path`` is to be adapted.

        Raises
        ------
        ValueError
            If ``target_modules`` is not set.
        """
        named = self.named_as_target(path)
        return named and not self.excluded(path) and not self.trains_whole(path)

    def named_as_target(self, path: str) -> bool:
        """Whether ``target_modules`` names ``path``; ValueError if it is not set."""
        targets = self.config.target_modules
        if targets is None:
            raise ValueError("target_modules is not set: name the Linear layers, or 'all-linear'")
        if targets == "all-linear" or path in self._targets.names:
            return True
        return self._targets.match(path) and self._at_wanted_depth(path)

    def _at_wanted_depth(self, path: str) -> bool:
        """Whether the number of the layer in ``path`` is one of ``layers_to_transform``."""
        if not self._numbers:
            return True
        matches = (e.match(path) for e in self._numbered or [ANY_NUMBER])
        found = next(filter(None, matches), None)
        return found is not None and int(found["number"]) in self._numbers

    def excluded(self, path: str) -> bool:
        """Whether ``exclude_modules`` names ``path``."""
        return self._excluded.match(path)

    def saved_whole(self, path: str) -> bool:
        """Whether ``path`` is one of ``modules_to_save``."""
        return any(True for _ in self._whole.of(path))

    def trains_whole(self, path: str) -> bool:
        """Whether ``path`` is, or lies inside, one of ``modules_to_save``."""
        parts = path.split(".")
        return any(self.saved_whole(".".join(parts[:i])) for i in range(1, len(parts) + 1))

    def options(self, ranks: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
        """Return the arguments of the adapter layer at each path.

        Options that only some classes have are included only if they are set.

        Parameters
        ----------
        ranks
            The rank by path; None stands for the rank that the config gives.

        Raises
        ------
        PatternError
            If it could take long to try ``rank_pattern`` and ``alpha_pattern`` on all paths.
        """
        for option, patterns in self.patterns.items():
            if option == "alpha_pattern" or None in ranks.values():
                check_time(option, [expression for _, expression in patterns], ranks, TRAILING)
        config = self.config
        always = {
            "use_rslora": config.use_rslora,
            "lora_dropout": config.lora_dropout,
            "init_lora_weights": config.init_lora_weights,
            **config.own_options(),
            **({"lora_bias": True} if config.lora_bias else {}),
        }
        return {
            path: {
                "r": r or self._first("rank_pattern", path, config.r),
                "lora_alpha": self._first("alpha_pattern", path, config.lora_alpha),
                **always,
            }
            for path, r in ranks.items()
        }

    def _first(self, option: str, path: str, default: Any) -> Any:
        """Return the value of the first pattern that matches whole trailing parts of ``path``."""
        for pattern, expression in self.patterns[option]:
            if expression.fullmatch(path):
                return getattr(self.config, option)[pattern]
        return default


class _Names:
    """Names that match whole trailing parts of a path, an expression for all of it, or nothing."""

    def __init__(self, option: str, given: Iterable[str] | str | None) -> None:
        self.expressions = compiled(option, [given] if isinstance(given, str) else [])
        self.names = frozenset(() if given is None or isinstance(given, str) else given)

    def match(self, path: str) -> bool:
        if self.expressions:
            return self.expressions[0].fullmatch(path) is not None
        return any(path[i:] in self.names for i in starts(path))


class _Ends:
    """Names that a path may end in, whether or not a part begins there."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.lengths = {len(name) for name in self.names}

    def of(self, path: str) -> Iterator[str]:
        """Yield those that ``path`` ends in."""
        for length in self.lengths.intersection(range(1, len(path) + 1)):
            if path[-length:] in self.names:
                yield path[-length:]


def _depth(paths: Iterable[str]) -> int:
    """Return the largest number of parts that one of the paths has."""
    return max((path.count(".") + 1 for path in paths), default=0)


def is_target(config: LoraConfig, path: str) -> bool:
    """Whether the linear layer at ``path`` is to be adapted; :class:`Rules` is for many paths."""
    return Rules(config).is_target(path)


def layer_options(config: LoraConfig, path: str) -> dict[str, Any]:
    """Return the arguments of the adapter layer at ``path``; :class:`Rules` is for many paths."""
    return Rules(config).options({path: None})[path]


# ----------------------------------------------------------------------------- what a file's tensors say


def match_tensors(
    model: Module,
    config: LoraConfig,
    shapes: Mapping[str, tuple[int, ...]],
    factors: tuple[str, str],
    size: int,
) -> Match:
    """Return which modules of ``model`` the tensors in a file are for, and what each layer gets.

    A tensor under the path of a Linear layer, other than its own weight and bias, shows that the layer is
    adapted.  The shapes of A and B show the rank.  So the only names and patterns needed from the config
    are those of ``modules_to_save`` and ``alpha_pattern``.

    Parameters
    ----------
    model
        The model to adapt.
    config
        The config in the same file.
    shapes
        The shape of each tensor by name.
    factors
        How A and B of a layer are named, below its path.
    size
        The length of the file in bytes.

    Raises
    ------
    ValueError
        If no layer is adapted, or if A and B would have more numbers than there are bytes in the file
        and numbers in the model, taken together.
    """
    modules, rules = _inside(model), Rules(config)
    whole = _trained_whole(model, rules)
    inside = _parts_of(model, whole)
    linears = {p: m for p, m in modules.items() if isinstance(m, Linear) and id(m) not in inside}
    targets: dict[int, str] = {}
    ranks: dict[str, int | None] = {}
    numbers, most = 0, size + sum(p.size for p in model.parameters())
    for path in dict.fromkeys(_layers_above(shapes, linears)):
        A, B = (shapes.get(f"{path}.{name}", ()) for name in factors)
        r = _rank(config, linears[path], A, B) or rules.options({path: None})[path]["r"]
        numbers += r * sum(linears[path].weight.shape)
        if numbers > most:
            raise ValueError(f"a file of {size} bytes cannot hold A and B of r={r} in {path}")
        ranks[targets.setdefault(id(linears[path]), path)] = r
    if not targets:
        raise ValueError(f"none of its tensors is for one of the layers {', '.join(linears)}")
    return Match(targets, whole, rules.options(ranks))


def _layers_above(names: Iterable[str], layers: Mapping[str, Linear]) -> Iterator[str]:
    """Yield the path of the layer above each tensor that has one, and is not its weight or bias."""
    depth = _depth(layers)
    for name in names:
        parts = name.split(".", depth)
        for i in range(1, len(parts)):
            path, rest = ".".join(parts[:i]), ".".join(parts[i:])
            if path in layers and rest not in ("weight", "bias"):
                yield path


def _rank(config: LoraConfig, layer: Linear, A: tuple[int, ...], B: tuple[int, ...]) -> int | None:
    """Return the rank that the shapes of A and B show, or None if the config does not name it."""
    out_features, in_features = layer.weight.shape
    told = [
        *(A[:1] if A[1:] == (in_features,) else ()),
        *(B[1:2] if B[:1] == (out_features,) else ()),
    ]
    r = min(told, default=None)
    return r if r in (config.r, *config.rank_pattern.values()) else None


def named_as(found: Match, model: Module, config: LoraConfig) -> LoraConfig:
    """Return a config that names what was found in ``model``: ``config`` itself if it does."""
    try:
        if match(model, config) == found:
            return config
    except (ValueError, TypeError):
        pass
    ranks = {path: options["r"] for path, options in found.options.items()}
    names: dict[str, Any] = dict.fromkeys(
        ("exclude_modules", "layers_to_transform", "layers_pattern")
    )
    return dataclasses.replace(config, **names | exactly(ranks))


def exactly(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the options of a config that adapts only the layers at these paths, with these ranks."""
    r = max(ranks.values())
    return {
        "r": r,
        "target_modules": exact_names(ranks),
        "rank_pattern": {f"^{re.escape(path)}": n for path, n in ranks.items() if n != r},
    }


def exact_names(paths: Collection[str]) -> str | list[str]:
    """Return the ``target_modules`` that name only these paths."""
    pattern = "|".join(map(re.escape, paths))
    return pattern if len(pattern) <= MOST_LETTERS else list(paths)
