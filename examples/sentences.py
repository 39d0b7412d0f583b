"""Labelled sentences: those of a file, or 10,566 on films that were rated from -4 to 4.

The sentences on films are not shipped.  They are in the source archive of vaderSentiment 3.3.2 (MIT
licence), which this puts where ``movies`` looks for it:

    pip download --no-deps --no-binary :all: --dest examples/data vaderSentiment==3.3.2

They belong to the paper

    C. J. Hutto, E. Gilbert: VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
    Text, ICWSM 2014,

whose authors had several people rate each of them anew.  The sentences themselves were collected from
reviews on rottentomatoes.com by

    B. Pang, L. Lee: Seeing stars: Exploiting class relationships for sentiment categorization with
    respect to rating scales, ACL 2005.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shlex
import tarfile
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

ARCHIVE = Path(__file__).parent / "data" / "vaderSentiment-3.3.2.tar.gz"
COMMAND = "pip download --no-deps --no-binary :all: --dest {} vaderSentiment==3.3.2"

#: The archive of the paper's data, within the source archive, and the ratings within that.
PAPER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
RATINGS_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"


class Sentences(NamedTuple):
    """N different texts and the class of each, (N,); ``names[c]`` is the name of class c."""

    texts: list[str]
    labels: Array
    names: list[str]


class _Row(NamedTuple):
    """A sentence, and the line in its file where it begins."""

    line: int
    text: str
    label: int | str


def split(sentences: Sentences, *, seed: int, train: int, test: int) -> tuple[Sentences, Sentences]:
    """Return ``train`` sentences to learn from and ``test`` others, drawn by the seed.

    Raises
    ------
    ValueError
        If there are not enough sentences, or if none of the sentences to learn from has some class.
    """
    n = len(sentences.texts)
    if train < 1 or test < 1:
        raise ValueError(f"each part needs a sentence: train={train}, test={test}")
    if train + test > n:
        raise ValueError(f"{train} + {test} sentences are asked for, and there are {n}")
    order = np.random.default_rng(seed).permutation(n)
    parts = _chosen(sentences, order[:train]), _chosen(sentences, order[train : train + test])
    known = set(parts[0].labels)
    if unknown := [name for c, name in enumerate(sentences.names) if c not in known]:
        raise ValueError(
            f"with seed {seed}, none of the {train} sentences to learn from has the label "
            f"{_listed(unknown)}: take more of them, or another seed"
        )
    return parts


def _chosen(sentences: Sentences, places: Array) -> Sentences:
    texts = [sentences.texts[i] for i in places]
    return Sentences(texts, sentences.labels[places], sentences.names)


# ---------------------------------------------------------------------------- sentences on films


def movies(archive: Path = ARCHIVE) -> Sentences:
    """Return the sentences on films, straight from the source archive of vaderSentiment 3.3.2.

    A mean rating above 0 is positive (5,241 sentences), one below is negative (5,325).  The 37 with a
    mean of 0 are neither, and are left out.  Two sentences occur twice, with ratings of the same sign.
    Each is taken once, so that none is both learnt and tested.  22 have an ``&amp;`` from HTML, which
    becomes ``&``.

    Raises
    ------
    ValueError
        If the archive is missing (the message says how to get it), damaged, or has different content.
    """
    ratings = [line.split("\t") for line in _ratings(archive).decode("utf-8").splitlines()]
    rows = [
        _Row(line, text.replace("&amp;", "&"), "positive" if float(mean) > 0 else "negative")
        for line, (_, mean, text) in enumerate(ratings, start=1)
        if float(mean) != 0
    ]
    return _sentences(rows, archive)


def _ratings(archive: Path) -> bytes:
    """Return the text with the ratings: a number, the mean rating and the sentence in each line."""
    get = COMMAND.format(shlex.quote(str(archive.parent)))
    if not archive.exists():
        raise ValueError(f"{archive} is not there. Get it with\n    {get}")
    packed = archive.read_bytes()
    try:
        data = _member(_member(packed, PAPER), RATINGS)
    except (tarfile.TarError, EOFError, zlib.error, KeyError, OSError) as error:
        raise ValueError(
            f"{archive} is damaged, or not the source archive of vaderSentiment 3.3.2 ({error}). "
            f"Get it with\n    {get}"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != RATINGS_SHA256:
        raise ValueError(
            f"{archive}: {RATINGS} is not the known file: its SHA-256 is {found}, "
            f"not {RATINGS_SHA256}"
        )
    return data


def _member(archive: bytes, name: str) -> bytes:
    """Return what a file in a .tar.gz holds."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(name)
        if file is None:
            raise KeyError(f"{name} is no file")
        return file.read()


