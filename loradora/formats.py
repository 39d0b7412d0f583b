"""Named arrays as bytes: ``.npz``, which needs only NumPy, and ``.safetensors``, which needs an extra.

Reading begins with a description: names, shapes and dtypes.  Those that cannot be true of a file of this
size are refused.  An array itself is read only when it is asked for.  Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sized
from functools import partial
from operator import itemgetter
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

Arrays = dict[str, Array]

#: The most arrays in a file.  (An adapter has two or three for each layer, and its optimizer up to 21.)
MOST_ARRAYS = 30_000


class Entry(NamedTuple):
    """An array in a file.  So far only its description has been read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data: Callable[[], Any]
    order: Literal["C", "F"] = "C"

    def read(self) -> Array:
        """Return the array itself, read-only."""
        return np.frombuffer(self.data(), self.dtype).reshape(self.shape, order=self.order)


def check_number(arrays: Sized) -> None:
    """Raise ValueError for more arrays than a file may hold."""
    if len(arrays) > MOST_ARRAYS:
        raise ValueError(f"there are {len(arrays)} arrays, and a file holds at most {MOST_ARRAYS}")


#: The arrays in a file by name, and its metadata.
Described: TypeAlias = "tuple[dict[str, Entry], dict[str, Any]]"


# ----------------------------------------------------------------------------- npz


def npz(arrays: Mapping[str, Array]) -> bytes:
    """Return the bytes of an ``.npz`` file.

    np.savez would mistake an array called "file" or "allow_pickle" for one of its own arguments.
    """
    check_number(arrays)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return content.getvalue()


def describe_npz(data: bytes) -> Described:
    """Return what an ``.npz`` file holds: a zip archive with an ``.npy`` file for every array."""
    if data[:2] != b"PK":
        raise ValueError("it is not an archive")
    if data.count(b"PK\1\2") > MOST_ARRAYS:  # each member's entry begins so
        raise ValueError(f"it holds more than {MOST_ARRAYS} arrays")
    archive = zipfile.ZipFile(io.BytesIO(data))
    members = archive.infolist()
    (written,) = struct.unpack_from("<H", data, data.rindex(b"PK\5\6") + 10)  # how many, at its end
    if written != len(members):
        raise ValueError(
            f"it is damaged: its directory lists {len(members)} of its {written} arrays"
        )
    entries: dict[str, Entry] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in entries:
            raise ValueError(f"{name} occurs twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed in an unknown way")
        with archive.open(member) as file:
            try:
                shape, dtype, order = _npy_header(file)
            except Exception as error:
                # the lines that follow are NumPy's advice for trusted files
                reason = str(error).partition("\n")[0]
                raise ValueError(f"{name} is not an array of numbers: {reason}") from error
            start = file.tell()
        if member.file_size - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} is cut off or too long for an array {shape} of {dtype}")
        content = partial(_without_header, archive, member, start)
        entries[name] = Entry(shape, dtype, content, order)
    return entries, {}


def _without_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int) -> Any:
    with archive.open(member) as file:
        data = file.read(member.file_size)  # read() alone would unpack everything there is
    return memoryview(data)[start:]


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], Literal["C", "F"]]:
    """Return shape, dtype and order from the header of an ``.npy`` file, and leave the file behind it.

    Only plain numbers are let through, because an array of objects would be a pickle.  The header of
    such an array has 118 bytes or a few more.  It is of version 1, which cannot claim more than 64 KiB.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its header is not of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=256)
    if dtype.kind not in "biufcSU":
        raise ValueError(f"its dtype is {dtype}")
    if len(shape) > 32 or not all(0 <= n < 2**48 for n in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, dtype, "F" if fortran else "C"


# ----------------------------------------------------------------------------- safetensors


READING = ".npz files are read without it"


def library(otherwise: str) -> tuple[Any, Any]:
    """Return safetensors' functions for writing and reading.

    Raises
    ------
    ImportError
        If safetensors is missing, naming the extra and what can be done without it.
    """
    try:
        from safetensors import deserialize
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(
            f".safetensors files need safetensors (extra 'peft'): pip install safetensors; {otherwise}"
        ) from error
    return save, deserialize


def safetensors(arrays: Arrays, otherwise: str, notes: Mapping[str, str] = {}) -> bytes:
    """Return the bytes of a ``.safetensors`` file as PyTorch reads it, with the notes as metadata."""
    save, _ = library(otherwise)
    check_number(arrays)
    # safetensors writes memory as it lies and ignores strides
    tensors = {name: np.asarray(a, order="C") for name, a in sorted(arrays.items())}
    return _in_order(save(tensors, metadata={"format": "pt", **notes}))


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


def describe_safetensors(data: bytes) -> Described:
    """Return what a safetensors file holds; bfloat16 becomes float32, which represents it exactly."""
    _, deserialize = library(READING)
    tensors, entries = deserialize(data), {}
    check_number(tensors)
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        kind, shape = tensor["dtype"], tuple(tensor["shape"])
        if kind not in _DTYPES or len(shape) > 32 or any(n >= 2**48 for n in shape):
            raise ValueError(f"{name} has dtype {kind} and shape {shape}")
        content = partial(_widened if kind == "BF16" else _read_only, tensor["data"])
        entries[name] = Entry(shape, np.dtype(_DTYPES[kind]), content)
    (length,) = struct.unpack("<Q", data[:8])
    return entries, json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def _read_only(data: Any) -> Any:
    """Return the bytes themselves, as read-only memory."""
    return memoryview(data).toreadonly()


def _widened(data: Any) -> Any:
    """Return bfloat16 as float32: bfloat16 is the upper half of a float32."""
    wide = np.frombuffer(data, "<u2").astype("<u4")
    wide <<= 16
    return wide
