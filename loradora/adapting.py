"""One adapter on one model: a view of the model in which it acts, and what a file keeps of it.

The layers that the config names become LoRA or DoRA layers.  Modules to save become copies that train.
Everything else is shared with the base.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loradora import checkpoint
from loradora.adapters import ColumnDoRALinear, DoRALinear, LoRALinear
from loradora.combining import own_formula
from loradora.config import LoraConfig
from loradora.files import CheckpointError
from loradora.low_rank import LowRankLinear
from loradora.matching import Match, exact_names, match_tensors
from loradora.nn import (
    Dropout,
    Linear,
    Module,
    all_or_none,
    named_tensors,
    same_values,
    setting_data,
    setting_requires_grad,
)
from loradora.views import own_copy, rebuild, share_constants
from minigrad import Tensor


class Adapter:
    """One adapter: its config, the view of the model that it acts in, and the tensors it trains.

    Attributes
    ----------
    config
        The LoraConfig it was made from.
    model
        The view.
    saved
        Its tensors by their names in files, without the prefix.  The names are PEFT's, unless the layers
        have a formula of their own.
    trained
        Those of them that training changes: all except those that a variant of LoRA freezes, and the
        constants of modules that train whole.

    Parameters
    ----------
    base
        The model to adapt.
    config
        How to adapt it.
    found
        What the config names in ``base``, and what each layer gets.
    rng
        The source of randomness.
    trainable
        The names of the tensors in ``base`` that require a gradient once they are no longer frozen.
    layer
        The class of its layers; by default LoRALinear or DoRALinear, as the config says.
    autocast_adapter_dtype
        As for :func:`get_peft_model`.
    """

    def __init__(
        self,
        base: Module,
        config: LoraConfig,
        found: Match,
        rng: np.random.Generator,
        trainable: Collection[str],
        layer: type[LowRankLinear] | None = None,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        self.layer = _class_for(config, layer)
        self.autocast_adapter_dtype = autocast_adapter_dtype
        cast = {} if autocast_adapter_dtype else {"autocast_adapter_dtype": False}
        paths: dict[int, str] = {}
        for path, module in base.named_modules():
            paths.setdefault(id(module), path)
        copies: dict[int, Any] | None = {} if config.ensure_weight_tying else None
        self._whole: dict[str, Module] = {}

        def replace(module: Module) -> Module | None:
            if id(module) in found.whole:
                path = paths[id(module)]
                return self._whole.setdefault(path, own_copy(module, trainable, path, copies))
            if not isinstance(module, Linear) or id(module) not in found.targets:
                return None
            options = found.options[found.targets[id(module)]] | cast
            return self.layer(module, **options, rng=rng)

        self.config = copy.deepcopy(config)  # the caller's may change
        self.model = rebuild(base, replace)
        share_constants(self.model, base)
        for module in self._whole.values():
            if not module.trainable_parameters():  # all was frozen, so nothing tells what trains
                module.requires_grad_(True)
        self._free_biases()
        modules = dict(self.model.named_modules())
        names = _names_in_files(self.layer)
        own = {id(p) for layer in self.layers().values() for p in _beside_base(layer)}
        whole = {id(p) for module in self._whole.values() for p in module.parameters()}
        self.saved = {
            _file_key(modules, name, names): p
            for name, p in self.model.named_parameters()
            if p.requires_grad or id(p) in own | whole
        }
        if config.ensure_weight_tying:  # in a model of transformers, PEFT writes all names
            self.saved |= {name: p for name, p in named_tensors(self.model) if id(p) in whole}
        self.trained = [p for p in self.saved.values() if p.requires_grad]
        # how it was made, which is what a file brings back: see lost_in_a_file
        self._tensors = dict(self.model.named_parameters())
        in_file = {id(p) for p in self.saved.values()}
        self._constants = {n: p.data for n, p in self._tensors.items() if id(p) not in in_file}
        self._settings = self.settings()
        self.enable(not config.inference_mode)

    def _free_biases(self) -> None:
        """Give the view trainable copies of the biases that ``config.bias`` names."""
        adapted = {id(layer.base_layer) for layer in self.layers().values()}
        free: dict[int, Tensor] = {}  # so that a tied bias stays tied
        for module in {id(m): m for _, m in self.model.named_modules()}.values():
            bias = getattr(module, "bias", None) if not isinstance(module, LowRankLinear) else None
            wanted = self.config.bias == "all" or id(module) in adapted
            if self.config.bias != "none" and wanted and isinstance(bias, Tensor):
                new = Tensor(bias.data, requires_grad=True)
                vars(module)["bias"] = free.setdefault(id(bias), new)

    def enable(self, value: bool) -> None:
        """Make the adapter's tensors trainable, or freeze them."""
        all_or_none([setting_requires_grad(p, value) for p in self.trained])

    def scalings(self) -> dict[str, float]:
        """Return s of every adapted layer, by path."""
        return {path: float(layer.scaling) for path, layer in self.layers().items()}

    def settings(self) -> dict[str, Any]:
        """Return by name what acts besides the tensors: kinds of modules, and settings of layers."""
        found: dict[str, Any] = {}
        for path, module in self.model.named_modules():
            kind = repr(module) if isinstance(module, Dropout) else type(module).__name__
            path = path or "the model"
            found |= {path: kind, f"{path}.forward": vars(module).get("forward")}
            if isinstance(module, LowRankLinear):
                found |= {f"{path}.{name}": getattr(module, name, None) for name in SETTINGS}
        return found

    def lost_in_a_file(self) -> list[str]:
        """Return in words what has changed since it was made, apart from the values of its tensors.

        A file holds these values and the config.  Any other change is lost when it is loaded.
        """
        now, settings = dict(self.model.named_parameters()), self.settings()
        changed = [
            f"{name} is {settings.get(name, 'gone')}, but was {given} when the adapter was made"
            + (" (multiply B instead)" if name.endswith(".scaling") else "")
            for name, given in self._settings.items()
            if settings.get(name) != given
        ]
        changed += [
            f"{name} is no longer the tensor of the adapter: set its .data instead"
            for name, p in self._tensors.items()
            if now.get(name) is not p
        ]
        changed += [f"{name} is new" for name in settings if name not in self._settings]
        changed += [
            f"{name} is not one of its tensors"
            for name, p in now.items()
            if name not in self._tensors and p.requires_grad
        ]
        return changed + self.changed_constants()

    def changed_constants(self) -> list[str]:
        """Return in words which tensors of the base have changed since it was made."""
        return [
            f"{name} has changed, but belongs to the base (merge_and_unload() keeps it)"
            for name, array in self._constants.items()
            if not same_values(self._tensors[name].data, array)
        ]

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return the values of its tensors, by their names in files.

        Raises
        ------
        ValueError
            If something else has changed, which a file would lose.  The message calls the adapter by this
            name.
        """
        lost = self.lost_in_a_file()
        if lost:
            raise ValueError(
                f"cannot save or copy {name!r}: only its config and its tensors would be kept, but "
                f"something else was changed: {'; '.join(lost)}.  Change it back, or add an adapter that "
                "is like that from the start"
            )
        return {key: p.data for key, p in self.saved.items()}

    def to_save(self, name: str) -> checkpoint.Saved:
        """Return what goes into its files; raise ValueError as :meth:`arrays` does.

        A config that says "all-linear" names each layer instead, because PEFT would choose other layers.
        """
        config, arrays, scalings = self.config, self.arrays(name), self.scalings()
        if config.target_modules == "all-linear":
            config = dataclasses.replace(config, target_modules=exact_names(scalings))
        return checkpoint.Saved(config, arrays, scalings)

    def check_peft_can_read(self, name: str) -> None:
        """Raise ValueError if PEFT would read its files as another function."""
        unknown = "norm_axis=0" if self.config.norm_axis == 0 else ""
        unknown = self.layer.__name__ if own_formula(self.layer) else unknown
        if unknown:
            raise ValueError(
                f"PEFT has no {unknown}, and would misread {name!r}; save_adapter() keeps it"
            )

    def constants(self) -> dict[str, Tensor]:
        """Return the tensors that belong to the base and not to it, by all their names in files."""
        own = set(self.saved.values())
        return {name: p for name, p in named_tensors(self.model) if p not in own}

    @np.errstate(under="ignore")
    def load(self, source: str | Path, file: checkpoint.AdapterFile, allow_nan: bool) -> None:
        """Set its tensors to those of a file; raise CheckpointError, listing why, if they do not fit."""
        arrays = checkpoint.check(
            source, file, self.saved, self.constants(), self.scalings(), allow_nan
        )
        names = {p: name for name, p in self.saved.items()}
        apart = [
            f"{key} and {names[p]}"
            for key, p in self.saved.items()
            if not same_values(arrays[key], arrays[names[p]])
        ]
        if apart:
            raise CheckpointError(
                f"{source}: {', '.join(apart)} differ, and are one tensor in the model"
            )
        all_or_none([setting_data(p, arrays[key]) for key, p in self.saved.items()])

    def torch_names(self, adapter_name: str) -> dict[Tensor, str]:
        """Return what PEFT's model calls each tensor of the view, if the adapter has this name there.

        PEFT keeps what each adapter has of its own, such as A, in a dict by adapter name.
        """
        modules = dict(self.model.named_modules())
        places = {} if own_formula(self.layer) else IN_PEFT
        found = {}
        for name, p in self.model.named_parameters():
            path, _, last = name.rpartition(".")
            if isinstance(modules.get(path), LowRankLinear):
                place = places.get(last, f"{last}.{{}}").format(adapter_name)
                name = name.removesuffix(last) + place
            found[p] = checkpoint.PREFIX + name
        for path, module in self._whole.items():
            for name, p in module.named_parameters():
                found[p] = f"{checkpoint.PREFIX}{path}.modules_to_save.{adapter_name}.{name}"
        return found

    def parts(self) -> dict[str, Module]:
        """Return by path what replaces modules of the base."""
        return {**self._whole, **self.layers()}

    def layers(self) -> dict[str, LowRankLinear]:
        """Return the adapted layers by path; a tied layer is there once, under its first path."""
        found: dict[int, tuple[str, LowRankLinear]] = {}
        for path, module in self.model.named_modules():
            if isinstance(module, LowRankLinear):
                found.setdefault(id(module), (path, module))
        return dict(found.values())


#: What makes up the function of an adapted layer besides its tensors.
SETTINGS = "scaling", "detach_norm", "norm_axis"


def _class_for(config: LoraConfig, layer: type[LowRankLinear] | None) -> type[LowRankLinear]:
    """Return the class of the adapted layers, if it has what the config asks for."""
    dora = ColumnDoRALinear if config.norm_axis == 0 else DoRALinear
    kind = layer or (dora if config.use_dora else LoRALinear)
    if not (isinstance(kind, type) and issubclass(kind, LowRankLinear)):
        raise TypeError(f"layer must be a subclass of LowRankLinear, not {kind!r}")
    if issubclass(kind, DoRALinear) != config.use_dora:
        raise ValueError(f"use_dora={config.use_dora} does not go with {kind.__name__}")
    if issubclass(kind, DoRALinear) and kind.norm_axis != config.norm_axis:
        raise ValueError(f"norm_axis={config.norm_axis} does not go with {kind.__name__}")
    if config.lora_bias and not issubclass(kind, LoRALinear):
        raise ValueError(f"lora_bias=True does not go with {kind.__name__}")
    return kind


def _beside_base(layer: LowRankLinear) -> list[Tensor]:
    """Return the tensors that an adapted layer adds to its base, frozen ones included."""
    return [p for name, p in layer.named_parameters() if not name.startswith("base_layer.")]


#: What PEFT's models call the tensors of an adapted layer, with the adapter's name in the braces.
IN_PEFT = {
    "A": "lora_A.{}.weight",
    "B": "lora_B.{}.weight",
    "B_bias": "lora_B.{}.bias",
    "m": "lora_magnitude_vector.{}.weight",
}

#: What PEFT's files call them.
PEFT_NAMES = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "B_bias": "lora_B.bias",
    "m": "lora_magnitude_vector",
}


def _names_in_files(kind: type[LowRankLinear]) -> dict[str, str]:
    """Return what files call the tensors of such a layer: PEFT's names, unless PEFT has no such layer."""
    return {} if own_formula(kind) else PEFT_NAMES


def in_file(
    base: Module,
    config: LoraConfig,
    file: checkpoint.AdapterFile,
    layer: type[LowRankLinear] | None = None,
) -> Match:
    """Return which modules of ``base`` the tensors in a file are for, and what each layer gets.

    Raises
    ------
    ValueError
        If they are for none, or the file is too small for the shapes that it claims.
    """
    names = _names_in_files(_class_for(config, layer))
    factors = names.get("A", "A"), names.get("B", "B")
    shapes = {key: entry.shape for key, entry in file.tensors.items()}
    return match_tensors(base, config, shapes, factors, file.size)


def _file_key(modules: dict[str, Module], name: str, names: dict[str, str]) -> str:
    """Return the name in files for the tensor called ``name`` in a view with these modules.

    A tensor of an adapted layer is renamed as ``names`` says.
    """
    path, _, last = name.rpartition(".")
    if isinstance(modules.get(path), LowRankLinear):
        last = names.get(last, last)
    return f"{path}.{last}" if path else last
