"""Seven texts, two authors, and the alphabet they are written in.

The old author is Jane Austen: five novels to learn from, and a sixth, *Northanger Abbey*, to measure
what was learnt.  The new one is Shakespeare, with *Romeo and Juliet*:

    Acts I to IV           to learn from
    Act V, scenes 1 and 2  validation: to choose a learning rate by
    Act V, scene 3         test: what is reported

A token is a character, and its id is its place in the alphabet.  The texts are in ``data/text/``, with
sources and licences in ``data/README.md``.
"""

from __future__ import annotations

import gzip
import string
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

TEXTS = Path(__file__).parent / "data" / "text"
NOVELS = "pride_and_prejudice", "sense_and_sensibility", "emma", "persuasion", "mansfield_park"

PUNCTUATION = "!\"'(),-.:;?"

#: 65 characters, in ASCII's order.
ALPHABET = f"\n {PUNCTUATION}{string.ascii_uppercase}{string.ascii_lowercase}"

_ID_OF = {character: i for i, character in enumerate(ALPHABET)}


def encode(text: str, name: str = "the text") -> Array:
    """Return the id of each character, (T,).

    Raises
    ------
    ValueError
        For characters that are not in the alphabet.  The message calls the text ``name`` and says how
        often each of them occurs.
    """
    unknown = Counter(character for character in text if character not in _ID_OF)
    if unknown:
        found = ", ".join(f"{c!a} ({n} of them)" for c, n in unknown.most_common(8))
        more = ", ..." if len(unknown) > 8 else ""
        raise ValueError(
            f"{name} has characters that are not in the alphabet, which is A-Z, a-z, space, newline and "
            f"{PUNCTUATION}: replace or drop {found}{more}"
        )
    return np.array([_ID_OF[character] for character in text], np.uint8)


def decode(ids: npt.ArrayLike) -> str:
    """Return the text of these ids."""
    return "".join(ALPHABET[i] for i in np.asarray(ids).ravel())


def read(name: str) -> str:
    """Return one of the seven texts."""
    with gzip.open(TEXTS / f"{name}.txt.gz", "rt", encoding="ascii") as file:
        return file.read()


def novels() -> Array:
    """Return the five novels, one after the other, as ids."""
    return encode("\n\n".join(map(read, NOVELS)))


class Split(NamedTuple):
    """A text in three parts that do not overlap, as ids."""

    train: Array
    validation: Array
    test: Array


def play() -> Split:
    """Return *Romeo and Juliet*, divided as the top of this file says."""
    text = read("romeo_and_juliet")
    fifth, last = text.index("Act V.\n"), text.index("Scene III. A churchyard")
    return Split(encode(text[:fifth]), encode(text[fifth:last]), encode(text[last:]))
