"""Files: an adapter as one ``.npz``, or as PEFT's folder; a model as ``.npz`` or ``.safetensors``.

Files are never unpickled.  Names, shapes and dtypes are read first, and must fit before an array is.  So
a file costs little more than its own size, whatever it says of itself.  All that can be wrong with it is
reported as one :class:`CheckpointError`, before anything changes.  So is all that the disk refuses.

A save leaves the old files or the new ones (:mod:`loradora.saving`).  PEFT's folder holds two that must
go together, and they are renamed one after the other.  So the weights note the scaling of each layer and
the options that make an adapter what it is, and a config that says something else is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loradora import formats, moments, saving
from loradora.config import LoraConfig, of_trained
from loradora.formats import Arrays, Described, Entry
from loradora.nn import Module, misfits, named_tensors, short
from loradora.optim import Optimizer
from minigrad import Tensor
from minigrad.engine import Outline
from minigrad.tensor import as_array

#: What PEFT puts before the path of every tensor.
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

#: What transformers calls a model's one file, or the index of its several ones.
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"

#: What the weights in PEFT's folder note, so that a config that is not theirs is seen: the scaling of
#: each layer, and the options that make an adapter what it is.  (In an .npz the config lies beside the
#: tensors, under a checksum.)
SCALINGS, KIND = "loradora_scalings", "loradora_kind"
OPTIONS = (
    "bias",
    "detach_norm",
    "init_lora_weights",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "use_dora",
)

#: No config is larger.
MOST_BYTES = 2**20

README = """---
library_name: peft
---
A LoRA or DoRA adapter in the layout of Hugging Face PEFT, written by loradora.
"""


class CheckpointError(ValueError):
    """A file that is missing, damaged, does not fit the model, or cannot be written."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) < 5000 else f"{message[:5000]} ... and more")


