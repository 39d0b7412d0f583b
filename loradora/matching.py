"""Which layers of a model a config names, and what each of them gets.

A list of names matches whole trailing parts of a path: "q" is "layer.0.q", but not "layer.0.seq".
A string is a regular expression for the whole path.  What is excluded, or trains whole, is no target.
What trains whole is named by the end of its path alone: "classifier" is also "pre_classifier".  These
are PEFT's rules.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from loradora.config import LoraConfig, leading, listed, trailing
from loradora.nn import Linear, Module, check_formula


class Match(NamedTuple):
    """What a config names in a model.

    Attributes
    ----------
    targets
        The layers to adapt: id → path.  A layer under several names has the first that is named.
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
        For targets that match nothing, listing the Linear layers there are, or something else than
        a Linear.
    TypeError
        For a Linear with a ``forward`` of its own.

    Warns
    -----
    UserWarning
        If ``exclude_modules`` excludes nothing.
    """
    modules = _inside(model)
    whole = {id(m) for path, m in modules.items() if _saved_whole(config, path)}
    inside = _parts_of(model, whole)
    targets: dict[int, str] = {}
    for path, layer in _named_linears(model, config).items():
        if id(layer) not in inside:  # under another name
            targets.setdefault(id(layer), path)
    if config.exclude_modules and not any(_excluded(config, path) for path in modules):
        warnings.warn(f"exclude_modules={config.exclude_modules!r} excludes nothing", stacklevel=3)
    options = {path: layer_options(config, path) for path in targets.values()}
    return Match(targets, whole, options)


def _named_linears(model: Module, config: LoraConfig) -> dict[str, Module]:
    modules = _inside(model)
    named = {path: m for path, m in modules.items() if is_target(config, path)}
    if config.target_modules == "all-linear":
        named = {path: m for path, m in named.items() if isinstance(m, Linear)}
    wrong = [f"{p} ({type(m).__name__})" for p, m in named.items() if not isinstance(m, Linear)]
    if wrong:
        raise ValueError(f"only Linear layers can be adapted, not {', '.join(wrong)}")
    for path, layer in named.items():
        check_formula(cast(Linear, layer), f"{path} ({type(layer).__name__})")
    if not named:
        linears = [path for path, m in modules.items() if isinstance(m, Linear)]
        limits = "exclude_modules", "layers_to_transform", "modules_to_save"
        given = ["target_modules", *(name for name in limits if getattr(config, name) is not None)]
        options = ", ".join(f"{name}={getattr(config, name)!r}" for name in given)
        raise ValueError(
            f"{options} matches no Linear layer; there are: "
            + (", ".join(linears) or f"none inside this {type(model).__name__}")
        )
    return named


def check_names(model: Module, config: LoraConfig, found: Match) -> None:
    """Check that every name in the config's other options is of use.

    This is for configs that someone writes.  PEFT writes some into its files that would not pass; there
    the tensors tell what is meant.

    Raises
    ------
    ValueError
        For a pattern or a module to save that matches nothing, or a target all of whose layers
        train whole.
    """
    _check_patterns(config, found)
    _check_modules_to_save(model, config)
    _check_overlap(model, config, found)


def _check_patterns(config: LoraConfig, found: Match) -> None:
    targets = list(found.targets.values())
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, option):
            if not any(re.match(trailing(pattern), path) for path in targets):
                raise ValueError(f"{option} key {pattern!r} matches none of {', '.join(targets)}")


def _check_modules_to_save(model: Module, config: LoraConfig) -> None:
    paths = list(_inside(model))
    for name in config.modules_to_save or ():
        implied = name in config.heads()  # by the task; the model need not have it
        if not implied and not any(path.endswith(name) for path in paths):
            raise ValueError(
                f"modules_to_save={name!r} matches no module; there are: {', '.join(paths)}"
            )


def _check_overlap(model: Module, config: LoraConfig, found: Match) -> None:
    targets = config.target_modules
    names = [] if targets is None or isinstance(targets, str) else targets
    inside = _parts_of(model, found.whole)
    linears = {p: m for p, m in _inside(model).items() if isinstance(m, Linear)}
    named = [p for p in linears if _named_as_target(config, p) and not _excluded(config, p)]
    hits = [[path for path in named if _matches([name], path)] for name in names]
    both = [
        path for paths in hits if all(id(linears[p]) in inside for p in paths) for path in paths
    ]
    if both or not found.targets:
        both = both or named
        raise ValueError(f"{', '.join(both)}: named by both target_modules and modules_to_save")


def _inside(model: Module) -> dict[str, Module]:
    return {path: module for path, module in model.named_modules() if path}


def _parts_of(model: Module, ids: Container[int]) -> set[int]:
    """Return the ids of the modules in ``model`` that have these ids, or lie inside one that has."""
    roots = [module for _, module in model.named_modules() if id(module) in ids]
    return {id(part) for root in roots for _, part in root.named_modules()}


# ----------------------------------------------------------------------------- what a path gets


def is_target(config: LoraConfig, path: str) -> bool:
    """Whether the linear layer at ``path`` is to be adapted.

    Raises
    ------
    ValueError
        If ``target_modules`` is not set.
    """
    named = _named_as_target(config, path)
    return named and not _excluded(config, path) and not trains_whole(config, path)


def trains_whole(config: LoraConfig, path: str) -> bool:
    """Whether ``path`` is, or lies inside, one of ``modules_to_save``."""
    parts = path.split(".")
    return any(_saved_whole(config, ".".join(parts[:i])) for i in range(1, len(parts) + 1))


def _saved_whole(config: LoraConfig, path: str) -> bool:
    return path.endswith(tuple(config.modules_to_save or ()))


def layer_options(config: LoraConfig, path: str, r: int | None = None) -> dict[str, Any]:
    """Return the arguments of the adapter layer at ``path``, beyond those of all layers only what is set.

    So a class need not know an option that it does not have.  The rank is ``r``, if that is known.
    """
    options: dict[str, Any] = {
        "r": _lookup(config.rank_pattern, path, config.r) if r is None else r,
        "lora_alpha": _lookup(config.alpha_pattern, path, config.lora_alpha),
        "use_rslora": config.use_rslora,
        "lora_dropout": config.lora_dropout,
        "init_lora_weights": config.init_lora_weights,
        **config.own_options(),
    }
    return {**options, "lora_bias": True} if config.lora_bias else options


def _named_as_target(config: LoraConfig, path: str) -> bool:
    targets = config.target_modules
    if targets is None:
        raise ValueError("target_modules is not set: name the Linear layers, or 'all-linear'")
    if targets == "all-linear":
        return True
    in_full = not isinstance(targets, str) and path in targets
    return in_full or (_matches(targets, path) and _at_wanted_depth(config, path))


def _at_wanted_depth(config: LoraConfig, path: str) -> bool:
    """Whether ``path`` has one of ``layers_to_transform`` after the part that a number follows."""
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    parts = [leading(pattern) for pattern in listed(config.layers_pattern)]
    for part in parts or [r".*?\.[^.]*"]:
        found = re.match(rf"{part}\.(?P<number>\d+)\.", path)
        if found:
            return int(found["number"]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def _excluded(config: LoraConfig, path: str) -> bool:
    return config.exclude_modules is not None and _matches(config.exclude_modules, path)


def _matches(names: Iterable[str] | str, path: str) -> bool:
    """Whether a regular expression matches all of ``path``, or a list has whole trailing parts of it."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _lookup(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first pattern that matches whole trailing parts of ``path``."""
    for pattern, value in patterns.items():
        if re.match(trailing(pattern), path):
            return value
    return default


