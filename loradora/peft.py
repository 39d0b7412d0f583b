"""From a model and a config to a model with adapters, and back.

Nothing here changes the base, except that its arrays become read-only: every adapter has a view of it
(:mod:`loradora.views`), in which the targeted layers are replaced by LoRA or DoRA layers.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loradora import checkpoint
from loradora.adapting import Adapter, in_file
from loradora.combining import (
    Acting,
    check_adds_up,
    check_weights,
    config_for,
    largest_rank,
    together,
    weighted_sum,
)
from loradora.config import LoraConfig, ReadOnly
from loradora.files import CheckpointError
from loradora.low_rank import Adapted, LowRankLinear
from loradora.matching import check_names, match, named_as
from loradora.nn import (
    Change,
    Module,
    Rng,
    all_or_none,
    check_model,
    generator,
    named_tensors,
    setting_data,
    setting_requires_grad,
)
from loradora.views import intact, own_copy, rebuild, take_modes
from minigrad import Tensor, hints
from minigrad.scopes import Scope, at_once


class PeftModel(Module):
    """A base model with named adapters, of which some are active.

    Calling it runs the active adapter's view.  The base model is never changed: it can be used alongside
    this one, and :meth:`get_base_model` returns it.

    Threads may share it, and the base, in evaluation mode: each has its own ``no_grad`` and
    ``disable_adapter``.  Everything else is shared by all threads: which adapter is active, the mode, the
    parameters and their gradients.  So train, and choose adapters, while no other thread computes.

    Parameters
    ----------
    base
        Any Module that is not itself a PeftModel.
    config
        The config of the first adapter.
    adapter_name
        Its name.
    **options
        Those of :func:`get_peft_model`.
    """

    def __init__(
        self, base: Module, config: LoraConfig, adapter_name: str = "default", **options: Any
    ) -> None:
        _check_config(config)
        with intact(base):
            self._start(base)
            self.add_adapter(adapter_name, config, **options)
            self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def _start(self, base: Module) -> None:
        """Start without an adapter."""
        check_model(base)
        if isinstance(base, PeftModel):
            raise TypeError("the model has adapters already: use add_adapter or load_adapter")
        self._base = base
        self._trainable = {name for name, p in named_tensors(base) if p.requires_grad}
        self._plain = self._active = rebuild(base, lambda _: None)
        self._adapters: dict[str, Adapter] = {}
        self._names: list[str] = []
        self.training = base.training

    # -- the model it is now

    @property
    def base_model(self) -> Module:
        """The view that acts now: the layers of the base, those adapted with their adapters."""
        return self._plain if self._disabled else self._active

    def __getattr__(self, name: str) -> Any:
        """Return an attribute that only the model inside has."""
        if not name.startswith("_") and "_plain" in vars(self) and not hasattr(type(self), name):
            inside = self.base_model
            # a property that fails says why; hasattr(inside, name) would only say that it is missing
            there = hasattr(type(inside), name) or hasattr(inside, name)
            if there or hints.of_adapted_model(name) is None:
                return getattr(inside, name)
        return hints.missing(self, name, hints.of_adapted_model)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, unless it is one of the model inside: each adapter has a view of that."""
        own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if isinstance(value, (Module, Tensor)) and not name.startswith("_"):
            raise AttributeError(
                f"{name!r} would be no part of this model: put both into a Module of their own"
            )
        if not own and hasattr(self, name):
            raise AttributeError(
                f"{name!r} is an attribute of the model inside, of which each adapter has a view: set it "
                "before get_peft_model"
            )
        super().__setattr__(name, value)

    def named_parts(self) -> Iterator[tuple[str, Any]]:
        """Yield the view that acts now; the other views are not part of the model meanwhile."""
        yield "base_model", self.base_model

    def torch_names(self) -> dict[Tensor, str]:
        """Return the name of each tensor in PEFT's model, including the tensors of all adapters."""
        names = {p: checkpoint.PREFIX + name for name, p in self._plain.named_parameters()}
        for adapter_name, adapter in self._adapters.items():
            found = adapter.torch_names(adapter_name).items()
            names |= {p: name for p, name in found if p not in names or ".base_layer." in name}
        return names

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the base with the active adapter computes."""
        return self.base_model(*args, **kwargs)

    def train(self, mode: bool = True) -> PeftModel:
        """Set training or evaluation mode for every adapter."""
        views = self._views()
        modules = [self, *(module for view in views for _, module in view.named_modules())]
        modes = [module.training for module in modules]
        as_before = at_once(object.__setattr__, modules, repeat("training"), modes)
        try:
            self.training = mode
            for view in views:
                view.train(mode)
        except BaseException:
            as_before()
            raise
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all adapters, active or not; of all or of none.

        The base model itself is left as it is.
        """
        params = [p for view in self._views() for p in view.parameters()]
        at_once(object.__setattr__, params, repeat("grad"), repeat(None))()

    def _views(self) -> list[Module]:
        """Return the view of the base alone, the one that is active, and that of each adapter."""
        return [self._plain, self._active, *(a.model for a in self._adapters.values())]

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike], *, assign: bool = False) -> None:
        """Set the tensors of the adapter that acts now from ``state``; all of them or none.

        They get copies, or the arrays themselves with ``assign=True`` (see :class:`Module`).

        Raises
        ------
        ValueError
            As :meth:`Module.load_state_dict`, and if the state has another base.  All adapters share the
            values of the base, so they do not change: load them into the base first, then adapt it.
        """
        fitted = self.fitted(state, assign=assign)
        own = {id(p) for adapter in self._adapters.values() for p in adapter.saved.values()}
        frozen = [(p, value) for p, value in fitted if id(p) not in own]
        if not all(np.array_equal(p.data, value, equal_nan=True) for p, value in frozen):
            raise ValueError(
                "the state is that of another base: load it into the base, before get_peft_model"
            )
        all_or_none([setting_data(p, value) for p, value in fitted if id(p) in own])

    def get_base_model(self) -> Module:
        """Return the base model itself."""
        return self._base

    @property
    def active_adapters(self) -> list[str]:
        """The names of the active adapters, a copy: :meth:`set_adapter` chooses others."""
        return list(self._names)

    @property
    def active_adapter(self) -> str:
        """The name of the active adapter, the first of several.

        Raises
        ------
        ValueError
            If there is none left.
        """
        if not self.active_adapters:
            raise ValueError("the model has no adapter left")
        return self.active_adapters[0]

    @property
    def peft_config(self) -> Mapping[str, LoraConfig]:
        """The config of every adapter by name.

        It says how the adapter was made, and cannot be edited.  For another config, add another adapter:
        ``model.add_adapter("new", dataclasses.replace(config, lora_alpha=64))``.
        """
        return ReadOnly({name: a.config.frozen() for name, a in self._adapters.items()})

    def disable_adapter(self) -> _Disabled:
        """Compute with only the base inside the ``with`` block; afterwards everything is as before.

        Like :class:`minigrad.no_grad`, it affects only the current thread, and in it the current asyncio
        task: others still see the adapter.  It also works as a decorator.

        :meth:`set_adapter` inside the block switches adapters on again immediately, and they stay on
        after it.
        """
        take_modes(self._plain, self.base_model)
        return _Disabled(self)

    @property
    def _disabled(self) -> list[_Disabled]:
        """Return the scopes that switch the adapters off here."""
        return [scope for scope in _Disabled.in_force() if scope.model() is self]

    # -- several adapters

    def add_adapter(
        self,
        adapter_name: str,
        config: LoraConfig,
        *,
        rng: Rng = None,
        layer: type[LowRankLinear] | None = None,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add an adapter without activating it; the options are those of :func:`get_peft_model`.

        Raises
        ------
        ValueError
            For a name that is taken or is not a plain name, and for a second adapter that trains biases,
            because two sets of biases cannot be told apart from their sum.
        """
        self._check_new(adapter_name)
        _check_config(config)
        config = dataclasses.replace(config)  # checks it again: its fields can be assigned to
        found = match(self._plain, config)
        check_names(self._plain, config, found)
        rng = generator(rng)
        adapter = Adapter(
            self._plain, config, found, rng, self._trainable, layer, autocast_adapter_dtype
        )
        self._keep(adapter_name, adapter)

    def _keep(self, adapter_name: str, adapter: Adapter) -> None:
        configs = [adapter.config, *(a.config for a in self._adapters.values())]
        if len(configs) > 1 and any(config.bias != "none" for config in configs):
            raise ValueError("with bias='all' or 'lora_only' there can be only one adapter")
        adapter.enable(False)
        self._adapters[adapter_name] = adapter

    def set_adapter(
        self, adapter_names: str | Sequence[str], *, inference_mode: bool = False
    ) -> None:
        """Activate an adapter, or several at once; they alone become trainable.

        Parameters
        ----------
        adapter_names
            One name, or several.  Those that act on the same layer must be LoRAs, whose corrections
            add up.
        inference_mode
            Freeze them as well.

        Raises
        ------
        ValueError
            For unknown names, and for adapters that meet in a layer where they do not add up: a
            DoRA, a variant with a formula of its own, a module that trains whole.
        """
        names = _names(adapter_names)
        self._activate(self._view_of(names), names, self._adapters, not inference_mode)
        for scope in self._disabled:
            scope.leave()

    def _activate(
        self, view: Module, names: list[str], adapters: dict[str, Adapter], trainable: bool
    ) -> None:
        """Keep these adapters, and let those named act in ``view``; make all of the change or none."""
        take_modes(view, self.base_model)
        changes: list[Change] = [
            setting_requires_grad(p, trainable and name in names)
            for name, adapter in adapters.items()
            for p in adapter.trained
        ]
        new = {"_adapters": adapters, "_active": view, "_names": names}
        all_or_none(changes + [(self, name, value) for name, value in new.items()])

    def _view_of(self, names: Sequence[str]) -> Module:
        """Return the view in which these adapters act together."""
        chosen = [self._get(name) for name in names]
        if not chosen:
            raise ValueError("name at least one adapter; disable_adapter() turns them off")
        if len(set(names)) < len(names):
            raise ValueError(f"an adapter is named twice: {', '.join(names)}")
        if len(chosen) == 1:
            return chosen[0].model
        self._check_base_of(chosen)
        return together(self._plain, [Acting(a.config, a.parts()) for a in chosen])

    def _check_base_of(self, adapters: Sequence[Adapter]) -> None:
        """Raise ValueError if one of several adapters has changed the base that they share."""
        changed = [words for adapter in adapters for words in adapter.changed_constants()]
        if changed:
            raise ValueError(f"these adapters do not share one base any more: {'; '.join(changed)}")

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was the only active one, the oldest of the others becomes active.

        The newly active adapter is frozen if the old one was.  After the last adapter is deleted, the
        model computes what the base does.

        Raises
        ------
        ValueError
            For an unknown name.
        """
        self._get(adapter_name)
        others = {name: a for name, a in self._adapters.items() if name != adapter_name}
        if adapter_name not in self._names:
            self._adapters = others
            return
        names = [name for name in self._names if name != adapter_name] or list(others)[:1]
        view = self._view_of(names) if names else self._plain
        self._activate(view, names, others, bool(self._active.trainable_parameters()))

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "cat",
        svd_rank: int | None = None,
    ) -> None:
        """Add an adapter whose correction is the weighted sum Σ wᵢ sᵢ Bᵢ Aᵢ of those of others.

        Parameters
        ----------
        adapters
            Names of LoRA adapters, or of one DoRA adapter with the weight 1: its copy.
        weights
            One for each.
        adapter_name
            The name of the sum.
        combination_type
            "cat", the default, is exact, and the ranks add up.  "svd", PEFT's default, is the best
            approximation of rank ``svd_rank``.  "linear" mixes the factors instead, as in PEFT, with
            A = Σ ±√|wᵢ sᵢ| Aᵢ and B = Σ √|wᵢ sᵢ| Bᵢ.  Its B A is *not* the sum: it also pairs the B of
            each adapter with the A of every other.
        svd_rank
            The rank for "svd"; by default the largest rank that the configs of the adapters name for any
            layer.  A layer that is too small for it gets the largest rank it can hold.

        Raises
        ------
        ValueError
            For unknown names, another combination, adapters that do not simply add up, or, with "linear",
            ranks that differ in a layer.
        """
        adapters = _names(adapters)
        check_weights(adapters, weights, combination_type, svd_rank)
        self._check_new(adapter_name)
        chosen = [self._get(name) for name in adapters]
        if len(chosen) == 1 and weights[0] == 1 and combination_type == "cat":
            new = self._copy(adapters[0])
        else:
            new = self._weighted(chosen, weights, combination_type, svd_rank)
        self._keep(adapter_name, new)

    def _copy(self, adapter_name: str) -> Adapter:
        adapter = self._get(adapter_name)
        arrays = adapter.arrays(adapter_name)
        new = self._adapter(adapter.config, adapter.autocast_adapter_dtype, adapter.layer)
        for key, p in new.saved.items():
            p.data = arrays[key]
        return new

    @np.errstate(under="ignore")
    def _weighted(
        self, chosen: list[Adapter], weights: Sequence[float], kind: str, svd_rank: int | None
    ) -> Adapter:
        self._check_base_of(chosen)
        for adapter in chosen:
            check_adds_up(adapter.config, adapter.layer)
        rank = svd_rank or largest_rank(adapter.config for adapter in chosen)
        factors = weighted_sum(weights, [a.layers() for a in chosen], kind, rank)
        new = self._adapter(
            config_for(factors, chosen[0].config.lora_dropout), chosen[0].autocast_adapter_dtype
        )
        for path, layer in new.layers().items():
            A, B = factors[path]
            layer.A.data, layer.B.data = A.astype(layer.A.dtype), B.astype(layer.B.dtype)
        return new

    def _adapter(
        self, config: LoraConfig, cast: bool, layer: type[LowRankLinear] | None = None
    ) -> Adapter:
        """Return an adapter whose tensors are still to be set."""
        found, rng = match(self._plain, config), np.random.default_rng(0)
        return Adapter(self._plain, config, found, rng, self._trainable, layer, cast)

    def _check_new(self, adapter_name: str) -> None:
        checkpoint.check_name(adapter_name)
        if adapter_name in self._adapters:
            raise ValueError(f"there is an adapter named {adapter_name!r} already")

    def _get(self, name: str) -> Adapter:
        if name not in self._adapters:
            raise ValueError(f"no adapter named {name!r}; there are: {', '.join(self._adapters)}")
        return self._adapters[name]

    # -- reporting and merging

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many numbers are trainable, and how many there are."""
        sizes = [(p.size, p.requires_grad) for p in self.parameters()]
        return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print the counts, as PEFT does.

        PEFT's total also has the module that one of ``modules_to_save`` stands in for.
        """
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,} || all params: {total:,} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    def merge_and_unload(
        self, safe_merge: bool = True, adapter_names: str | Sequence[str] | None = None
    ) -> Module:
        """Return a plain model with the active adapters in its weights; this model stays as it is.

        Within :meth:`disable_adapter` none is active.

        What required a gradient in the base does so again, and what was constant there stays constant.

        Parameters
        ----------
        safe_merge
            Refuse NaN and infinity.  (By default, PEFT does not look.)
        adapter_names
            The adapters to merge, if not the active ones.

        Raises
        ------
        ValueError
            If an adapter holds NaN or infinity, or produces them, naming the tensors; and as for
            :meth:`set_adapter`.  Tensors that are not merged are not checked.
        """
        names = self._names if adapter_names is None else _names(adapter_names)
        view = self.base_model if adapter_names is None else self._view_of(names)
        own = {id(p) for name in names for p in self._adapters[name].saved.values()}
        paths = {id(module): path for path, module in view.named_modules()}

        def merged(module: Module) -> Module | None:
            if not isinstance(module, Adapted):
                return None
            try:
                return module.merge(safe_merge)
            except ValueError as error:
                raise ValueError(f"{paths[id(module)]}: {error}") from error

        tensors = [(name, p) for name, p in view.named_parameters() if id(p) in own]
        bad = [name for name, p in tensors if not np.isfinite(p.data).all()]
        if safe_merge and bad:
            raise ValueError(f"cannot merge: NaN or infinity in {', '.join(bad)}")
        return own_copy(rebuild(view, merged), self._trainable)

    def unload(self) -> Module:
        """Return a plain copy of the base, in which what was trainable is trainable again."""
        return own_copy(self._plain, self._trainable)

    # -- files

    def save_pretrained(
        self, directory: str | Path, selected_adapters: str | Sequence[str] | None = None
    ) -> None:
        """Write the adapters into PEFT's folder layout; needs the extra ``peft`` (safetensors).

        The adapter named "default" goes into ``directory``, any other into a folder inside it, of its
        name.  All of them are written, or none.  A layer that the model has under several names is
        adapted under all of them here, but in PEFT only under the first.

        Parameters
        ----------
        directory
            Where to write; it is made if it is not there.
        selected_adapters
            Which adapters to write; all of them by default.

        Raises
        ------
        ImportError
            Without safetensors, naming the extra and the alternative.
        ValueError
            For an unknown name, for an adapter that PEFT would misread, and for one that a file would
            not bring back as it is, because more has changed than the values of its tensors: for example
            a scaling that was set, or a weight of the base.  Everything that changed is named.
        CheckpointError
            If a file cannot be written.
        """
        names = list(self._adapters) if selected_adapters is None else _names(selected_adapters)
        chosen = {name: self._get(name) for name in names}
        if not chosen:
            raise ValueError("there is no adapter to save")
        for name, adapter in chosen.items():
            adapter.check_peft_can_read(name)
        top = Path(directory)
        checkpoint.save_folders(
            {top if n == "default" else top / n: a.to_save(n) for n, a in chosen.items()}
        )

    def save_adapter(self, file: str | Path, adapter_name: str | None = None) -> None:
        """Write one adapter, config included, into one ``.npz`` file that needs only NumPy.

        Raises
        ------
        ValueError
            For an unknown name, and without a name if several adapters are active; and for an
            adapter that a file would not bring back, as in :meth:`save_pretrained`.
        CheckpointError
            If the file cannot be written.
        """
        if adapter_name is None and len(self.active_adapters) > 1:
            raise ValueError(f"name one of the active adapters: {', '.join(self.active_adapters)}")
        name = self.active_adapter if adapter_name is None else adapter_name
        adapter = self._get(name)
        checkpoint.save_npz(file, adapter.to_save(name))

    def load_adapter(
        self,
        source: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        *,
        allow_nan: bool = False,
        rng: Rng = None,
        layer: type[LowRankLinear] | None = None,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add the adapter in a PEFT folder or an ``.npz`` file, without activating it.

        The tensors in the file say which layers are adapted, and with which of the ranks that the config
        names.  The config says what kind of adapter it is and how it is scaled.  If it names other
        layers, ``peft_config`` lists those of the tensors.

        The model is set to evaluation mode, as in PEFT; with ``is_trainable`` it stays in its mode.

        The parameters are those of :meth:`from_pretrained`.

        Raises
        ------
        ValueError
            For a name that is taken or is not a plain name.
        CheckpointError
            Listing everything that is wrong with the files; nothing is changed.
        """
        self._check_new(adapter_name)
        file = checkpoint.load(source)
        config = dataclasses.replace(file.config, inference_mode=not is_trainable)
        # all that they start with is overwritten below, except what these two make of W0
        keeps = config.init_lora_weights in ("pissa", "olora")
        quick = config if keeps else dataclasses.replace(config, init_lora_weights=True)
        rng = generator(rng)
        try:
            found = in_file(self._plain, quick, file, layer)
            adapter = Adapter(
                self._plain, quick, found, rng, self._trainable, layer, autocast_adapter_dtype
            )
            named = named_as(found, self._plain, quick)
        except ValueError as error:
            raise CheckpointError(f"{source} does not fit the model: {error}") from error
        adapter.load(source, file, allow_nan)
        adapter.config = dataclasses.replace(named, init_lora_weights=config.init_lora_weights)
        self._keep(adapter_name, adapter)
        if not is_trainable:
            try:
                self.eval()
            except BaseException:
                self._adapters.pop(adapter_name)
                raise

    @classmethod
    def from_pretrained(
        cls,
        base: Module,
        source: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        *,
        allow_nan: bool = False,
        rng: Rng = None,
        layer: type[LowRankLinear] | None = None,
        autocast_adapter_dtype: bool = True,
    ) -> PeftModel:
        """Return ``base`` with the adapter in a PEFT folder or an ``.npz`` file.

        It is frozen and in evaluation mode.  With ``is_trainable`` it is trainable, and in the mode of
        ``base``.

        Parameters
        ----------
        base
            The model the adapter was trained on; it is not changed.
        source
            A folder with ``adapter_config.json`` and ``adapter_model.safetensors`` (needs the
            extra ``peft``), or an ``.npz`` file.
        adapter_name
            The name to give it.
        is_trainable
            Make the adapter trainable.  (:meth:`set_adapter` does so later.)
        allow_nan
            Accept NaN and infinity.
        rng
            The source of randomness for dropout, if training continues; a fresh one by default.
        layer
            The class of its layers, if it was made with a special one.
        autocast_adapter_dtype
            As for :func:`get_peft_model`.

        Raises
        ------
        CheckpointError
            Listing everything that is wrong with the files.
        """
        model = cls.__new__(cls)
        options: dict[str, Any] = {"allow_nan": allow_nan, "rng": rng, "layer": layer}
        options["autocast_adapter_dtype"] = autocast_adapter_dtype
        with intact(base):
            model._start(base)
            model.load_adapter(source, adapter_name, is_trainable, **options)
            model.set_adapter(adapter_name, inference_mode=not is_trainable)
        return model

    def __repr__(self) -> str:
        active = ", ".join(self.active_adapters) or "none"
        others = ", ".join(name for name in self._adapters if name not in self.active_adapters)
        notes = f"active: {active}" + (f", inactive: {others}" if others else "")
        trainable, total = self.get_nb_trainable_parameters()
        notes += ", disabled" if self._disabled else f", {trainable:,} of {total:,} trainable"
        body = repr(self.base_model).replace("\n", "\n  ")
        return f"PeftModel({notes}\n  {body}\n)"


class _Disabled(Scope):
    """Inside, the adapters of one model are off."""

    def __init__(self, model: PeftModel) -> None:
        # weakly, because a scope that has ended is remembered until one asks what is in force
        self.model = weakref.ref(model)

    def _recreate_cm(self) -> _Disabled:
        model = self.model()
        return model.disable_adapter() if model is not None else self


def get_peft_model(
    model: Module,
    config: LoraConfig,
    adapter_name: str = "default",
    *,
    rng: Rng = None,
    layer: type[LowRankLinear] | None = None,
    autocast_adapter_dtype: bool = True,
) -> PeftModel:
    """Return a new model: ``model``, shared and frozen, with an adapter in the targeted layers.

    ``model`` itself keeps its values and stays usable.  Its arrays become read-only.  An optimizer that
    keeps training it gives it new arrays, which the new model does not see: it keeps the values that
    ``model`` has now.

    Parameters
    ----------
    model
        Any Module with Linear layers inside, at any depth.
    config
        Which of these layers to adapt, and how.
    adapter_name
        The name of the adapter.
    rng
        The source of randomness, or a seed; a fresh, unseeded one by default.
    layer
        The class of adapted layers, if not LoRALinear or DoRALinear: a subclass of
        :class:`~loradora.low_rank.LowRankLinear`, and of DoRALinear if ``use_dora``.  It is called with
        the base layer and, by keyword, ``r``, ``lora_alpha``, ``use_rslora``, ``lora_dropout``,
        ``init_lora_weights`` and ``rng``, and with ``lora_bias``, ``detach_norm`` and ``norm_axis`` only
        if they are set.  A class with its own formula trains, merges and saves like any other, but its
        files can only be loaded with the same class.  Its adapters are not added up, and not saved for
        PEFT, which would read them as LoRA.
    autocast_adapter_dtype
        Over float16 weights the adapter is float32, because training in float16 loses most of what small
        steps add up to.  The model's results stay float16.  False makes the adapter float16 as well.

    Raises
    ------
    TypeError
        If ``model`` already is a PeftModel, ``config`` no LoraConfig, or ``layer`` not such a class.
    ValueError
        If no Linear layer matches, listing those there are, if a target is not a Linear, if a pattern or
        a module to save matches nothing, or if ``layer`` lacks what the config asks for.  Nothing is
        changed.

    Examples
    --------
    >>> from loradora import MLP
    >>> model = get_peft_model(MLP([784, 256, 10]), LoraConfig(r=4, target_modules=["0", "2"]))
    >>> model.print_trainable_parameters()
    trainable params: 5,224 || all params: 208,754 || trainable%: 2.5025
    """
    return PeftModel(
        model,
        config,
        adapter_name,
        rng=rng,
        layer=layer,
        autocast_adapter_dtype=autocast_adapter_dtype,
    )


def get_peft_model_state_dict(
    model: PeftModel, adapter_name: str = "default"
) -> dict[str, npt.NDArray[Any]]:
    """Return a copy of the tensors of an adapter, by the names that PEFT gives them.

    They are what its file holds, without the config.  :func:`set_peft_model_state_dict` puts them into a
    model that has an adapter of the same config.

    Raises
    ------
    TypeError
        If ``model`` is not a PeftModel.
    ValueError
        For an unknown name, and for an adapter that its tensors alone would not bring back, as in
        :meth:`PeftModel.save_pretrained`.
    """
    arrays = _adapter(model, adapter_name).arrays(adapter_name)
    return {checkpoint.PREFIX + key: array.copy() for key, array in arrays.items()}


def set_peft_model_state_dict(
    model: PeftModel,
    state: Mapping[str, npt.ArrayLike],
    adapter_name: str = "default",
    *,
    allow_nan: bool = False,
) -> None:
    """Set the tensors of an adapter, in their own dtypes; all of them or none.

    Parameters
    ----------
    model
        A model with the adapter.
    state
        Tensors by the names that PEFT gives them, as from :func:`get_peft_model_state_dict`.
    adapter_name
        The name of the adapter.
    allow_nan
        Accept NaN and infinity.

    Raises
    ------
    TypeError
        If ``model`` is not a PeftModel.
    CheckpointError
        Listing everything that is missing, unexpected, misshapen, not float or not finite.
    ValueError
        For an unknown name.
    """
    adapter = _adapter(model, adapter_name)
    source = f"the state for {adapter_name!r}"
    adapter.load(source, checkpoint.as_file(source, adapter.config, state), allow_nan)


def _names(adapters: str | Sequence[str]) -> list[str]:
    """Return names as a list; a single name may be given without one."""
    names = [adapters] if isinstance(adapters, str) else list(adapters or ())
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"adapters are named by strings, not {names!r}")
    return names


def _check_config(config: Any) -> None:
    if not isinstance(config, LoraConfig):
        advice = ": ld.LoraConfig.from_dict(config.to_dict())" if hasattr(config, "to_dict") else ""
        raise TypeError(f"expected a loradora.LoraConfig, not a {hints.kind(config)}{advice}")


def _adapter(model: PeftModel, name: str) -> Adapter:
    if not isinstance(model, PeftModel):
        raise TypeError(f"expected a loradora.PeftModel, not a {hints.kind(model)}")
    return model._get(name)
