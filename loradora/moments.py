"""What an optimizer remembers, under PyTorch's names: training can go on there, and come back.

``Optimizer.state_dict`` numbers the parameters, and so does ``torch.optim``, but each in its own order: a
bias that trains beside A comes before it in PEFT, and after it here.  Confusing two numbers is an error
at best.  At worst, two matrices of one shape change places.  So here each parameter is known by its
name: the one in PyTorch's ``named_parameters()``, and for an adapted model the one in PEFT's.

Moments and options have the same names on both sides, and the formulas are the same.  What only PyTorch
has (AMSGrad, Nesterov's momentum, decay in SGD) is refused where it is switched on, because going on
without it would be a different training.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loradora.nn import Module, check_model, short
from loradora.optim import Optimizer, check_fit, check_optimizer
from minigrad import Tensor

Array: TypeAlias = npt.NDArray[Any]


class Remembered(NamedTuple):
    """What is remembered of one parameter.

    Attributes
    ----------
    moments
        ``exp_avg``, ``exp_avg_sq`` and ``step``, or ``momentum_buffer``; empty before its first step.
    options
        The options of its group: ``lr`` and so on.
    """

    moments: dict[str, Array]
    options: dict[str, Any]


#: What is remembered of a parameter that an optimizer does not have.
UNKNOWN = Remembered({}, {})

#: An optimizer's state, by the names of the parameters.
Named: TypeAlias = dict[str, Remembered]


# ----------------------------------------------------------------------------- here


def remembered(optimizer: Optimizer, model: Module) -> Named:
    """Return what ``optimizer`` remembers of the parameters of ``model``.

    Frozen ones that it has never moved are left out.

    Raises
    ------
    TypeError, ValueError
        If these are not an optimizer and a model, or the model lacks a parameter of the optimizer.
    """
    names = names_of(optimizer, model)
    return {
        names[p]: Remembered(
            {name: np.array(value) for name, value in optimizer.state.get(p, {}).items()},
            {option: value for option, value in group.items() if option != "params"},
        )
        for group in optimizer.param_groups
        for p in group["params"]
        if p.requires_grad or p in optimizer.state
    }


def recall(optimizer: Optimizer, model: Module, state: Named) -> None:
    """Let ``optimizer`` go on from a state of the same parameters, options included.

    Raises
    ------
    TypeError, ValueError
        As :func:`remembered`.  Also ValueError listing everything that does not fit: what
        :meth:`Optimizer.load_state_dict` refuses, parameters that only one side trains, and options that
        do not exist here or differ within what is one group here.  Nothing is changed then.
    """
    names = names_of(optimizer, model)
    wrong = _strangers(state, remembered(optimizer, model), names.values())
    numbered = {k: v for k, v in optimizer.state_dict().items() if k.startswith("param_groups.")}
    for k, group in enumerate(optimizer.param_groups):
        known = {names[p]: state[names[p]] for p in group["params"] if names[p] in state}
        given = {name: entry.options for name, entry in known.items()}
        options, problems = _shared(given, set(group) - {"params"}, "here")
        numbered |= {f"param_groups.{k}.{name}": np.asarray(v) for name, v in options.items()}
        wrong += problems or _only_there(given, group)
    for i, name in enumerate(names.values()):
        for moment, value in state.get(name, UNKNOWN).moments.items():
            numbered[f"state.{i}.{moment}"] = value
    check_fit(wrong + optimizer.misfits(numbered, list(names.values())))
    optimizer.load_state_dict(numbered)


def names_of(optimizer: Optimizer, model: Module) -> dict[Tensor, str]:
    """Return the name of each parameter of ``optimizer``, in its order."""
    check_optimizer(optimizer)
    check_model(model)
    known, names = model.torch_names(), {}
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p not in known:
            raise ValueError(
                f"the optimizer has a parameter of shape {p.shape} that this model lacks: it was built "
                "from another model, before get_peft_model, or with an adapter that is gone"
            )
        names[p] = known[p]
    return names


def _strangers(given: Named, known: Named, names: Collection[str]) -> list[str]:
    """Return in words which parameters only one side trains; ``names`` are those of all here.

    A parameter that has neither a gradient nor moments may be unknown on the other side.
    """
    missing = [name for name in known if name not in given]
    unexpected = [name for name, entry in given.items() if entry.moments and name not in names]
    if missing and given and len(missing) == len(known):
        return [
            f"all names differ: there is {next(iter(given))}, and here {missing[0]} (names=[...] can "
            "tell what they are called here)"
        ]
    return [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in unexpected]


# ----------------------------------------------------------------------------- options

#: Options that only PyTorch has, each with the value that makes its formula ours.
AS_HERE = {
    "amsgrad": False,
    "dampening": 0,
    "decoupled_weight_decay": True,
    "maximize": False,
    "nesterov": False,
    "weight_decay": 0,  # of SGD
}

#: Options that change how PyTorch computes but not the result, and notes of its schedules.
HOW = {"capturable", "differentiable", "foreach", "fused", "name", "param_names", "params"}
HOW |= {"base_momentum", "initial_lr", "max_lr", "max_momentum", "min_lr", "swa_lr"}


def _shared(
    given: Mapping[str, Mapping[str, Any]], wanted: set[str], where: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the options that all these parameters share, and in words those missing or different."""
    shared: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for option in sorted(wanted):
        for name, options in given.items():
            if option not in options:
                wrong.setdefault(option, f"missing {option} of {name}")
            elif shared.setdefault(option, options[option]) != options[option]:
                first, value = next(iter(given)), shared[option]
                differ = f"{option} is {value} for {first} and {options[option]} for {name}"
                wrong.setdefault(option, f"{differ}, which are one group {where}")
    return shared, list(wrong.values())


