"""Files of a model, and of what its optimizer remembers: ``.npz``, or PyTorch's ``.safetensors``.

Names and shapes are PyTorch's, so the files can be exchanged with it in both directions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Container, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from loradora import formats, moments
from loradora.files import (
    MOST_BYTES,
    PICKLE,
    PICKLES,
    CheckpointError,
    described,
    fitting,
    is_plain,
    parsed,
    read,
    refuse,
    reported,
    write,
)
from loradora.formats import Arrays, Entry
from loradora.nn import Module, check_model, misfits, named_tensors, short
from loradora.optim import Optimizer
from minigrad.engine import Outline

T = TypeVar("T")

#: From the name of a tensor in a file to its name in a model, or to None for one that is not wanted.
Renaming: TypeAlias = Callable[[str], "str | None"]

#: What transformers calls a model's only file, and the index of a model in several files.
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


# ----------------------------------------------------------------------------- models


def save_model(file: str | Path, model: Module) -> None:
    """Write the parameters of ``model`` by name into an ``.npz`` or a ``.safetensors`` file.

    The suffix decides.  PyTorch reads ``.safetensors``, which needs the extra ``peft`` (safetensors).
    For a PeftModel the file holds what acts now: the base and the active adapters.  (``save_adapter``
    saves any adapter.  For the names of a plain PyTorch net, save what ``merge_and_unload()`` returns.)

    Names and shapes are PyTorch's, so ``load_state_dict(safetensors.torch.load_file(file))`` takes such a
    file.  A tensor that several modules share is there once, under its first name, as in all files of
    Hugging Face; ``safetensors.torch.load_model(net, file)`` finds its other names.

    Raises
    ------
    CheckpointError
        For another suffix, and if the disk refuses.  An old file then stays as it was.
    ImportError
        Without safetensors, naming the extra and the alternative.
    TypeError
        If ``model`` is not a Module.
    """
    check_model(model)
    _save(file, {name: p.data for name, p in model.named_parameters()}, "save_model()")


def _save(file: str | Path, arrays: Arrays, function: str) -> None:
    """Write arrays by name into a file, in the format that its suffix says."""
    path = Path(file)
    if path.suffix not in (".npz", ".safetensors"):
        raise CheckpointError(f"cannot write {path}: it ends in neither .npz nor .safetensors")
    with reported("cannot write", path):
        if path.suffix == ".npz":
            data = formats.npz(arrays)
        else:
            data = formats.safetensors(arrays, f"{function} also writes .npz, without it")
    write({path: data})


def load_model(
    file: str | Path, model: Module, *, names: Renaming | None = None, allow_nan: bool = False
) -> None:
    """Set the parameters of ``model`` from an ``.npz`` file, or from ``.safetensors`` files of PyTorch.

    A large model is split into several of these, its shards.  Then give the index beside them, usually
    ``model.safetensors.index.json``: its ``weight_map`` names the shard of each tensor.  The shards are
    read one at a time, and each is dropped before the next.  So the memory needed is that of the old
    arrays, the new arrays, and one or two shards.  A single file is read as a model of one shard.

    Each parameter keeps the dtype that it has in ``model``.  Its new values must be finite in that dtype,
    unless ``allow_nan``.  A tensor that several modules share may have any of its names in the file, or
    all.

    Parameters
    ----------
    file
        The file, or the index.
    model
        The model whose parameters are set.
    names
        From the name of a tensor in the file to its name here, or to None for one that is not wanted.
        By default the names are the same, except that a prefix is left off if all of them have it in the
        file and none here: ``module.`` of a wrapped model, or ``bert.`` of a model whose head was left
        out.
    allow_nan
        Accept NaN and infinity.

    Raises
    ------
    CheckpointError
        Listing everything that is missing, unexpected, misshapen or not finite, every shard that is
        missing or damaged, and every tensor in another shard than the index says.  Also for two tensors
        with one name here, for an index that is not valid or names a pickle or a file elsewhere, and for
        a PeftModel of another base.  Nothing is changed.
    TypeError
        If ``model`` is not a Module, and if ``names`` is not a function or returns neither a str nor
        None.

    Notes
    -----
    Shards and their index are described by Hugging Face: "Sharded checkpoints" in the guide to big
    models of transformers, and ``save_torch_state_dict`` of huggingface_hub.

    Examples
    --------
    The layers have other names in the file, and one of them is not wanted:

    >>> import tempfile
    >>> import loradora as ld
    >>> file = Path(tempfile.mkdtemp()) / "net.npz"
    >>> save_model(file, ld.Sequential(ld.Linear(2, 3), ld.Linear(3, 1)))
    >>> layer = ld.Linear(2, 3)
    >>> load_model(file, layer, names={"0.weight": "weight", "0.bias": "bias"}.get)
    """
    check_model(model)
    if names is not None and not callable(names):
        raise TypeError(
            f"names must be a function of a tensor's name in the file, not {short(names)}"
        )
    path = Path(file)
    with reported("cannot read", path):
        if path.is_dir():
            raise ValueError(f"it is a folder: give the file in it, {INDEX} or {MODEL}")
    index = _index(path) if path.suffix == ".json" else {}
    parameters = dict(named_tensors(model))
    held: dict[str, dict[str, Outline]] = {}
    arrays: Arrays = {}
    wrong: list[str] = []
    for shard in dict.fromkeys(index.values()) or [path.name]:
        try:
            entries, _ = described(path.parent / shard, read(path.parent / shard))
            if names is None:
                names = _without_prefix(parameters, index or entries)
            held[shard] = {name: Outline(e.shape, e.dtype) for name, e in entries.items()}
            arrays |= fitting(path.parent / shard, _renamed(entries, names), parameters)
            del entries  # frees what was read before the next shard is
        except CheckpointError as error:
            if not index:
                raise
            wrong.append(str(error))
        with reported(str(path)):
            formats.check_number(range(sum(map(len, held.values()))))
    wrong += _misplaced(index, held) if index else []
    wrong += _misnamed(model, held, index, names or _as_it_is)
    refuse(path, wrong, arrays, allow_nan)
    with reported(str(path)):
        model.load_state_dict(arrays, assign=True)


def _as_it_is(name: str) -> str:
    return name


def _without_prefix(expected: Container[str], found: Collection[str]) -> Renaming:
    """Return a renaming that removes the prefix of all names, if they are expected without it."""
    prefix = _extra_prefix(expected, found)
    return lambda name: name.removeprefix(prefix)


def _renamed(entries: Mapping[str, T], names: Renaming) -> dict[str, T]:
    """Return the entries that are wanted, under their names here."""
    renamed = [(names(name), entry) for name, entry in entries.items()]
    strange = [name for name, _ in renamed if not isinstance(name, (str, type(None)))]
    if strange:
        raise TypeError(f"names must return a str or None, not {short(strange[0])}")
    return {name: entry for name, entry in renamed if name is not None}


def _index(path: Path) -> dict[str, str]:
    """Return which file in the same folder holds each tensor, according to the index."""
    places = parsed(path.parent, path.name, read(path, MOST_BYTES)).get("weight_map")
    with reported(f"{path.name} in {path.parent}"):
        if not isinstance(places, dict) or not places:
            raise ValueError("it has no weight_map, from the names of tensors to those of files")
        formats.check_number(places)
        "".join(places).encode()  # no tensor's name holds half a pair of surrogates
        pickles = [name for name in places.values() if Path(str(name)).suffix in PICKLES]
        if pickles:
            raise ValueError(
                f"{short(pickles[0])} is {PICKLE}: "
                "safetensors.torch and save_pretrained() of transformers write .safetensors"
            )
        strange = [name for name in places.values() if not _is_shard(name)]
        if strange:
            raise ValueError(
                f"it names {short(strange[0])}, which is not a .safetensors file beside it"
            )
    return places


def _is_shard(name: object) -> bool:
    """Whether an index may name this file for its tensors: it must lie in the same folder."""
    return isinstance(name, str) and is_plain(name) and Path(name).suffix == ".safetensors"


def _misplaced(index: Mapping[str, str], held: Mapping[str, Collection[str]]) -> list[str]:
    """Return in words which tensors are not in the shards that the index gives them to."""
    lacking = [
        f"{shard} lacks {name}, which the index gives to it"
        for name, shard in index.items()
        if shard in held and name not in held[shard]
    ]
    return lacking + [
        f"{name} is in {shard}, but the index gives it to {index.get(name, 'no file')}"
        for shard, names in held.items()
        for name in names
        if index.get(name) != shard
    ]


def _misnamed(
    model: Module,
    held: Mapping[str, Mapping[str, Outline]],
    index: Mapping[str, str],
    names: Renaming,
) -> list[str]:
    """Return in words what does not fit the model; what the index lists is not reported twice."""
    found = {name: outline for outlines in held.values() for name, outline in outlines.items()}
    here = _renamed(found, names)
    lost = _renamed(index, names).keys() - here.keys()
    expected = model.expected({*here, *lost})
    wrong = misfits({name: expected[name] for name in expected if name not in lost}, here)
    first: dict[str | None, str] = {}
    for name in found:
        other = first.setdefault(names(name), name)
        if other != name and names(name) is not None:
            wrong.append(f"{other} and {name} would both be {names(name)}")
    return wrong


def _extra_prefix(expected: Container[str], found: Collection[str]) -> str:
    """Return the prefix to leave off, such as DDP's ``module.``, or "".

    All names begin with it, and some are expected without it.
    """
    if any(name in expected for name in found):
        return ""
    steps = next(iter(found), "").split(".", 10)[:-1]  # no wrappers are nested deeper
    prefixes = itertools.accumulate(f"{step}." for step in steps)
    shared = itertools.takewhile(lambda p: all(name.startswith(p) for name in found), prefixes)
    return next((p for p in shared if any(n.removeprefix(p) in expected for n in found)), "")


# ----------------------------------------------------------------------------- optimizers


def save_optimizer(file: str | Path, optimizer: Optimizer, model: Module) -> None:
    """Write what ``optimizer`` remembers of ``model`` into an ``.npz`` or a ``.safetensors`` file.

    Together with the adapter or the model, this is all that an interrupted training needs, here or in
    PyTorch.  Parameters have the names of PyTorch's ``named_parameters()``, or PEFT's for an adapted
    model.  The arrays are called ``state.<name>.exp_avg``, …, ``param_groups.<name>.lr``, ….

    Raises
    ------
    CheckpointError, ImportError
        As :func:`save_model`.
    TypeError, ValueError
        If these are not an optimizer and a model, or the model lacks a parameter of the optimizer.

    Examples
    --------
    >>> import tempfile
    >>> import loradora as ld
    >>> model = ld.Linear(2, 1, rng=0)
    >>> optimizer = ld.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> model([1.0, 2.0]).sum().backward()
    >>> optimizer.step()
    >>> file = Path(tempfile.mkdtemp()) / "optimizer.npz"
    >>> save_optimizer(file, optimizer, model)
    >>> again = ld.SGD(model.parameters())
    >>> load_optimizer(file, again, model)
    >>> again.param_groups[0]
    Group(2 parameters, lr=0.1, momentum=0.9)
    """
    _save(file, moments.flat(moments.remembered(optimizer, model)), "save_optimizer()")


def load_optimizer(file: str | Path, optimizer: Optimizer, model: Module) -> None:
    """Let ``optimizer`` go on from a file that :func:`save_optimizer`, or PyTorch, has written.

    In PyTorch, ``get_optimizer_state_dict`` of ``torch.distributed.checkpoint.state_dict`` returns such a
    state with ``flatten_optimizer_state_dict=True``.  Leave out of the file what is neither a tensor
    nor a number.  (``examples/torch_worker.py`` writes such a file by itself.)

    Raises
    ------
    CheckpointError
        Listing everything that does not fit: parameters that only one side trains, shapes, moments of
        another optimizer, NaN, a dtype that would lose digits, and options that do not exist here or
        differ in what is one group here.  Nothing is changed.
    TypeError, ValueError
        As :func:`save_optimizer`.
    """
    path = Path(file)
    # first, because a wrong argument must not be reported as a bad file
    shapes = {name: p.shape for p, name in moments.names_of(optimizer, model).items()}
    entries, _ = described(path, read(path))
    with reported(str(path)):
        arrays = {key: _read_if_small(key, entry, shapes) for key, entry in entries.items()}
        moments.recall(optimizer, model, moments.from_flat(arrays))


def _read_if_small(
    key: str, entry: Entry, shapes: Mapping[str, tuple[int, ...]]
) -> npt.NDArray[Any]:
    """Return an array of an optimizer's state; if it cannot fit, a stand-in of its shape."""
    name = key.partition(".")[2].rpartition(".")[0]
    of_numbers = entry.dtype.kind in "biuf"
    if of_numbers and entry.shape in ((), (2,), shapes.get(name)):
        return entry.read()
    return np.broadcast_to(np.zeros((), entry.dtype if of_numbers else "U1"), entry.shape)