@contextlib.contextmanager
def _reported(what: str, path: Path | None = None) -> Iterator[None]:
    """Turn whatever goes wrong inside into a CheckpointError that says what, where and why."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        place = getattr(error, "filename", None) or path
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CheckpointError(f"{what}{f' {place}' if place else ''}: {reason}") from error


# ----------------------------------------------------------------------------- models


def save_model(file: str | Path, model: Module) -> None:
    """Write the parameters of ``model`` by name into an ``.npz`` or a ``.safetensors`` file.

    The suffix decides.  PyTorch reads the latter, which needs the extra ``peft`` (safetensors).  Of a
    PeftModel this is what acts now: the base and the active adapters.  ``save_adapter`` keeps the others.

    Names and shapes are those of PyTorch, so ``load_state_dict(safetensors.torch.load_file(file))``
    takes such a file.  A tensor that several modules share is there once, under its first name, as in
    all files of Hugging Face; ``safetensors.torch.load_model(net, file)`` finds its other names.

    Raises
    ------
    CheckpointError
        For another suffix, and if the disk refuses; an old file stays as it was.
    ImportError
        Without safetensors, naming the extra and the alternative.
    """
    _save(file, {name: p.data for name, p in model.named_parameters()}, "save_model()")


def _save(file: str | Path, arrays: Arrays, function: str) -> None:
    """Write arrays by name into a file, of which the suffix says the format."""
    path = Path(file)
    if path.suffix not in (".npz", ".safetensors"):
        raise CheckpointError(f"cannot write {path}: it ends in neither .npz nor .safetensors")
    with _reported("cannot write", path):
        if path.suffix == ".npz":
            data = formats.npz(arrays)
        else:
            data = formats.safetensors(arrays, f"{function} also writes .npz, without it")
    _write({path: data})


def load_model(file: str | Path, model: Module, *, allow_nan: bool = False) -> None:
    """Set the parameters of ``model`` from an ``.npz`` file, or from ``.safetensors`` files of PyTorch.

    A large model lies in several of these, its shards.  Then give the index beside them, say
    ``model.safetensors.index.json``: its ``weight_map`` names the shard of each tensor.  One shard is
    read after the other, and let go before the next.  So the memory needed is that of the old arrays,
    the new arrays, and one or two shards.  A single file is read as a model of one shard.

    Each parameter takes the dtype that it has in ``model``, in which it must be finite, unless
    ``allow_nan``.  A tensor that several modules share may have any of its names, or all.

    Raises
    ------
    CheckpointError
        Listing everything that is missing, unexpected, misshapen or not finite, every shard that is
        missing or damaged, and every tensor in another shard than the index says; a prefix that all
        names have, such as ``module.``, is named once.  Also for an index that is not valid, or names a
        pickle or a file elsewhere, and for a PeftModel of another base.  Nothing is changed.

    Notes
    -----
    Shards and their index are described by Hugging Face: "Sharded checkpoints" in the guide to big
    models of transformers, and ``save_torch_state_dict`` of huggingface_hub.
    """
    path = Path(file)
    with _reported("cannot read", path):
        if path.is_dir():
            raise ValueError(f"it is a folder: give the file in it, {INDEX} or {MODEL}")
    index = _index(path) if path.suffix == ".json" else {}
    parameters = dict(named_tensors(model))
    held: dict[str, dict[str, Outline]] = {}
    arrays: Arrays = {}
    wrong: list[str] = []
    for shard in dict.fromkeys(index.values()) or [path.name]:
        try:
            held[shard], fitting = _shard(path.parent / shard, parameters)
            arrays |= fitting
        except CheckpointError as error:
            if not index:
                raise
            wrong.append(str(error))
        with _reported(str(path)):
            formats.check_number(range(sum(map(len, held.values()))))
    wrong += _misplaced(index, held) if index else []
    wrong += _misnamed(model, held, index.keys())
    _refuse(path, wrong, arrays, allow_nan)
    with _reported(str(path)):
        model.load_state_dict(arrays, copy=False)


def _index(path: Path) -> dict[str, str]:
    """Return which file in the same folder holds each tensor, as an index says."""
    places = _parsed(path.parent, path.name, _read(path, MOST_BYTES)).get("weight_map")
    with _reported(f"{path.name} in {path.parent}"):
        if not isinstance(places, dict) or not places:
            raise ValueError("it has no weight_map, from the names of tensors to those of files")
        formats.check_number(places)
        "".join(places).encode()  # half a pair of surrogates is in no tensor's name
        pickles = [name for name in places.values() if str(name).endswith(".bin")]
        if pickles:
            raise ValueError(
                f"{short(pickles[0])} is a pickle, which can run any code and is never read here: "
                "safetensors.torch and save_pretrained() of transformers write .safetensors"
            )
        strange = [name for name in places.values() if not _is_shard(name)]
        if strange:
            raise ValueError(
                f"it names {short(strange[0])}, which is no .safetensors file beside it"
            )
    return places


def _is_shard(name: object) -> bool:
    """Whether an index may give tensors to a file of this name: it leads nowhere else."""
    return isinstance(name, str) and _is_plain(name) and Path(name).suffix == ".safetensors"


def _shard(path: Path, expected: Mapping[str, Tensor]) -> tuple[dict[str, Outline], Arrays]:
    """Return the outlines of all arrays in a file, and those arrays that are expected and fit.

    Nothing of this refers to the bytes of the file, which are gone when it is returned.
    """
    entries, _ = _entries(path, _read(path))
    outlines = {name: Outline(e.shape, e.dtype) for name, e in entries.items()}
    return outlines, _values(path, entries, expected)


def _misplaced(index: Mapping[str, str], held: Mapping[str, Collection[str]]) -> list[str]:
    """Return in words which tensors do not lie in the shards where the index has them."""
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
    model: Module, held: Mapping[str, Mapping[str, Outline]], listed: Iterable[str]
) -> list[str]:
    """Return in words what does not fit the model; what an index lists is not missing once more."""
    found = {name: outline for outlines in held.values() for name, outline in outlines.items()}
    prefix = _extra_prefix(dict(named_tensors(model)), found)
    bare = {name.removeprefix(prefix): outline for name, outline in found.items()}
    lost = {name.removeprefix(prefix) for name in listed} - bare.keys()
    expected = model.expected({*bare, *lost})
    wrong = misfits({name: expected[name] for name in expected if name not in lost}, bare)
    if prefix:
        wrong.insert(
            0,
            f"all names begin with {prefix!r}, and none does here: load_state_dict() takes them after "
            f"name.removeprefix({prefix!r}), or save what is inside, say net.module.state_dict()",
        )
    return wrong


def _extra_prefix(expected: Container[str], found: Collection[str]) -> str:
    """Return what all names begin with that would be expected without it, as DDP's do; or nothing."""
    if any(name in expected for name in found):
        return ""
    steps = next(iter(found), "").split(".", 10)[:-1]  # no wrappers are nested deeper
    prefixes = itertools.accumulate(f"{step}." for step in steps)
    shared = itertools.takewhile(lambda p: all(name.startswith(p) for name in found), prefixes)
    return next((p for p in shared if any(n.removeprefix(p) in expected for n in found)), "")


