"""Files: an adapter as one ``.npz``, or as PEFT's folder; a model as ``.npz`` or ``.safetensors``.

Files are written atomically: all of them to temporary names beside their targets, then renamed, so a
save that fails leaves the old ones.  They are never unpickled.  Names, shapes and dtypes are read first
and must fit before an array is: whatever is wrong with a file is reported as one
:class:`CheckpointError`, before anything changes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loradora.config import LoraConfig, as_trained
from loradora.nn import Module, misfits
from minigrad import Tensor

Array: TypeAlias = npt.NDArray[Any]

Arrays = dict[str, Array]

#: What PEFT puts before the path of every tensor.
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

#: Under this name PEFT's folder notes the scaling of each layer, so that a config that was edited is
#: noticed.  (In an .npz the config lies beside the tensors, under a checksum.)
SCALINGS = "loradora_scalings"

README = """---
library_name: peft
---
A LoRA or DoRA adapter in the layout of Hugging Face PEFT, written by loradora.
"""


class CheckpointError(ValueError):
    """A file that is missing, damaged, or does not fit the model."""


# ----------------------------------------------------------------------------- models


class Entry(NamedTuple):
    """An array in a file, of which so far only the description has been read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data: Callable[[], Any]
    order: Literal["C", "F"] = "C"

    def read(self) -> Array:
        """Return the array itself, read-only."""
        return np.frombuffer(self.data(), self.dtype).reshape(self.shape, order=self.order)


def save_model(file: str | Path, model: Module) -> None:
    """Write the parameters of ``model`` by name into an ``.npz`` or a ``.safetensors`` file.

    The suffix decides.  PyTorch reads the latter, which needs the extra ``peft`` (safetensors).  Of a
    PeftModel this is what acts now: the base and the active adapters.  ``save_adapter`` keeps the others.

    Raises
    ------
    CheckpointError
        For another suffix, if there is no such directory, or if ``file`` is one.
    ImportError
        Without safetensors, naming the extra and the alternative.
    OSError
        If the disk refuses; an old file stays as it was.
    """
    path, arrays = Path(file), {name: p.data for name, p in model.named_parameters()}
    if path.suffix == ".npz":
        _write({path: _npz(arrays)})
    elif path.suffix == ".safetensors":
        _write({path: _safetensors_file(arrays, "save_model() also writes .npz, without it")})
    else:
        raise CheckpointError(f"cannot write {path}: it ends in neither .npz nor .safetensors")


def load_model(file: str | Path, model: Module, *, allow_nan: bool = False) -> None:
    """Set the parameters of ``model`` from an ``.npz`` file, or a ``.safetensors`` file from PyTorch.

    Each takes the dtype that it has in ``model``, in which it must be finite, unless ``allow_nan``.

    Raises
    ------
    CheckpointError
        Listing everything that is missing, unexpected, misshapen or not finite, and for a PeftModel of
        another base; nothing is changed.
    """
    path = Path(file)
    parameters = dict(model.named_parameters())
    with _entries(path) as (entries, _):
        wrong = misfits(model.expected(entries), entries)
        arrays = _values(path, entries, parameters)
    _refuse(path, wrong, arrays, allow_nan)
    with _reported(str(path)):
        model.load_state_dict(arrays)


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


# ----------------------------------------------------------------------------- adapters


class AdapterFile(NamedTuple):
    """What is in an adapter's file: config, tensors without prefix, and s of every layer, if noted."""

    config: LoraConfig
    tensors: dict[str, Entry]
    scalings: dict[str, Any]


def save_npz(file: str | Path, config: LoraConfig, arrays: Arrays) -> None:
    """Write an adapter into one ``.npz`` file: PEFT's tensors and, as bytes, its config."""
    path = Path(file)
    if path.suffix != ".npz":
        raise CheckpointError(
            f"cannot write {path}: save_adapter() writes .npz; save_pretrained() writes PEFT's folder, "
            f"with {WEIGHTS} in it"
        )
    text = np.frombuffer(_config_text(config).encode(), np.uint8)
    _write({path: _npz({CONFIG: text, **{PREFIX + k: v for k, v in arrays.items()}})})


