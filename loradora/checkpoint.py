"""Files of an adapter: one ``.npz``, or the folder that PEFT reads and writes.

The tensors tell which layers are adapted, and with which rank; the config says the rest.

A save leaves the old files or the new ones (:mod:`loradora.saving`).  PEFT's folder holds two that must
go together, and they are renamed one after the other.  So the weights note the scaling of each layer and
the options that make an adapter what it is.  A config that says something else is refused.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loradora import formats, saving
from loradora.config import LoraConfig, of_trained
from loradora.files import (
    MOST_BYTES,
    PICKLE,
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
from loradora.nn import misfits, short
from minigrad import Tensor
from minigrad.tensor import as_array

#: What PEFT puts before the path of every tensor.
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

#: What the weights in PEFT's folder note, so that a config from another save is noticed: the scaling of
#: each layer, and the options that make an adapter what it is.  (An .npz needs no notes: its config lies
#: beside the tensors, under a checksum.)
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

README = """---
library_name: peft
---
A LoRA or DoRA adapter in the layout of Hugging Face PEFT, written by loradora.
"""


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
        What the weights note about the config, by :data:`SCALINGS` and :data:`KIND`; PEFT notes nothing.
    size
        The length of the file with the tensors, in bytes.
    """

    config: LoraConfig
    tensors: dict[str, Entry]
    notes: dict[str, Any]
    size: int


class Saved(NamedTuple):
    """What a save keeps of an adapter: its config, its tensors by name, and s of every adapted layer."""

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
    with reported("cannot write", path):
        data = formats.npz({CONFIG: text, **{PREFIX + k: v for k, v in adapter.arrays.items()}})
    write({path: data})


def save_folders(adapters: Mapping[Path, Saved]) -> None:
    """Write adapters in PEFT's layout, each into its own folder, all or none; keep a README.md there."""
    files = {}
    for folder, (config, arrays, scalings) in adapters.items():
        tensors = {PREFIX + key: array for key, array in arrays.items()}
        notes = {SCALINGS: json.dumps(scalings), KIND: json.dumps(_kind(config), sort_keys=True)}
        with reported("cannot write", folder):
            if not (folder / "README.md").exists():
                files[folder / "README.md"] = README.encode()
            files[folder / CONFIG] = _config_text(config)
            data = formats.safetensors(tensors, "save_adapter() writes .npz without it", notes)
        files[folder / WEIGHTS] = data
    write(files, make=list(adapters))


def load(source: str | Path) -> AdapterFile:
    """Return what is in a PEFT folder or an ``.npz`` file; tensors are described, not read.

    Raises
    ------
    CheckpointError
        For a file that is missing or damaged, or a config that is not valid.
    """
    path = _here(source)
    with reported("cannot read", path):
        folder = path.is_dir()
        if folder and (path / PICKLED).exists() and not (path / WEIGHTS).exists():
            raise CheckpointError(
                f"{path} holds {PICKLED}, {PICKLE}; PEFT "
                f"writes {WEIGHTS} when it loads the adapter and calls save_pretrained()"
            )
    if path.name in (CONFIG, WEIGHTS):
        raise CheckpointError(f"{path} is a part of an adapter: give its folder")
    return _folder(path) if folder else _npz(path)


def _here(source: str | Path) -> Path:
    """Return the path of a file or a folder, which may look like the name of a repository."""
    path = Path(source)
    with reported("cannot read", path):
        if not path.exists():
            raise ValueError("No such file or directory, and nothing is downloaded")
    return path


def _npz(path: Path) -> AdapterFile:
    data = read(path)
    entries, _ = described(path, data)
    if CONFIG not in entries:
        raise CheckpointError(f"{path} holds no adapter: it has no {CONFIG}")
    config = _config(path, _text_of(path, entries.pop(CONFIG)), of_trained)
    return AdapterFile(config, _without_prefix(path, entries), {}, len(data))


def _folder(path: Path) -> AdapterFile:
    """Return what is in a PEFT folder; wait if its files do not match, as a save may be going on."""
    for seconds in (0.01, 0.02, 0.04, 0.08, 0):
        text, data = read(path / CONFIG, MOST_BYTES), read(path / WEIGHTS)
        config = _config(path, text, of_trained)
        entries, metadata = described(path / WEIGHTS, data)
        notes = {n: parsed(path, n, metadata[n]) for n in (SCALINGS, KIND) if n in metadata}
        if notes.get(KIND, {}).items() <= _kind(config).items():
            break
        time.sleep(seconds)
    return AdapterFile(config, _without_prefix(path, entries), notes, len(data))