def _values(
    source: str | Path, entries: Mapping[str, Entry], expected: Mapping[str, Tensor]
) -> Arrays:
    """Return the arrays that are expected and fit, in the dtypes expected."""
    arrays = {}
    for key, p in expected.items():
        entry = entries.get(key)
        if entry is not None and entry.shape == p.shape and entry.dtype.kind == "f":
            with np.errstate(over="ignore"), _reported(f"{source} is damaged at {key}"):
                arrays[key] = entry.read().astype(p.dtype)  # what is too large becomes infinity
    return arrays


def _refuse(source: str | Path, wrong: list[str], arrays: Arrays, allow_nan: bool) -> None:
    """Raise CheckpointError listing what is wrong and, unless ``allow_nan``, what is not finite."""
    bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if bad and not allow_nan:
        wrong = [*wrong, f"NaN or infinity in {', '.join(bad)} (see allow_nan)"]
    if wrong:
        raise CheckpointError(f"{source}: {'; '.join(wrong)}")


# ----------------------------------------------------------------------------- optimizers


def save_optimizer(file: str | Path, optimizer: Optimizer, model: Module) -> None:
    """Write what ``optimizer`` remembers of ``model`` into an ``.npz`` or a ``.safetensors`` file.

    With the adapter, or the model, this is all that an interrupted training needs, here or in PyTorch:
    parameters have the names of PyTorch's ``named_parameters()``, of PEFT's for an adapted model, and the
    arrays are called ``state.<name>.exp_avg`` and so on (:mod:`loradora.moments`).

    Raises
    ------
    CheckpointError, ImportError
        As :func:`save_model`.
    TypeError, ValueError
        For what is no optimizer or no model, and for a parameter that the model has not.
    """
    _save(file, moments.flat(moments.remembered(optimizer, model)), "save_optimizer()")


def load_optimizer(file: str | Path, optimizer: Optimizer, model: Module) -> None:
    """Let ``optimizer`` go on where the one was that a file of :func:`save_optimizer` is about.

    Raises
    ------
    CheckpointError
        Listing all that does not fit: parameters that only one side trains, shapes, moments of another
        optimizer, NaN, a dtype that would lose digits, options that are not ours or differ in what is
        one group here.  Nothing is changed.
    TypeError, ValueError
        As :func:`save_optimizer`.
    """
    path = Path(file)
    moments.names_of(optimizer, model)  # who errs there has not given a bad file
    entries, _ = _entries(path, _read(path))
    with _reported(str(path)):
        arrays = {name: entry.read() for name, entry in entries.items()}
        moments.recall(optimizer, model, moments.from_flat(arrays))


# ----------------------------------------------------------------------------- adapters


class AdapterFile(NamedTuple):
    """What an adapter's file holds.

    Attributes
    ----------
    config
        Its config.
    tensors
        Its tensors by name, without the prefix; described, not read.
    notes
        What the weights note of the config, by :data:`SCALINGS` and :data:`KIND`; PEFT notes nothing.
    size
        The length of the file with the tensors, in bytes.
    """

    config: LoraConfig
    tensors: dict[str, Entry]
    notes: dict[str, Any]
    size: int