# ----------------------------------------------------------------------------- what a file's tensors say


def match_tensors(
    model: Module,
    config: LoraConfig,
    shapes: Mapping[str, tuple[int, ...]],
    factors: tuple[str, str],
    size: int,
) -> Match:
    """Return which modules of ``model`` the tensors in a file are for, and what each layer gets.

    Whatever lies under the path of a Linear layer, beside its own weight and bias, says that the layer is
    adapted, and the shapes of A and B say with which rank.  So no names or patterns of the config are
    needed, but those of ``modules_to_save`` and ``alpha_pattern``.

    Parameters
    ----------
    model
        The model to adapt.
    config
        What is in the file, too.
    shapes
        The shape of each tensor by name.
    factors
        How A and B of a layer are named, below its path.
    size
        The length of the file in bytes.

    Raises
    ------
    ValueError
        If no layer is adapted, or if there would be more numbers in A and B than the file has bytes and
        the model has numbers.
    """
    modules = _inside(model)
    whole = {id(m) for path, m in modules.items() if _saved_whole(config, path)}
    inside = _parts_of(model, whole)
    linears = {p: m for p, m in modules.items() if isinstance(m, Linear) and id(m) not in inside}
    targets: dict[int, str] = {}
    options: dict[str, dict[str, Any]] = {}
    numbers = 0
    for path in dict.fromkeys(_layers_above(shapes, linears)):
        A, B = (shapes.get(f"{path}.{name}", ()) for name in factors)
        r = _rank(config, linears[path], A, B)
        numbers += r * sum(linears[path].weight.shape)
        if numbers > size + sum(p.size for p in model.parameters()):
            raise ValueError(f"a file of {size} bytes cannot hold A and B of r={r} in {path}")
        options[targets.setdefault(id(linears[path]), path)] = layer_options(config, path, r)
    if not targets:
        raise ValueError(f"none of its tensors is for one of the layers {', '.join(linears)}")
    return Match(targets, whole, options)


def _layers_above(names: Iterable[str], layers: Mapping[str, Linear]) -> Iterator[str]:
    """Yield the path of the layer above each tensor that has one, and is not its weight or bias."""
    depth = max((path.count(".") + 1 for path in layers), default=0)
    for name in names:
        parts = name.split(".", depth)
        for i in range(1, len(parts)):
            path, rest = ".".join(parts[:i]), ".".join(parts[i:])
            if path in layers and rest not in ("weight", "bias"):
                yield path


def _rank(config: LoraConfig, layer: Linear, A: tuple[int, ...], B: tuple[int, ...]) -> int:
    """Return the rank that the shapes of A and B tell; the config's if it does not know that rank."""
    out_features, in_features = layer.weight.shape
    told = [
        *(A[:1] if A[1:] == (in_features,) else ()),
        *(B[1:2] if B[:1] == (out_features,) else ()),
    ]
    r = min(told, default=config.r)
    return r if r in (config.r, *config.rank_pattern.values()) else config.r


def named_as(found: Match, model: Module, config: LoraConfig) -> LoraConfig:
    """Return a config that names what was found in ``model``: ``config`` itself if it does that."""
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
    """Return the options of a config that adapts the layers at these paths alone, with these ranks."""
    paths = {re.escape(path): r for path, r in ranks.items()}
    return {
        "r": max(ranks.values()),
        "target_modules": "|".join(paths),
        "rank_pattern": {f"^{path}": r for path, r in paths.items()},
    }