def _only_there(given: Mapping[str, Mapping[str, Any]], ours: Container[str]) -> list[str]:
    """Return in words which of PyTorch's options make its formula differ from ours."""
    found: dict[str, str] = {}
    for name, options in given.items():
        for option, value in options.items():
            known = option in ours or option in HOW or value in (None, AS_HERE.get(option))
            # without decay, Adam is AdamW
            if not known and (option != "decoupled_weight_decay" or options.get("weight_decay")):
                found.setdefault(f"{option}={str(value)[:100]}", name)
    return [f"there is no {option} here, as {name} has it" for option, name in found.items()]


# ----------------------------------------------------------------------------- in a file


def flat(state: Named) -> dict[str, Array]:
    """Return a state as arrays: ``state.<name>.exp_avg``, …, ``param_groups.<name>.lr``, ….

    PyTorch calls this form flattened (``flatten_optimizer_state_dict``, in
    ``torch.distributed.checkpoint.state_dict``), and adds its own options to it.  As in PyTorch, ``step``
    is a float32.
    """
    arrays = {}
    for name, (moments, options) in state.items():
        for moment, value in moments.items():
            dtype = np.float32 if moment == "step" else value.dtype
            arrays[f"state.{name}.{moment}"] = value.astype(dtype)
        arrays |= {f"param_groups.{name}.{o}": np.array(value) for o, value in options.items()}
    return arrays


def from_flat(arrays: Mapping[str, Array]) -> Named:
    """Return the state that :func:`flat` made into arrays; raise ValueError for any other name."""
    state: Named = {}
    for key, array in arrays.items():
        kind, _, rest = key.partition(".")
        name, _, last = rest.rpartition(".")
        if kind not in ("state", "param_groups") or not name:
            raise ValueError(f"{key} is not part of an optimizer's state by name")
        entry = state.setdefault(name, Remembered({}, {}))
        if kind == "state":
            entry.moments[last] = _counted(last, array)
        else:
            if array.size > 2:
                raise ValueError(f"{key} is not an option: it has the shape {array.shape}")
            entry.options[last] = _plain(array)
    for _, options in state.values():
        if options.keys() & HOW:  # PyTorch has written it
            _mark_formula(options)
    return {name: Remembered(m, _begun(options)) for name, (m, options) in state.items()}


