"""Files: an adapter as one ``.npz``, or as PEFT's folder; a model's weights as ``.npz``.

Files are written atomically (to a temporary name beside the target, then renamed), so a save that
fails leaves the old file.  They are never unpickled.  Whatever is wrong with a file is reported as one
:class:`CheckpointError` that lists all of it, before anything changes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loradora.config import LoraConfig
from loradora.nn import Module, check_state
from minigrad import Tensor

Arrays = dict[str, npt.NDArray[Any]]

#: What PEFT puts before the path of every tensor.
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

README = """---
library_name: peft
---
A LoRA or DoRA adapter in the layout of Hugging Face PEFT, written by loradora.
"""


class CheckpointError(ValueError):
    """A file that is missing, damaged, or does not fit the model."""


# ----------------------------------------------------------------------------- models


def save_model(file: str | Path, model: Module) -> None:
    """Write the parameters of ``model`` by name into an ``.npz`` file."""
    _write_npz(Path(file), {name: p.data for name, p in model.named_parameters()})


def load_model(file: str | Path, model: Module) -> None:
    """Set the parameters of ``model`` from an ``.npz`` file, or a ``.safetensors`` file from PyTorch.

    Raises
    ------
    CheckpointError
        Listing everything that is missing, unexpected or misshapen.
    """
    path = Path(file)
    arrays = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
    try:
        model.load_state_dict(arrays)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


# ----------------------------------------------------------------------------- adapters


def save_npz(file: str | Path, config: LoraConfig, arrays: Arrays) -> None:
    """Write an adapter into one ``.npz`` file: PEFT's tensors and, as bytes, its config."""
    text = np.frombuffer(_config_text(config).encode(), np.uint8)
    _write_npz(Path(file), {CONFIG: text, **{PREFIX + k: v for k, v in arrays.items()}})


def save_folder(folder: Path, config: LoraConfig, arrays: Arrays) -> None:
    """Write an adapter in PEFT's layout, into ``folder``."""
    save = _safetensors("save_adapter() writes .npz without it")[0]
    # safetensors writes memory as it lies, whatever the strides say
    tensors = {PREFIX + k: np.ascontiguousarray(v) for k, v in sorted(arrays.items())}
    data = save(tensors, metadata={"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, lambda f: f.write(data))
    _write(folder / CONFIG, lambda f: f.write(_config_text(config).encode()))
    _write(folder / "README.md", lambda f: f.write(README.encode()))


def load(source: str | Path) -> tuple[LoraConfig, Arrays]:
    """Return the config and the tensors, without prefix, of a PEFT folder or an ``.npz`` file.

    Raises
    ------
    CheckpointError
        For a file that is missing or damaged, or a config that is not valid.
    """
    path = Path(source)
    if path.is_dir():
        arrays, text = _read_safetensors(path / WEIGHTS), _read(path / CONFIG)
    else:
        arrays = _read_npz(path)
        if CONFIG not in arrays:
            raise CheckpointError(f"{path} holds no adapter: it has no {CONFIG}")
        text = arrays.pop(CONFIG).tobytes()
    try:
        values = json.loads(text.decode())
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got {type(values).__name__}")
        config = LoraConfig.from_dict(values)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{CONFIG} in {path}: {error}") from error
    foreign = [key for key in arrays if not key.startswith(PREFIX)]
    if foreign:
        raise CheckpointError(
            f"{path}: tensors without the prefix {PREFIX!r}: {', '.join(foreign)}"
        )
    if config.modules_to_save:  # with bias="all", PEFT also writes these biases under inner names
        inner = (".original_module.bias", ".modules_to_save.bias")
        arrays = {key: array for key, array in arrays.items() if not key.endswith(inner)}
    return config, {key.removeprefix(PREFIX): array for key, array in arrays.items()}


def check(
    source: str | Path, expected: Mapping[str, Tensor], arrays: Arrays, allow_nan: bool
) -> Arrays:
    """Return ``arrays`` in the dtypes expected if they have exactly the names and shapes expected.

    Unless ``allow_nan`` they must also be finite, in that dtype.

    Raises
    ------
    CheckpointError
        Listing every name that is missing, unexpected, misshapen or not finite.
    """
    try:
        check_state({key: p.shape for key, p in expected.items()}, arrays)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    with np.errstate(over="ignore"):  # what is too large becomes infinity
        checked = {key: arrays[key].astype(p.dtype) for key, p in expected.items()}
    bad = [key for key, array in checked.items() if not np.all(np.isfinite(array))]
    if bad and not allow_nan:
        raise CheckpointError(f"{source}: NaN or infinity in {', '.join(bad)} (see allow_nan)")
    return checked


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can name an adapter, that is a folder inside the given one."""
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\:\0"):
        raise ValueError(f"an adapter's name becomes a folder: it cannot be {name!r}")


def _config_text(config: LoraConfig) -> str:
    """Return the JSON of a config as PEFT saves it: ready for inference."""
    return json.dumps({**config.to_dict(), "inference_mode": True}, indent=2) + "\n"


# ----------------------------------------------------------------------------- bytes


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file under a temporary name and rename it, so that it is there whole or not at all."""
    if path.is_dir():
        raise CheckpointError(f"cannot write {path}: it is a directory")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    named: dict[str, Any] = dict(arrays)
    _write(path, lambda file: np.savez(file, **named))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _read_npz(path: Path) -> Arrays:
    data = _read(path)
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with archive:
            names = archive.files
            if len(set(names)) != len(names):
                raise ValueError("a name occurs twice")
            arrays = {name: archive[name] for name in names}
            foreign = [name for name in names if not isinstance(arrays[name], np.ndarray)]
            if foreign:
                raise ValueError(f"not an array: {', '.join(foreign)}")
            return arrays
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is not a valid .npz file: {error}") from error


_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OSError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    UnicodeError,
    zipfile.BadZipFile,
    zlib.error,
)


def _safetensors(what: str) -> tuple[Any, Any, Any]:
    """Return safetensors' functions, which only PEFT's own file format needs."""
    try:
        from safetensors import SafetensorError, deserialize
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(
            f"PEFT's files need safetensors: pip install 'minigrad-loradora[peft]'; {what}"
        ) from error
    return save, deserialize, SafetensorError


_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def _read_safetensors(path: Path) -> Arrays:
    """Return the float tensors of a safetensors file; bfloat16 becomes float32, which holds it."""
    _, deserialize, SafetensorError = _safetensors("from_pretrained() reads .npz without it")
    data = _read(path)
    try:
        entries = deserialize(data)
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from error
    arrays: Arrays = {}
    wrong = []
    for name, entry in entries:
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16
            arrays[name] = bits.view(np.float32).reshape(entry["shape"])
        elif entry["dtype"] in _DTYPES:
            values = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
            arrays[name] = values.reshape(entry["shape"])
        else:
            wrong.append(f"{name} has dtype {entry['dtype']}")
    if wrong:
        raise CheckpointError(f"{path}: expected floating-point tensors, but {', '.join(wrong)}")
    return arrays