class Saved(NamedTuple):
    """What is saved of an adapter: its config, its tensors by name, and s of every adapted layer."""

    config: LoraConfig
    arrays: Arrays
    scalings: Mapping[str, float]


def save_npz(file: str | Path, adapter: Saved) -> None:
    """Write an adapter into one ``.npz`` file: PEFT's tensors and, as bytes, its config."""
    path = Path(file)
    if path.suffix != ".npz":
        raise CheckpointError(
            f"cannot write {path}: save_adapter() writes .npz; save_pretrained() writes PEFT's folder, "
            f"with {WEIGHTS} in it"
        )
    text = np.frombuffer(_config_text(adapter.config), np.uint8)
    with _reported("cannot write", path):
        data = formats.npz({CONFIG: text, **{PREFIX + k: v for k, v in adapter.arrays.items()}})
    _write({path: data})


def save_folders(adapters: Mapping[Path, Saved]) -> None:
    """Write adapters in PEFT's layout, each into a folder, all or none; a README.md there stays."""
    files = {}
    for folder, (config, arrays, scalings) in adapters.items():
        tensors = {PREFIX + key: array for key, array in arrays.items()}
        notes = {SCALINGS: json.dumps(scalings), KIND: json.dumps(_kind(config), sort_keys=True)}
        with _reported("cannot write", folder):
            if not (folder / "README.md").exists():
                files[folder / "README.md"] = README.encode()
            files[folder / CONFIG] = _config_text(config)
            data = formats.safetensors(tensors, "save_adapter() writes .npz without it", notes)
        files[folder / WEIGHTS] = data
    _write(files, make=list(adapters))


def load(source: str | Path) -> AdapterFile:
    """Return what is in a PEFT folder or an ``.npz`` file; tensors are described, not read.

    Raises
    ------
    CheckpointError
        For a file that is missing or damaged, or a config that is not valid.
    """
    path = Path(source)
    with _reported("cannot read", path):
        folder = path.is_dir()
        if folder and (path / PICKLE).exists() and not (path / WEIGHTS).exists():
            raise CheckpointError(
                f"{path} holds {PICKLE}, a pickle, which can run any code and is never read here; PEFT "
                f"writes {WEIGHTS} when it loads the adapter and calls save_pretrained()"
            )
    if path.name in (CONFIG, WEIGHTS):
        raise CheckpointError(f"{path} is a part of an adapter: give its folder")
    return _folder(path) if folder else _npz(path)


def _npz(path: Path) -> AdapterFile:
    data = _read(path)
    entries, _ = _entries(path, data)
    if CONFIG not in entries:
        raise CheckpointError(f"{path} holds no adapter: it has no {CONFIG}")
    config = _config(path, _text_of(path, entries.pop(CONFIG)), of_trained)
    return AdapterFile(config, _without_prefix(path, entries), {}, len(data))


def _folder(path: Path) -> AdapterFile:
    """Return what is in a PEFT folder; if its files do not go together, a save may be going on: wait."""
    for seconds in (0.01, 0.02, 0.04, 0.08, 0):
        text, data = _read(path / CONFIG, MOST_BYTES), _read(path / WEIGHTS)
        config = _config(path, text, of_trained)
        entries, metadata = _entries(path / WEIGHTS, data)
        notes = {n: _parsed(path, n, metadata[n]) for n in (SCALINGS, KIND) if n in metadata}
        if notes.get(KIND, {}).items() <= _kind(config).items():
            break
        time.sleep(seconds)
    return AdapterFile(config, _without_prefix(path, entries), notes, len(data))


def as_file(source: str, config: LoraConfig, state: Mapping[str, npt.ArrayLike]) -> AdapterFile:
    """Return tensors by their full names as if they were read from a file.

    Raises
    ------
    CheckpointError
        For names without PEFT's prefix.
    """
    arrays = {key: as_array(value, key) for key, value in state.items()}
    entries = {
        key: Entry(a.shape, a.dtype, partial(np.asarray, a, order="C")) for key, a in arrays.items()
    }
    size = sum(a.nbytes for a in arrays.values())
    return AdapterFile(config, _without_prefix(source, entries), {}, size)