def _begun(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the rate that PyTorch's schedule began with, if there was one."""
    return {**options, "lr": options["initial_lr"]} if "initial_lr" in options else {**options}


def _plain(value: Any) -> Any:
    """Return an option; an array or a tensor becomes Python's numbers."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _counted(moment: str, array: Array) -> Array:
    """Return ``step``, which PyTorch counts in floats, as an integer, if it is one."""
    if moment != "step" or array.dtype.kind != "f" or array.shape != ():
        return array
    return array.astype(np.int64) if float(array).is_integer() and array < 2**53 else array


# ----------------------------------------------------------------------------- in torch.optim


def optimizer_to_torch(
    optimizer: Optimizer,
    model: Module,
    state: Mapping[str, Any],
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the state that lets a PyTorch optimizer go on where this one is.

    This needs PyTorch (extra ``interop``).  Parameters are matched by name, so their order and their
    groups may differ there.  With ``theirs``, an optimizer of PyTorch or PEFT for the same model:

        theirs.load_state_dict(optimizer_to_torch(optimizer, model, theirs.state_dict()))

    Parameters
    ----------
    optimizer
        An AdamW or SGD of this library.
    model
        The model whose parameters it trains.
    state
        What ``theirs.state_dict()`` returns.  It tells which groups there are.  ``theirs`` need not have
        taken a step.
    names
        The names of its parameters in its order.  They are not needed if it was made from pairs of names
        and parameters: ``torch.optim.AdamW([(n, p) for n, p in net.named_parameters() if
        p.requires_grad])``.

    Returns
    -------
    dict
        ``state`` with our moments and options.  What only PyTorch has, such as ``fused``, stays.

    Raises
    ------
    ImportError
        Without PyTorch, naming the extra.
    TypeError
        If ``state`` is no such state, or ``optimizer`` and ``model`` are not ours.
    ValueError
        If ``state`` does not know its parameters by name, lacks one that is trained here, comes from
        another kind of optimizer, or has options with which the formula differs from ours.

    Notes
    -----
    PyTorch keeps moments in the dtype of their parameter.  Here those of a float16 parameter are float32,
    so they lose digits there.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "optimizer_to_torch() needs PyTorch (extra 'interop'): pip install torch; save_optimizer() "
            "writes a file without it"
        ) from error
    called, known = _called(state, names), remembered(optimizer, model)
    there = {name: Remembered(state["state"].get(n, {}), {}) for n, name in called.items()}
    wrong = _strangers(there, known, known) + _misshapen(there, known)
    groups = []
    for group in state["param_groups"]:
        ours = {called[n]: known[called[n]].options for n in group["params"] if called[n] in known}
        options, problems = _shared(ours, set().union(*ours.values()), "there")
        merged = {**group, **options}
        if "initial_lr" in merged and options:
            merged["initial_lr"] = options["lr"]
        lacking = sorted(set(options) - set(group))
        if lacking:
            kind = type(optimizer).__name__
            problems = [f"it does not belong to {kind}: it has no {', '.join(lacking)}"]
        wrong += problems or _only_there(dict.fromkeys(ours, _options(merged)), options)
        groups.append(merged)
    if wrong:
        raise ValueError(f"the state does not fit that optimizer: {'; '.join(wrong)}")
    moments = {
        number: {
            moment: torch.tensor(float(value)) if moment == "step" else torch.from_numpy(value)
            for moment, value in known[name].moments.items()
        }
        for number, name in called.items()
        if name in known and known[name].moments
    }
    return {"state": moments, "param_groups": groups}


def optimizer_from_torch(
    optimizer: Optimizer,
    model: Module,
    state: Mapping[str, Any],
    names: Sequence[str] | None = None,
) -> None:
    """Let this optimizer go on where a PyTorch optimizer is: the way back of :func:`optimizer_to_torch`.

    The parameters are those of that function.  If one of PyTorch's schedulers has changed a rate, its
    ``initial_lr`` is taken, because here ``fit`` multiplies the rate by a schedule's factor.

    Raises
    ------
    TypeError, ValueError
        As there.  Also for shapes that differ, moments of another optimizer, NaN, a dtype that would lose
        digits, a parameter that only one side trains, and options that differ in what is one group here.
        Everything that is wrong is listed, and nothing is changed.
    """
    called = _called(state, names)
    given = {}
    for group in state["param_groups"]:
        options = _begun(_options(group))
        for number in group["params"]:
            moments = state["state"].get(number, {}).items()
            name = called[number]
            given[name] = Remembered(
                {m: _array(f"{name}.{m}", m, value) for m, value in moments if value is not None},
                options,
            )
    recall(optimizer, model, given)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of one of PyTorch's groups."""
    options = {name: _plain(value) for name, value in group.items()}
    _mark_formula(options)
    return options


def _mark_formula(options: dict[str, Any]) -> None:
    """Mark in PyTorch's options where they leave the formula open.

    RAdam's options are AdamW's without ``amsgrad``.  Older versions of Adam and AdamW did not say how
    they decay.
    """
    if "betas" in options:
        options.setdefault("amsgrad", "unknown")
        options.setdefault("decoupled_weight_decay", "unknown")


def _misshapen(there: Named, known: Named) -> list[str]:
    """Return in words which moments there have another shape than here."""
    shapes = [
        (f"{name}.{moment}", tuple(value.shape), known[name].moments[moment].shape)
        for name, (moments, _) in there.items()
        for moment, value in moments.items()
        if name in known and moment in known[name].moments and hasattr(value, "shape")
    ]
    return [
        f"{name} has the shape {old}, and {new} here" for name, old, new in shapes if old != new
    ]


def _array(label: str, moment: str, value: Any) -> Array:
    """Return a PyTorch tensor as an array."""
    try:
        return _counted(moment, np.asarray(value))
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{label} must be a float32 or float64 tensor on the CPU: {error}"
        ) from error