def save_folder(
    folder: Path, config: LoraConfig, arrays: Arrays, scalings: Mapping[str, float]
) -> None:
    """Write an adapter in PEFT's layout, into ``folder``; a README.md that is there already stays."""
    tensors = {PREFIX + k: v for k, v in arrays.items()}
    noted = {SCALINGS: json.dumps(scalings)}
    data = _safetensors_file(tensors, "save_adapter() writes .npz without it", noted)
    _make(folder)
    files = {folder / WEIGHTS: data, folder / CONFIG: _config_text(config).encode()}
    if not (folder / "README.md").exists():
        files[folder / "README.md"] = README.encode()
    _write(files)


def load(source: str | Path) -> AdapterFile:
    """Return what is in a PEFT folder or an ``.npz`` file; tensors are described, not read.

    Raises
    ------
    CheckpointError
        For a file that is missing or damaged, or a config that is not valid.
    """
    path = Path(source)
    folder = path.is_dir()
    if folder and (path / PICKLE).exists() and not (path / WEIGHTS).exists():
        raise CheckpointError(
            f"{path} holds {PICKLE}, a pickle, which can run any code and is never read here; PEFT "
            f"writes {WEIGHTS} when it loads the adapter and calls save_pretrained()"
        )
    with _entries(path / WEIGHTS if folder else path) as (entries, metadata):
        if folder:
            text = _read(path / CONFIG)
        elif CONFIG in entries:
            text = entries.pop(CONFIG).read().tobytes()
        else:
            raise CheckpointError(f"{path} holds no adapter: it has no {CONFIG}")
    config = _parsed(path, CONFIG, text, lambda values: LoraConfig.from_dict(as_trained(values)))
    scalings = _parsed(path, SCALINGS, metadata.get(SCALINGS, "{}"), dict)
    return AdapterFile(config, _without_prefix(path, entries), scalings)


def as_file(source: str, config: LoraConfig, state: Mapping[str, npt.ArrayLike]) -> AdapterFile:
    """Return tensors by their full names as if they were read from a file.

    Raises
    ------
    CheckpointError
        For names without PEFT's prefix.
    """
    arrays = {key: np.asarray(value) for key, value in state.items()}
    entries = {
        key: Entry(a.shape, a.dtype, partial(np.asarray, a, order="C")) for key, a in arrays.items()
    }
    return AdapterFile(config, _without_prefix(source, entries), {})


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
    And the scaling of each layer must be the one that was noted when the file was written: who edits α
    in a config edits the function.

    Raises
    ------
    CheckpointError
        Listing every name that is missing, unexpected, misshapen, of a wrong dtype or not finite,
        every constant that differs, and every layer whose scaling has changed.
    """
    tensors = {k: e for k, e in file.tensors.items() if not _again(k, file.config, expected)}
    known = {**expected, **{key: p for key, p in constants.items() if key in tensors}}
    wrong = misfits({key: p.shape for key, p in known.items()}, tensors)
    for path, s in scalings.items():
        noted = file.scalings.get(path)
        if file.scalings and noted != s:
            wrong.append(f"the config gives {path} the scaling {s:g}, but the file notes {noted}")
    for key, array in _values(source, tensors, constants).items():
        if not np.array_equal(array, constants[key].data, equal_nan=True):
            wrong.append(f"{key} differs from the base's: it was trained on another base")
    arrays = _values(source, tensors, expected)
    _refuse(source, wrong, arrays, allow_nan)
    return arrays


#: What PEFT puts into the path of a bias that it writes again; the second with the adapter's name.
INNER = r"\.(original_module|modules_to_save)(?=\.)", r"\.modules_to_save\.[^.]+(?=\.)"


def _again(key: str, config: LoraConfig, expected: Container[str]) -> bool:
    """Whether PEFT has written a bias of a module that trains whole under an inner name, too."""
    if config.bias != "all" or not config.modules_to_save or key in expected:
        return False
    found = [part.span() for pattern in INNER for part in re.finditer(pattern, key)]
    return any(key[:start] + key[end:] in expected for start, end in found)


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can name an adapter, that is a folder inside the given one."""
    forbidden = set("/\\:\0")
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & forbidden
    if not plain or len(name.encode(errors="replace")) > 255 or not name.isprintable():
        raise ValueError(f"an adapter's name becomes a folder: it cannot be {name!r}")


