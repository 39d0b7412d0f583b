"""What all files have in common: they are read whole or refused, and written whole or not at all.

Names, shapes and dtypes are read first.  An array is read only once they fit, so a file costs little
more than its own size, even if it claims to be huge.  Nothing is ever unpickled.  Everything that is
wrong with a file is reported in one :class:`CheckpointError`, before anything changes.  What the disk
refuses is reported the same way.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loradora import formats, saving
from loradora.formats import Arrays, Described, Entry
from minigrad import Tensor

#: The largest config or index that is read or written.
MOST_BYTES = 2**20

#: What messages say of a file in PyTorch's own format, and the suffixes by which it is known.
PICKLE = "a pickle, which can run any code and is never read here"
PICKLES = ".bin", ".ckpt", ".pkl", ".pt", ".pth"


class CheckpointError(ValueError):
    """A file that is missing, damaged, does not fit the model, or cannot be written."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) < 5000 else f"{message[:5000]} ... and more")


@contextlib.contextmanager
def reported(what: str, path: Path | None = None) -> Iterator[None]:
    """Turn whatever goes wrong inside into a CheckpointError that says what, where and why."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        place = getattr(error, "filename", None) or path
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CheckpointError(f"{what}{f' {place}' if place else ''}: {reason}") from error


# ----------------------------------------------------------------------------- reading


def read(path: Path, most: int | None = None) -> bytes:
    """Return the bytes of a regular file, if there are no more than ``most``."""
    if path.suffix == ".safetensors":
        formats.library(formats.READING)
    with reported("cannot read", path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("it is not a file")  # for example a pipe
        with open(path, "rb") as file:
            data = file.read() if most is None else file.read(most + 1)
        if most is not None and len(data) > most:
            raise ValueError(f"it is larger than {most} bytes")
    return data


def described(path: Path, data: bytes) -> Described:
    """Return the arrays in an ``.npz`` or ``.safetensors`` file, by name, and the file's metadata."""
    if path.suffix == ".safetensors":
        with reported(f"{path} is not a valid safetensors file"):
            return formats.describe_safetensors(data)
    is_what = PICKLE if path.suffix in PICKLES else "not a valid .npz file"
    with reported(f"{path} is {is_what}"):
        return formats.describe_npz(data)


def fitting(
    source: str | Path, entries: Mapping[str, Entry], expected: Mapping[str, Tensor]
) -> Arrays:
    """Return the arrays that are expected and fit, in the dtypes expected."""
    arrays = {}
    for key, p in expected.items():
        entry = entries.get(key)
        if entry is not None and entry.shape == p.shape and entry.dtype.kind == "f":
            with np.errstate(over="ignore"), reported(f"{source} is damaged at {key}"):
                arrays[key] = entry.read().astype(p.dtype)  # what is too large becomes infinity
    return arrays


def refuse(source: str | Path, wrong: list[str], arrays: Arrays, allow_nan: bool) -> None:
    """Raise CheckpointError listing what is wrong and, unless ``allow_nan``, what is not finite."""
    bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if bad and not allow_nan:
        wrong = [*wrong, f"NaN or infinity in {', '.join(bad)} (see allow_nan)"]
    if wrong:
        raise CheckpointError(f"{source}: {'; '.join(wrong)}")


def parsed(path: Path, name: str, text: str | bytes) -> dict[str, Any]:
    """Return a JSON object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a key occurs twice")
        return values

    with reported(f"{name} in {path}"):
        values = json.loads(text, object_pairs_hook=unique)
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got {type(values).__name__}")
    return values


def is_plain(name: object) -> bool:
    """Whether ``name`` can name a file or folder inside a given folder, on every system."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        return False
    return len(name.encode(errors="replace")) <= 255 and name.isprintable()


# ----------------------------------------------------------------------------- writing


def write(files: Mapping[Path, bytes], make: Sequence[Path] = ()) -> None:
    """Write files, all or none; make these folders if they are not there."""
    with reported("cannot write", next(iter(files))), saving.folders(make):
        saving.write(files)