# ---------------------------------------------------------------------------- sentences of a file


def read(file: Path) -> Sentences:
    """Return the sentences of a table with two columns, text and label, in UTF-8.

    In a ``.tsv`` a tab separates them, and a quote is an ordinary character.  In a ``.csv`` a comma
    separates them.  There, a text with commas, quotes or line ends stands in quotes, and its own quotes
    are doubled (RFC 4180).

    A label is an integer or a word, such as 3, -1, pos or very-good.  Classes are in order: integers by
    value, words alphabetically.  A first row whose label is "label" is a heading.  Blank lines are
    ignored, and so are spaces around a text or a label.  A sentence that occurs again with the same label
    is taken once, so that none is both learnt and tested.

    Raises
    ------
    ValueError
        If the file is not such a table.  The message shows the wrong lines.
    OSError
        If the file cannot be read.
    """
    parse = {".tsv": _tsv, ".csv": _csv}.get(file.suffix.lower())
    if parse is None:
        raise ValueError(f"{file}: expected a name that ends in .tsv or .csv")
    table = [(line, cells) for line, cells in parse(_text(file), file) if "".join(cells).strip()]
    if table and len(table[0][1]) == 2 and table[0][1][1].strip().lower() == "label":
        del table[0]
    if not table:
        raise ValueError(f"{file} has no sentences: expected two columns, text and label")
    wrong = [(line, reason) for line, cells in table if (reason := _what_is_wrong(cells))]
    separator = "a tab" if file.suffix.lower() == ".tsv" else "a comma"
    _refuse(file, wrong, f" with {separator} between them")
    rows = [_Row(line, text.strip(), _label(label)) for line, (text, label) in table]
    return _sentences(rows, file)


def _what_is_wrong(cells: list[str]) -> str | None:
    """Return what is wrong with a row on its own."""
    if len(cells) != 2:
        return f"has {len(cells)} column{'s' * (len(cells) != 1)}, not 2"
    text, label = cells[0].strip(), _label(cells[1])
    if not text:
        return "has no text"
    if label == "":
        return "has no label"
    if isinstance(label, str) and not _is_word(label):
        return f"has the label {_short(label)}, which is neither an integer nor one word"
    return None


def _label(cell: str) -> int | str:
    """Return a label, as an integer if it is one.  Accented letters get one form, however stored.

    An integer has at most 18 digits.  A longer one is no label, and Python does not read integers of
    every length.
    """
    label = unicodedata.normalize("NFC", cell.strip())
    return int(label) if re.fullmatch("[+-]?[0-9]{1,18}", label) else label


def _is_word(label: str) -> bool:
    """Whether this is a word: letters and digits with hyphens or underscores, a letter first."""
    return label[0].isalpha() and label.replace("-", "_").isidentifier()


# ---------------------------------------------------------------------------- text and tables


#: The first bytes of files that are often mistaken for such tables.
_OTHERS = {
    b"PK\x03\x04": "a zip archive, as an .xlsx is: save the sheet as CSV, in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save the sheet as CSV, in UTF-8",
    b"\xff\xfe": "in UTF-16: save it in UTF-8",
    b"\xfe\xff": "in UTF-16: save it in UTF-8",
    b"\x1f\x8b": "compressed: unpack it first",
    b"\x80": "no text, but perhaps a pickle",
}