def save_config(folder: Path, config: LoraConfig) -> None:
    """Write a config alone, as ``adapter_config.json`` into ``folder``."""
    _make(folder)
    _write({folder / CONFIG: _config_text(config, config.inference_mode).encode()})


def load_config(folder: Path) -> LoraConfig:
    """Return the config in ``folder``; CheckpointError for one that is missing or not valid."""
    config: LoraConfig = _parsed(folder, CONFIG, _read(folder / CONFIG), LoraConfig.from_dict)
    return config


def _config_text(config: LoraConfig, inference_mode: bool = True) -> str:
    """Return the JSON of a config, by default as PEFT saves it with an adapter: ready for inference."""
    return json.dumps({**config.to_dict(), "inference_mode": inference_mode}, indent=2) + "\n"


def _parsed(path: Path, name: str, text: str | bytes, make: Callable[[Any], Any]) -> Any:
    """Return what ``make`` makes of a JSON object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a key occurs twice")
        return values

    try:
        values = json.loads(text, object_pairs_hook=unique)
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got {type(values).__name__}")
        return make(values)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{name} in {path}: {error}") from error


# ----------------------------------------------------------------------------- writing


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn what can go wrong with a file inside into a CheckpointError that says ``what`` and why."""
    try:
        yield
    except CheckpointError:
        raise
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CheckpointError(f"{what}: {reason}") from error


def _make(folder: Path) -> None:
    """Make a folder, if it is not there."""
    with _reported(f"cannot make {folder}"):
        folder.mkdir(parents=True, exist_ok=True)


def _write(files: Mapping[Path, bytes]) -> None:
    """Write files under temporary names and rename them, so that all of them are new, or none is."""
    for path in files:
        if path.is_dir():
            raise CheckpointError(f"cannot write {path}: it is a directory")
        if not path.parent.is_dir():
            raise CheckpointError(f"cannot write {path}: there is no directory {path.parent}")
    new = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in files}
    old = {path: path.with_name(f".{path.name}.{os.getpid()}.old") for path in files}
    renamed: list[Path] = []
    try:
        for path, content in files.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(new[path], flags, 0o666), "wb") as file:  # 0o666 less the umask
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        *earlier, last = files
        for path in earlier:
            if path.exists():
                shutil.copy2(path, old[path])
            os.replace(new[path], path)
            renamed.append(path)
        os.replace(new[last], last)  # the one that needs no way back: after it, all are new
    except BaseException:
        for path in renamed:
            if old[path].exists():
                os.replace(old[path], path)
            else:
                path.unlink()
        raise
    finally:
        for path in (*new.values(), *old.values()):
            path.unlink(missing_ok=True)


def _npz(arrays: Mapping[str, Array]) -> bytes:
    """Return an ``.npz`` file.

    np.savez would take an array called "file" or "allow_pickle" for one of its own arguments.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return content.getvalue()


def _safetensors_file(arrays: Arrays, otherwise: str, notes: Mapping[str, str] = {}) -> bytes:
    """Return a ``.safetensors`` file as PyTorch reads it, with these notes in its metadata."""
    save, _, _ = _safetensors(otherwise)
    # safetensors writes memory as it lies, whatever the strides say
    tensors = {name: np.asarray(a, order="C") for name, a in sorted(arrays.items())}
    return _in_order(save(tensors, metadata={"format": "pt", **notes}))


# ----------------------------------------------------------------------------- reading


def _read(path: Path) -> bytes:
    with _reported(f"cannot read {path}"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"cannot read {path}: it is not a file")  # but, say, a pipe
        return path.read_bytes()


@contextlib.contextmanager
def _entries(path: Path) -> Iterator[tuple[dict[str, Entry], dict[str, Any]]]:
    """Yield the arrays in an ``.npz`` or ``.safetensors`` file, by name, and the file's metadata."""
    safetensors = path.suffix == ".safetensors"
    if safetensors:
        _safetensors("from_pretrained() reads .npz without it")
    data = _read(path)
    with _reported(f"{path} is not a valid {'safetensors' if safetensors else '.npz'} file"):
        yield _safetensors_entries(data) if safetensors else _npz_entries(data)