def as_file(source: str, config: LoraConfig, state: Mapping[str, npt.ArrayLike]) -> AdapterFile:
    """Return tensors, given by their full names, as if they were read from a file.

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

    Unless ``allow_nan``, they must also be finite in that dtype.  The file may also hold constants of the
    base, because PEFT writes those of an output layer that is adapted.  They must have the values of the
    base.  The config must be the one that the weights note: the same layers, with the same scaling, in
    an adapter of the same kind.

    Raises
    ------
    CheckpointError
        Listing every tensor that is missing, unexpected, misshapen, of a wrong dtype or not finite,
        every constant that differs, and where the config comes from another save or was edited.
    """
    tensors = {k: e for k, e in file.tensors.items() if not _again(k, file.config, expected)}
    known = {**expected, **{key: p for key, p in constants.items() if key in tensors}}
    wrong = misfits({key: p.shape for key, p in known.items()}, tensors)
    wrong += _halves(tensors, expected)
    # tensors that fit no layer of the model are listed already
    wrong += _differences(file, scalings, whole=not wrong)
    for key, array in fitting(source, tensors, constants).items():
        if not np.array_equal(array, constants[key].data, equal_nan=True):
            tied = ", or tied there, but not here, to a module that trains whole"
            tied = tied if file.config.ensure_weight_tying else ""
            wrong.append(f"{key} differs from the base's: it was trained on another base{tied}")
    arrays = fitting(source, tensors, expected)
    refuse(source, wrong, arrays, allow_nan)
    return arrays


def _halves(given: Container[str], expected: Mapping[str, Tensor]) -> list[str]:
    """Return in words which names are missing, although their tensor is there under another name."""
    there = {p: key for key, p in expected.items() if key in given}
    return [
        f"{key} is tied to {there[p]} here, so both must be there; PEFT ties them only in a model of "
        "transformers: to let one keep the value of the base, set ensure_weight_tying=False"
        for key, p in expected.items()
        if key not in given and p in there
    ]


def _kind(config: LoraConfig) -> dict[str, Any]:
    """Return the options that make an adapter what it is, apart from its tensors and scalings."""
    kind: dict[str, Any] = json.loads(
        json.dumps({n: getattr(config, n) for n in OPTIONS}, default=list)
    )
    return kind


def _differences(file: AdapterFile, scalings: Mapping[str, float], whole: bool) -> list[str]:
    """Return in words how the config contradicts the notes and, if ``whole``, which layers are gone."""
    kind, noted = _kind(file.config), file.notes.get(SCALINGS, scalings)
    found = [
        f"{name} is {short(kind[name])}, but was {short(value)}"
        for name, value in file.notes.get(KIND, {}).items()
        if name in kind and kind[name] != value
    ]
    by_change: dict[tuple[str, str], list[str]] = {}
    for path, s in scalings.items():
        if noted.get(path) != s:
            by_change.setdefault((f"{s:g}", short(noted.get(path))), []).append(path)
    found += [
        f"the scaling of {', '.join(paths)} is {now}, but was {before}"
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


#: What PEFT inserts into the path of a bias that it writes twice; the second has the adapter's name.
INNER = r"\.(original_module|modules_to_save)(?=\.)", r"\.modules_to_save\.[^.]+(?=\.)"


def _again(key: str, config: LoraConfig, expected: Container[str]) -> bool:
    """Whether PEFT repeats a bias of a module that trains whole under this name, an inner one."""
    if config.bias != "all" or not config.modules_to_save or key in expected or len(key) > 1000:
        return False
    found = [part.span() for pattern in INNER for part in re.finditer(pattern, key)]
    return any(key[:start] + key[end:] in expected for start, end in found)


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can name an adapter, and so a folder inside a given one."""
    if not is_plain(name) or name.startswith(saving.PREFIX):
        raise ValueError(f"an adapter's name becomes a folder: it cannot be {name!r}")


def save_config(folder: Path, config: LoraConfig) -> None:
    """Write only a config, as ``adapter_config.json`` in ``folder``."""
    write({folder / CONFIG: _config_text(config, config.inference_mode)}, make=[folder])


def load_config(folder: Path) -> LoraConfig:
    """Return the config in ``folder``; raise CheckpointError if it is missing or not valid."""
    return _config(folder, read(_here(folder) / CONFIG, MOST_BYTES), LoraConfig.from_dict)


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
    """Return the config that ``make`` builds from a JSON object."""
    values = parsed(path, CONFIG, text)
    try:
        return make(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{CONFIG} in {path}: {error}") from error


def _text_of(path: Path, entry: Entry) -> bytes:
    """Return the config that an ``.npz`` file holds as an array of bytes."""
    if math.prod(entry.shape) * entry.dtype.itemsize > MOST_BYTES:
        raise CheckpointError(f"{CONFIG} in {path} is larger than {MOST_BYTES} bytes")
    with reported(f"{path} is damaged at {CONFIG}"):
        return entry.read().tobytes()