def _text(file: Path) -> str:
    """Return the text of a file, without the byte order mark that some programs put before UTF-8."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder: expected a file")
    data = file.read_bytes()
    for start, what in _OTHERS.items():
        if data.startswith(start):
            raise ValueError(f"{file} is {what}")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise ValueError(f"{file}, line {line}, has a NUL byte: this is no text in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}, is not in UTF-8: save it in UTF-8") from None


def _tsv(text: str, file: Path) -> list[tuple[int, list[str]]]:
    """Return the number and the cells of each line.  Lines end as usual, and not at U+2028."""
    return [(n, line.rstrip("\n").split("\t")) for n, line in enumerate(io.StringIO(text, None), 1)]


def _csv(text: str, file: Path) -> list[tuple[int, list[str]]]:
    """Return the cells of each row, and the number of the line in which it begins.

    The module ``csv`` limits a cell to 131,072 characters by default, for all its readers at once.  Here
    the length of the text is the limit.
    """
    reader, rows, line = csv.reader(io.StringIO(text, ""), strict=True), [], 1
    bound = csv.field_size_limit(len(text))
    try:
        for cells in reader:
            rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {line}: the quotes in the row that begins here do not match ({error}); "
            "a quote within quotes is doubled"
        ) from None
    finally:
        csv.field_size_limit(bound)
    return rows


# ---------------------------------------------------------------------------- from rows to classes


def _sentences(rows: list[_Row], file: Path) -> Sentences:
    """Return the sentences, each once, with their classes in order.

    Raises
    ------
    ValueError
        If integers and words are mixed, if a sentence has two labels, or if all have the same.
    """
    _refuse_mixture(rows, file)
    first: dict[str, _Row] = {}
    for row in rows:
        first.setdefault(row.text, row)
    _refuse(file, _contradictions(rows, first))
    classes = sorted({row.label for row in rows}, key=lambda label: (isinstance(label, str), label))
    if len(classes) == 1:
        raise ValueError(
            f"{file}: all lines from {rows[0].line} to {rows[-1].line} have the label "
            f"{_short(str(classes[0]))}, and at least two labels are needed"
        )
    place = {label: c for c, label in enumerate(classes)}
    labels = np.array([place[row.label] for row in first.values()], np.intp)
    return Sentences(list(first), labels, [str(label) for label in classes])


def _contradictions(rows: Iterable[_Row], first: dict[str, _Row]) -> list[tuple[int, str]]:
    """Return the lines that give a sentence a second label."""
    return [
        (
            row.line,
            f"has the label {_short(str(row.label))}, and line {before.line} with the same text has "
            f"{_short(str(before.label))}",
        )
        for row in rows
        if (before := first[row.text]).label != row.label
    ]


def _refuse_mixture(rows: list[_Row], file: Path) -> None:
    """Refuse integers beside words."""
    integer = next((row for row in rows if isinstance(row.label, int)), None)
    word = next((row for row in rows if isinstance(row.label, str)), None)
    if integer and word:
        raise ValueError(
            f"{file} mixes integers and words: line {integer.line} has the label {integer.label}, line "
            f"{word.line} {_short(str(word.label))}"
        )


# ---------------------------------------------------------------------------- messages


def _refuse(file: Path, wrong: list[tuple[int, str]], how: str = "", most: int = 5) -> None:
    """Refuse a file for its wrong lines, of which the first few are shown."""
    if wrong:
        shown = [f"\n    line {line} {reason}" for line, reason in wrong[:most]]
        more = f"\n    and {len(wrong) - most:,} more lines" if len(wrong) > most else ""
        raise ValueError(
            f"{file}: expected two columns, text and label{how}, but{''.join(shown)}{more}"
        )


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(map(_short, names[:most])) + ", ..." * (len(names) > most)


def _short(text: str, most: int = 40) -> str:
    """Return a text in quotes, in ASCII, and shortened if it is long."""
    return ascii(text if len(text) <= most else f"{text[:most]}...")