#: What damaged archives raise, and with what is in them, damaged arrays.
_DAMAGED_ARCHIVE = zipfile.BadZipFile, zlib.error, NotImplementedError
_DAMAGE = (*_DAMAGED_ARCHIVE, OSError, EOFError, ValueError, struct.error)


def _npz_entries(data: bytes) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return what an ``.npz`` file holds: a zip archive with an ``.npy`` file for every array."""
    if data[:2] != b"PK":
        raise ValueError("it is no archive")
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries: dict[str, Entry] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in entries:
            raise ValueError(f"{name} occurs twice")
        known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if member.flag_bits & 1 or not known:
            raise ValueError(f"{name} is encrypted or compressed in an unknown way")
        with archive.open(member) as file:
            shape, dtype, fortran = _npy_header(name, file)
            start = file.tell()
        if member.file_size - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} is cut off or too long for an array {shape} of {dtype}")
        content = partial(_without_header, archive, member, start)
        entries[name] = Entry(shape, dtype, content, "F" if fortran else "C")
    return entries, {}


def _without_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int) -> Any:
    return memoryview(archive.read(member))[start:]


def _npy_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Return shape, dtype and whether the order is Fortran's, from the header of an ``.npy`` file.

    The format is NEP 1's: a magic string, a version, the header's length, and a Python literal.  Only
    plain numbers are let through; an array of objects would be a pickle.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError(f"{name} is not an array")
    form = "<H" if magic[6] == 1 else "<I"
    (length,) = struct.unpack(form, file.read(struct.calcsize(form)))
    if length > 10_000:
        raise ValueError(f"{name} has a header of {length} bytes")
    try:
        header = ast.literal_eval(file.read(length).decode("latin1").strip())
        shape, descr, fortran = header["shape"], header["descr"], header["fortran_order"]
    except (SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"{name} has a damaged header: {error}") from None
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|=][biufcSU]\d{1,4}", descr):
        raise ValueError(f"{name} is an array of {str(descr)[:80]!r}, not of numbers")
    sound = isinstance(shape, tuple) and isinstance(fortran, bool) and len(shape) <= 32
    if not sound or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ValueError(f"{name} has the shape {str(shape)[:80]}")
    try:
        return shape, np.dtype(descr), fortran
    except TypeError:
        raise ValueError(f"{name} is an array of {descr!r}, not of numbers") from None


def _safetensors(what: str) -> tuple[Any, Any, Any]:
    """Return safetensors' functions, which only its own file format needs."""
    try:
        from safetensors import SafetensorError, deserialize
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(
            f".safetensors files need safetensors: pip install -e '.[peft]'; {what}"
        ) from error
    return save, deserialize, SafetensorError


def _in_order(data: bytes) -> bytes:
    """Return a safetensors file with its header sorted: safetensors writes metadata in random order."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":"))
    padded = header.encode() + b" " * (-len(header.encode()) % 8)
    return struct.pack("<Q", len(padded)) + padded + data[8 + length :]


_DTYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<f4",
    "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "|b1",
}  # fmt: skip


def _safetensors_entries(data: bytes) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return what a safetensors file holds; bfloat16 is read into float32, which holds it."""
    _, deserialize, SafetensorError = _safetensors("from_pretrained() reads .npz without it")
    try:
        found = deserialize(data)
    except (SafetensorError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    entries = {}
    for name, tensor in found:
        kind, shape = tensor["dtype"], tuple(tensor["shape"])
        if kind not in _DTYPES or len(shape) > 32 or any(n >= 2**48 for n in shape):
            raise ValueError(f"{name} has dtype {kind} and shape {shape}")

        content = partial(_widened if kind == "BF16" else bytes, tensor["data"])
        entries[name] = Entry(shape, np.dtype(_DTYPES[kind]), content)
    return entries, metadata


def _widened(data: Any) -> Any:
    """Return bfloat16 as float32, of which it is the upper half."""
    return np.frombuffer(data, "<u2").astype("<u4") << 16