def _without_prefix(source: str | Path, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    foreign = [key for key in entries if not key.startswith(PREFIX)]
    if foreign:
        raise CheckpointError(
            f"{source}: tensors without the prefix {PREFIX!r}: {', '.join(foreign)}"
        )
    return {key.removeprefix(PREFIX): entry for key, entry in entries.items()}


def check(
    source: str | Path,
    file: AdapterFile,
    expected: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    scalings: Mapping[str, float],
    allow_nan: bool,
) -> Arrays:
    """Return the tensors of ``file``, in the dtypes expected, if they are exactly those expected.

    Unless ``allow_nan`` they must also be finite, in that dtype.  Constants of the base may be there,
    too, as PEFT writes those of an output layer that is adapted; they must have the values of the base.
    And the config must be the one that the weights note: the same layers, scaled as they were, in an
    adapter of the same kind.

    Raises
    ------
    CheckpointError
        Listing every name that is missing, unexpected, misshapen, of a wrong dtype or not finite,
        every constant that differs, and where the config is of another save, or was edited.
    """
    tensors = {k: e for k, e in file.tensors.items() if not _again(k, file.config, expected)}
    known = {**expected, **{key: p for key, p in constants.items() if key in tensors}}
    wrong = misfits({key: p.shape for key, p in known.items()}, tensors)
    wrong += _halves(tensors, expected)
    # tensors that fit no layer of the model have been listed
    wrong += _differences(file, scalings, whole=not wrong)
    for key, array in _values(source, tensors, constants).items():
        if not np.array_equal(array, constants[key].data, equal_nan=True):
            tied = ", or tied to a module that trains whole, as it is not here"
            tied = tied if file.config.ensure_weight_tying else ""
            wrong.append(f"{key} differs from the base's: it was trained on another base{tied}")
    arrays = _values(source, tensors, expected)
    _refuse(source, wrong, arrays, allow_nan)
    return arrays


def _halves(given: Container[str], expected: Mapping[str, Tensor]) -> list[str]:
    """Return in words which names are missing, of tensors that are there under another one."""
    there = {p: key for key, p in expected.items() if key in given}
    return [
        f"{key} is tied to {there[p]} here, so both must be there; PEFT ties them only in a model of "
        "transformers: if one is to keep the value of the base, set ensure_weight_tying=False"
        for key, p in expected.items()
        if key not in given and p in there
    ]


def _kind(config: LoraConfig) -> dict[str, Any]:
    """Return the options that make an adapter what it is, beside the tensors and the scalings."""
    kind: dict[str, Any] = json.loads(
        json.dumps({n: getattr(config, n) for n in OPTIONS}, default=list)
    )
    return kind


def _differences(file: AdapterFile, scalings: Mapping[str, float], whole: bool) -> list[str]:
    """Return in words where the config does not say what the weights note; ``whole``, of all layers."""
    kind, noted = _kind(file.config), file.notes.get(SCALINGS, scalings)
    found = [
        f"{name} is {short(kind[name])}, and was {short(value)}"
        for name, value in file.notes.get(KIND, {}).items()
        if name in kind and kind[name] != value
    ]
    by_change: dict[tuple[str, str], list[str]] = {}
    for path, s in scalings.items():
        if noted.get(path) != s:
            by_change.setdefault((f"{s:g}", short(noted.get(path))), []).append(path)
    found += [
        f"the scaling of {', '.join(paths)} is {now}, and was {before}"
        for (now, before), paths in by_change.items()
    ]
    gone = [path for path in noted if whole and path not in scalings]
    found += [f"the tensors of {', '.join(gone)} are gone"] if gone else []
    if not found:
        return []
    return [
        f"{CONFIG} is not the one saved with {WEIGHTS} (if a save is going on, load again), or was "
        f"edited: {'; '.join(found)}"
    ]


#: What PEFT puts into the path of a bias that it writes again; the second with the adapter's name.
INNER = r"\.(original_module|modules_to_save)(?=\.)", r"\.modules_to_save\.[^.]+(?=\.)"


def _again(key: str, config: LoraConfig, expected: Container[str]) -> bool:
    """Whether PEFT has written a bias of a module that trains whole under an inner name, too."""
    if config.bias != "all" or not config.modules_to_save or key in expected or len(key) > 1000:
        return False
    found = [part.span() for pattern in INNER for part in re.finditer(pattern, key)]
    return any(key[:start] + key[end:] in expected for start, end in found)


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can name an adapter, that is a folder inside the given one."""
    if not _is_plain(name) or name.startswith(saving.PREFIX):
        raise ValueError(f"an adapter's name becomes a folder: it cannot be {name!r}")


def _is_plain(name: object) -> bool:
    """Whether ``name`` can be that of a file or folder inside a given one, on every system."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        return False
    return len(name.encode(errors="replace")) <= 255 and name.isprintable()


def save_config(folder: Path, config: LoraConfig) -> None:
    """Write a config alone, as ``adapter_config.json`` into ``folder``."""
    _write({folder / CONFIG: _config_text(config, config.inference_mode)}, make=[folder])


def load_config(folder: Path) -> LoraConfig:
    """Return the config in ``folder``; CheckpointError for one that is missing or not valid."""
    return _config(folder, _read(folder / CONFIG, MOST_BYTES), LoraConfig.from_dict)


def _config_text(config: LoraConfig, inference_mode: bool = True) -> bytes:
    """Return the JSON of a config, by default as PEFT saves it with an adapter: ready for inference."""
    values = {**config.to_dict(), "inference_mode": inference_mode}
    text = (json.dumps(values, indent=2) + "\n").encode()
    if len(text) > MOST_BYTES:
        raise CheckpointError(
            f"cannot write a config of {len(text)} bytes: at most {MOST_BYTES} are read"
        )
    return text


def _config(path: Path, text: bytes, make: Callable[[Any], LoraConfig]) -> LoraConfig:
    """Return the config that ``make`` makes of a JSON object."""
    values = _parsed(path, CONFIG, text)
    try:
        return make(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{CONFIG} in {path}: {error}") from error


def _parsed(path: Path, name: str, text: str | bytes) -> dict[str, Any]:
    """Return a JSON object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a key occurs twice")
        return values

    with _reported(f"{name} in {path}"):
        values = json.loads(text, object_pairs_hook=unique)
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got {type(values).__name__}")
    return values


# ----------------------------------------------------------------------------- writing


def _write(files: Mapping[Path, bytes], make: Sequence[Path] = ()) -> None:
    """Write files, all or none; make these folders if they are not there."""
    with _reported("cannot write", next(iter(files))), saving.folders(make):
        saving.write(files)


# ----------------------------------------------------------------------------- reading


def _read(path: Path, most: int | None = None) -> bytes:
    """Return what is in a file, if it is a file and not larger than ``most``."""
    if path.suffix == ".safetensors":
        formats.library(formats.READING)
    with _reported("cannot read", path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("it is not a file")  # but, say, a pipe
        with open(path, "rb") as file:
            data = file.read() if most is None else file.read(most + 1)
        if most is not None and len(data) > most:
            raise ValueError(f"it is larger than {most} bytes")
    return data


def _entries(path: Path, data: bytes) -> Described:
    """Return the arrays in an ``.npz`` or ``.safetensors`` file, by name, and the file's metadata."""
    if path.suffix == ".safetensors":
        with _reported(f"{path} is not a valid safetensors file"):
            return formats.describe_safetensors(data)
    with _reported(f"{path} is not a valid .npz file"):
        return formats.describe_npz(data)


def _text_of(path: Path, entry: Entry) -> bytes:
    """Return the config that an ``.npz`` file holds as an array of bytes."""
    if math.prod(entry.shape) * entry.dtype.itemsize > MOST_BYTES:
        raise CheckpointError(f"{CONFIG} in {path} is larger than {MOST_BYTES} bytes")
    with _reported(f"{path} is damaged at {CONFIG}"):
        return entry.read().tobytes()