def _called(state: Any, names: Sequence[str] | None) -> dict[Any, str]:
    """Return the names of a PyTorch optimizer's parameters by its own keys for them: their numbers.

    In the form of ``torch.distributed.checkpoint`` its keys are the names.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"expected what state_dict() of a PyTorch optimizer returns, not a {type(state).__name__}"
        )
    if not {"state", "param_groups"} <= set(state):
        raise TypeError(
            "expected what state_dict() of a PyTorch optimizer returns, with the keys 'state' and "
            f"'param_groups', not {short(list(state))}"
        )
    groups, moments = state["param_groups"], state["state"]
    well_formed = isinstance(groups, (list, tuple)) and isinstance(moments, Mapping)
    if not well_formed or not all(isinstance(g, Mapping) and "params" in g for g in groups):
        raise TypeError(
            "expected a list of groups with 'params', and moments by number, in a state"
        )
    if not all(isinstance(entry, Mapping) for entry in moments.values()):
        raise TypeError(
            "in a state, the moments of each parameter must be a dict from their names to arrays"
        )
    numbers = [number for group in groups for number in group["params"]]
    known = [name for group in groups for name in group.get("param_names", ())]
    known = known or [number for number in numbers if isinstance(number, str)]
    found = list(names) if names is not None else known
    if sorted(found) == sorted(known) and found != known:
        first = next(i for i, name in enumerate(known) if name != found[i])
        raise ValueError(
            f"names are in another order than in the state: {found[first]!r} stands in the place of "
            f"{known[first]!r}"
        )
    if not found and numbers:
        raise ValueError(
            "that optimizer does not know its parameters by name: give names=[...] in its order, or "
            "make it from pairs of names and parameters"
        )
    if len(found) != len(numbers) or len(set(found)) < len(found):
        raise ValueError(
            f"expected {len(numbers)} different names, one for each of its parameters, got {len(found)}"
        )
    return dict(zip(numbers, found, strict=True))
