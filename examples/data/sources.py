"""Where the data come from, and whether they are still the same.

    python examples/data/sources.py [--mnist DIR] [--optdigits FILE] [--write]

``optdigits.npz`` is the UCI file ``optdigits.tes`` in its own order, 64 pixels and a label per line.
If no FILE is given, scikit-learn's copy is read.  ``--write`` makes the archive from its source.

``mnist10k.npz`` is a shuffled selection from the 70,000 digits of the standard MNIST files.  Its seed was
not kept, so it cannot be drawn again.  With the standard files, this script looks each digit up in them.

The texts, and the net that was trained on them, are compared with the checksums that they had when the
results in the README were computed.

If a source is missing, the script says what to get.  It checks the checksums of the files all the same.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent
sys.path.insert(0, str(DATA.parent))

from digits import read_idx

Array: TypeAlias = npt.NDArray[Any]

#: SHA-256 of the bytes of the images and then of the labels.
SUMS = {
    "mnist10k.npz": "25d5404ad3c98b3710ad8bf22d0710a009eb64dc2466b0e02d49601bb51a75ed",
    "optdigits.npz": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826",
}

#: SHA-256 of the characters.
TEXTS = {
    "emma": "aca8c6f9c8097e493cec4ed67d9b5b7dea7faaa7864a4a5140f0b0ffc579631d",
    "mansfield_park": "8c065f4f03fdd97f3672687c8b9eb52c73dc276d2109d8b8f85e75a3eba0e9b2",
    "northanger_abbey": "ff9fe6c1e3b8f07fd4cccd9821f1fb5a1e0f7804e718593c254f8a6833ee94a7",
    "persuasion": "66c40306020cd6c93c693359b0e812921026f93f2fabce71085012dc178624c7",
    "pride_and_prejudice": "7eb8a26f8b8495c0e9eb6892f0da75448a4b46bef052d33a721eb7ff6383bcb6",
    "romeo_and_juliet": "4572fb9e8148ed3b4c775a2e74adc38a2427e6b56bb838d3b70a8d92bf068a33",
    "sense_and_sensibility": "69e952a1d1df912bbc0f96795935c2bb75c90501f36a7ba884756913c21ff447",
}

#: SHA-256 of the file.
GPT = "620ed896b89bb548b4c792513a6c50688a679abe91fcd79874a99fb74d655c6f"


def main() -> None:
    """Check all files; end with status 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--mnist", type=Path, metavar="DIR", help="the folder of the four standard MNIST files")
    add("--optdigits", type=Path, metavar="FILE", help="UCI's optdigits.tes (scikit-learn's copy)")
    add("--write", action="store_true", help="make optdigits.npz from its source")
    chosen = parser.parse_args()
    try:
        print(f"optdigits.npz: {check_optdigits(chosen.optdigits, chosen.write)}")
        print(f"mnist10k.npz: {check_mnist(chosen.mnist)}")
        print(f"text: {check_texts()}")
    except ValueError as error:
        sys.exit(f"error: {error}")


def check_optdigits(file: Path | None, write: bool = False) -> str:
    """Compare the optical digits with UCI's file or scikit-learn's copy; return the finding in words.

    Raises
    ------
    ValueError
        If they differ.  Then nothing is written.
    """
    try:
        x, y = read_optdigits(file)
    except ImportError:
        if write:
            raise ValueError(f"there is nothing to make optdigits.npz from: {OPTDIGITS}") from None
        read("optdigits.npz")
        return f"its checksum is right. To compare it with its source, {OPTDIGITS}"
    verify("optdigits.npz", x, y, "the source")
    if write:
        np.savez_compressed(DATA / "optdigits.npz", x=x, y=y)
    read("optdigits.npz")
    return f"{len(y):,} digits, those of its source in the same order"


OPTDIGITS = (
    "pip install scikit-learn, or download optdigits.tes from https://doi.org/10.24432/C50P49 "
    "and give it with --optdigits"
)


def read_optdigits(file: Path | None) -> tuple[Array, Array]:
    """Return images (N, 8, 8) and labels (N,) of a file in UCI's format, by default scikit-learn's.

    Raises
    ------
    ImportError
        If no file is given and scikit-learn is not installed.
    ValueError
        If the file cannot be read or has another format.
    """
    if file is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    try:
        table = np.loadtxt(file, np.uint8, delimiter=",", ndmin=2)
        return table[:, :64].reshape(-1, 8, 8), table[:, 64]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{file} is not like optdigits.tes: {error}") from None


def check_mnist(directory: Path | None) -> str:
    """Look every MNIST digit up in the standard files, if given; return the finding in words.

    Raises
    ------
    ValueError
        If one is not there with its label, if the files cannot be read, or if the checksum is wrong.
    """
    x, y = read("mnist10k.npz")
    if directory is None:
        return (
            "its checksum is right. To compare it with its source, download train-images-idx3-ubyte.gz, "
            "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz "
            "(http://yann.lecun.com/exdb/mnist/ or a copy) and give their folder with --mnist"
        )
    known = {
        (image.tobytes(), int(label))
        for part in ("train", "t10k")
        for image, label in zip(
            read_idx(directory / f"{part}-images-idx3-ubyte"),
            read_idx(directory / f"{part}-labels-idx1-ubyte"),
            strict=True,
        )
    }
    ours = {(image.tobytes(), int(label)) for image, label in zip(x, y, strict=True)}
    if ours - known:
        raise ValueError(f"{len(ours - known):,} digits of mnist10k.npz are not in {directory}")
    return f"{len(ours):,} different digits, all of them in the standard files"


def check_texts() -> str:
    """Compare the checksums of the texts and the net; return the finding in words.

    Raises
    ------
    ValueError
        If some differ, naming them.
    """
    found = {
        name: gzip.decompress((DATA / "text" / f"{name}.txt.gz").read_bytes()) for name in TEXTS
    }
    found["austen_gpt.npz"] = (DATA / "austen_gpt.npz").read_bytes()
    sums = TEXTS | {"austen_gpt.npz": GPT}
    wrong = [n for n, data in found.items() if hashlib.sha256(data).hexdigest() != sums[n]]
    if wrong:
        raise ValueError(f"not what the results were computed from: {', '.join(wrong)}")
    return f"{len(TEXTS)} texts and austen_gpt.npz, their checksums are right"


def read(name: str) -> tuple[Array, Array]:
    """Return the images and labels of an archive beside this file, verified."""
    with np.load(DATA / name, allow_pickle=False) as archive:
        x, y = archive["x"], archive["y"]
    verify(name, x, y, "the archive")
    return x, y


def verify(name: str, x: Array, y: Array, place: str) -> None:
    """Check that these are the digits from which the results in the README were computed.

    Raises
    ------
    ValueError
        If they differ, even if only in their order.
    """
    if hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest() != SUMS[name]:
        raise ValueError(f"{name}: {place} has other digits, or the same in another order")


if __name__ == "__main__":
    main()
