"""Two families of handwritten digits, and a net that has seen only one of them.

MNIST (28×28) is the old domain, the UCI optical digits (8×8, other writers, another scanner) the new
one.  The shift is real: nothing was made harder by hand.  Both are in ``data/``, with sources and
licences in ``data/README.md``, and split by position, so that results compare:

    MNIST        0:6000 pre-training   7500:8000 validation   8000:10000 test   (6000:7500 is spare)
    optdigits    0:600 the pool        600:797 validation     797:1797 test

A few labelled images per class are drawn from the pool.  Nothing looks at the rest of it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import loradora as ld
from loradora.optim import linear_decay
from loradora.train import Step

Array: TypeAlias = npt.NDArray[Any]

DATA = Path(__file__).parent / "data"
CLASSES = 10
SIZES = 784, 256, 128, CLASSES


class Digits(NamedTuple):
    """Images, (N, 784) in float32 from 0 to 1, and their labels, (N,)."""

    x: Array
    y: Array


class Split(NamedTuple):
    """One domain, in three parts that share no image."""

    train: Digits
    validation: Digits
    test: Digits


# ---------------------------------------------------------------------------- the two domains


def mnist(directory: Path | None = None) -> Split:
    """Return MNIST: the 10,000 images in ``data/``, or the standard files in ``directory``.

    Of the standard files, ``t10k-*`` is the test part.  The last twelfth of ``train-*`` is the validation
    part (5,000 images), and the rest of it is for pre-training (55,000).

    Raises
    ------
    ValueError
        For standard files that are missing, damaged, or do not belong together.
    """
    if directory is None:
        x, y = _archive("mnist10k.npz")
        digits = _mnist(x, y)
        return Split(_part(digits, 0, 6000), _part(digits, 7500, 8000), _part(digits, 8000, 10000))
    if not directory.is_dir():
        raise ValueError(f"no such directory: {directory}")
    train, test = _idx_pair(directory, "train"), _idx_pair(directory, "t10k")
    n = len(train.y)
    kept = n - n // 12
    return Split(_part(train, 0, kept), _part(train, kept, n), test)


def optdigits() -> Split:
    """Return the optical digits, in MNIST's format; ``train`` is the pool to draw a few from."""
    x, y = _archive("optdigits.npz")
    digits = Digits(as_mnist(x), y.astype(np.int64))
    return Split(_part(digits, 0, 600), _part(digits, 600, 797), _part(digits, 797, 1797))


def few(pool: Digits, per_class: int, rng: np.random.Generator) -> Digits:
    """Return ``per_class`` labelled images of each digit, drawn from the pool without repetition."""
    chosen = [
        rng.choice(np.flatnonzero(pool.y == digit), per_class, replace=False)
        for digit in range(CLASSES)
    ]
    return Digits(pool.x[np.concatenate(chosen)], pool.y[np.concatenate(chosen)])


def most_per_class(pool: Digits) -> int:
    """Return how many images of each digit can be drawn from the pool: those of the rarest one."""
    return int(np.bincount(pool.y, minlength=CLASSES).min())


# ---------------------------------------------------------------------------- the pre-trained net


def pretrained(
    train: Digits,
    rng: np.random.Generator,
    steps: int = 15 * 94,
    report: Callable[[Step], object] = lambda step: None,
) -> ld.MLP:
    """Return an MLP 784-256-128-10 trained on MNIST: Adam from 1e-3 down to 0, batches of 64.

    The default number of steps is 15 epochs of 6,000 images.  It is the same for the 55,000 images of the
    standard files, and so is the time.
    """
    model = ld.MLP(SIZES, rng=rng)
    optimizer = ld.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for step in ld.fit(
        model,
        *train,
        optimizer=optimizer,
        steps=steps,
        batch_size=64,
        schedule=linear_decay,
        rng=rng,
    ):
        report(step)
    return model


# ---------------------------------------------------------------------------- from 8×8 to 28×28


def as_mnist(images: Array) -> Array:
    """Return 8×8 images (0 … 16) as MNIST would show them: 20×20, centred in 28×28, 0 … 1, flat."""
    enlarge = bilinear(8, 20)
    canvas = np.zeros((len(images), 28, 28), np.float32)
    canvas[:, 4:24, 4:24] = enlarge @ (images / 16) @ enlarge.T
    return canvas.reshape(len(images), 784)


def bilinear(n: int, m: int) -> Array:
    """Return the (m, n) matrix that interpolates a row of n pixels linearly, to give m pixels.

    Pixels are areas, not points: new pixel i has its centre at (i + ½)·n/m − ½ in old pixels, as in
    PyTorch's ``interpolate(align_corners=False)``.  A centre beyond the outermost old ones takes the
    value of the nearest.  For both directions of an image:
    ``bilinear(n, m) @ image @ bilinear(n, m).T``.
    """
    position = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    distance = np.abs(position[:, None] - np.arange(n))
    return np.clip(1 - distance, 0, None)


# ---------------------------------------------------------------------------- files


def read_idx(file: Path) -> Array:
    """Return the array of bytes in an IDX file, MNIST's own format, or in ``file``.gz.

    The format: two zero bytes, the type (8 is an unsigned byte), the number of axes, the length of each
    axis as four bytes, most significant first, and then the entries.

    Raises
    ------
    ValueError
        If the file is missing, damaged, or holds something else.
    """
    zipped = file.with_name(f"{file.name}.gz")
    try:
        data = file.read_bytes() if file.exists() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file.parent} has neither {file.name} nor {zipped.name}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {file} or its .gz: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is not an IDX file of unsigned bytes")
    axes = data[3]
    start = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(data[4:start].ljust(4 * axes, b"\0"), ">u4"))
    if len(data) != start + np.prod(shape, dtype=object):
        raise ValueError(f"{file} is cut off or too long: it should hold an array {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _idx_pair(directory: Path, name: str) -> Digits:
    x = read_idx(directory / f"{name}-images-idx3-ubyte")
    y = read_idx(directory / f"{name}-labels-idx1-ubyte")
    if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or len(y) == 0 or y.max() >= CLASSES:
        raise ValueError(
            f"{directory}: expected {name} images of 28 x 28 and a label 0 to 9 for each, "
            f"found {x.shape} and {y.shape}"
        )
    return _mnist(x, y)


def _archive(name: str) -> tuple[Array, Array]:
    with np.load(DATA / name, allow_pickle=False) as archive:
        return archive["x"], archive["y"]


def _mnist(x: Array, y: Array) -> Digits:
    return Digits(x.reshape(len(x), 784) / np.float32(255), y.astype(np.int64))


def _part(digits: Digits, start: int, stop: int) -> Digits:
    return Digits(digits.x[start:stop], digits.y[start:stop])
