"""How BERT reads: a text becomes words, and a word becomes pieces that are in a vocabulary.

    "Unaffordable cafés!"  →  unaffordable  cafes  !  →  una ##ff ##ord ##able  cafes  !

BERT (Devlin et al. 2018, arXiv:1810.04805, section 3) has 30,000 pieces, learnt by WordPiece (Schuster
and Nakajima 2012; Wu et al. 2016, arXiv:1609.08144, section 4.1).  A piece that continues a word begins
with ``##``.  There are two short steps:

1.  **Words.**  Each character is cleaned by itself, whatever stands around it.  It may vanish, lose its
    accent, or become a word of its own.  Then white space separates the words.
2.  **Pieces.**  From the left, the longest piece that fits is taken, again and again.  If nothing fits
    somewhere, the whole word is unknown: ``[UNK]``.

The ids are those of Hugging Face's ``BertWordPieceTokenizer``; the tests compare them.  There are two
exceptions, both for rare characters.  First, that library has Unicode's tables of about 2015, and we
have those of this Python.  So characters that are newer, or have changed their category since, may
differ.  Second, marks that take up space, as in written music, stay in their order.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

#: A longer word counts as unknown, so that a hostile one costs little.
LONGEST_WORD = 100

#: The blocks of Chinese characters, which need no spaces between words.
IDEOGRAPHS = [
    *(range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xF900, 0xFB00), range(0x20000, 0x2A6E0)),
    *(range(0x2A700, 0x2B820), range(0x2B920, 0x2CEB0), range(0x2F800, 0x2FA20)),
]


class Characters(dict[int, str]):
    """What each character becomes: the table for ``str.translate``.

    It fills itself, one character at a time.  Cleaning each character by itself keeps the time
    proportional to the length of the text.  (``unicodedata.normalize`` takes quadratic time for a long
    row of accents, because it sorts them.  Here they are dropped.)
    """

    def __init__(self, lower_case: bool, strip_accents: bool, chinese: bool) -> None:
        self.lower_case = lower_case
        self.strip_accents = strip_accents
        self.chinese = chinese

    def __missing__(self, code: int) -> str:
        self[code] = self.cleaned(chr(code))
        return self[code]

    def cleaned(self, character: str) -> str:
        """Return what a character becomes.  One that stands alone has a space on either side."""
        # What vanishes: control and format characters, private ones, halves of a surrogate pair, and the
        # replacement of unreadable bytes.  White space stays, because it separates words.
        vanishing = unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs")
        if (vanishing and character not in "\t\n\r") or ord(character) == 0xFFFD:
            return ""
        if self.strip_accents:  # é is e and a mark of the category Mn
            parts = unicodedata.normalize("NFD", character)
            character = "".join(part for part in parts if unicodedata.category(part) != "Mn")
        if self.lower_case:
            character = character.lower()
        return "".join(f" {part} " if self.stands_alone(part) else part for part in character)

    def stands_alone(self, character: str) -> bool:
        """Tell whether a character is a word by itself: punctuation, $ and the like, or Chinese."""
        if character in string.punctuation or unicodedata.category(character).startswith("P"):
            return True
        return self.chinese and any(ord(character) in block for block in IDEOGRAPHS)


class WordPiece:
    """BERT's tokenizer.

    Parameters
    ----------
    vocabulary
        The pieces; the id of each is its index.  It needs ``[PAD]``, ``[UNK]``, ``[CLS]`` and ``[SEP]``.
    lower_case, strip_accents, chinese
        What is done to characters: ``do_lower_case``, ``strip_accents`` and ``tokenize_chinese_chars``
        of a tokenizer_config.json.  By default, accents are stripped only together with lower case.

    Raises
    ------
    ValueError
        For a vocabulary that is empty, lacks one of the four, or has a piece twice.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lower_case: bool = True,
        strip_accents: bool | None = None,
        chinese: bool = True,
    ) -> None:
        self.ids = numbered(vocabulary)
        self.pad_id = self.ids[PAD]
        self._length = len(vocabulary)
        strip_accents = lower_case if strip_accents is None else strip_accents
        self._characters = Characters(lower_case, strip_accents, chinese)
        special = [token for token in (PAD, UNK, CLS, SEP, MASK) if token in self.ids]
        self._special = re.compile(f"({'|'.join(map(re.escape, special))})")

    @classmethod
    def from_folder(cls, folder: Path) -> WordPiece:
        """Read vocab.txt and, if present, tokenizer_config.json and the options in tokenizer.json.

        Raises
        ------
        ValueError
            If something is missing, unreadable or of another kind of tokenizer.  The message names the
            file, and the line if there is one.
        """
        options = read_options(folder / "tokenizer_config.json")
        vocabulary = read_vocabulary(folder)
        options = normalizer(folder / "tokenizer.json") | options
        try:
            return cls(vocabulary, **options)
        except ValueError as error:
            raise ValueError(f"{folder / 'vocab.txt'}: {error}") from None

    def __len__(self) -> int:
        return self._length

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of a text.  A special token in the text, such as ``[MASK]``, is one piece."""
        found = []
        for i, part in enumerate(self._special.split(text)):
            if i % 2:  # what the pattern has matched
                found.append(part)
                continue
            for word in part.translate(self._characters).split():
                found += self._pieces_of(word)
        return found

    def _pieces_of(self, word: str) -> list[str]:
        if len(word) > LONGEST_WORD:
            return [UNK]
        found, start = [], 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:stop]
                if piece in self.ids:
                    break
            else:
                return [UNK]
            found.append(piece)
            start = stop
        return found

    def encode(self, text: str, longest: int) -> list[int]:
        """Return the ids of ``[CLS]``, the first pieces and ``[SEP]``: at most ``longest`` ids."""
        if longest < 3:
            raise ValueError(f"longest is {longest}: [CLS], a piece and [SEP] need at least 3")
        return [self.ids[piece] for piece in (CLS, *self.pieces(text)[: longest - 2], SEP)]

    def knows(self, text: str) -> bool:
        """Tell whether at least one piece of a text is known, that is, not ``[UNK]``."""
        return any(piece != UNK for piece in self.pieces(text))


def numbered(vocabulary: Sequence[str]) -> dict[str, int]:
    """Return the id of each piece, or say what is wrong with the vocabulary."""
    if not vocabulary:
        raise ValueError("there are no pieces")
    ids: dict[str, int] = {}
    for i, piece in enumerate(vocabulary):
        # Empty lines may repeat: they only take up ids, because no word has an empty piece.
        if piece and piece in ids:
            raise ValueError(f"lines {ids[piece] + 1} and {i + 1} are both {piece!a}")
        ids[piece] = i
    if missing := [token for token in (PAD, UNK, CLS, SEP) if token not in ids]:
        raise ValueError(f"a BERT needs {', '.join(missing)}; none of the {len(ids)} lines is that")
    return ids


#: What a folder without vocab.txt may have instead.
OTHERS = {
    "vocab.json": "vocab.json is of byte-pair encoding, as RoBERTa and GPT-2 have it",
    "spiece.model": "spiece.model is of SentencePiece, as T5 and ALBERT have it",
    "tokenizer.model": "tokenizer.model is of SentencePiece, as Llama and Gemma have it",
    "sentencepiece.bpe.model": "sentencepiece.bpe.model is of SentencePiece, as XLM-RoBERTa has it",
    "tokenizer.json": "if tokenizer.json is of WordPiece, then vocab.txt is written by "
    "tokenizers.Tokenizer.from_file('tokenizer.json').model.save('.')",
}


def read_vocabulary(folder: Path) -> list[str]:
    """Return the lines of vocab.txt, without spaces at their ends."""
    path = folder / "vocab.txt"
    if not path.is_file():
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        names = sorted(file.name for file in folder.iterdir())
        there = ", ".join(names[:12]) + ", ..." * (len(names) > 12) or "nothing"
        other = next((f"; {OTHERS[name]}" for name in OTHERS if name in names), "")
        raise ValueError(f"{folder} has no vocab.txt, as a BERT has; there is {there}{other}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8") from None
    lines = text.split("\n")  # str.splitlines would split at U+2028, which a piece may contain
    return [line.rstrip() for line in (lines if lines[-1] else lines[:-1])]


#: The options of a tokenizer_config.json that are read, and their names here.
OPTIONS = {
    "do_lower_case": "lower_case",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "chinese",
}


def read_options(path: Path) -> dict[str, bool]:
    """Return the options of a tokenizer_config.json under the names that they have here."""
    config = read_object(path)
    kind = config.get("tokenizer_class")
    if kind not in (None, "BertTokenizer", "BertTokenizerFast"):
        raise ValueError(
            f"{path}: tokenizer_class is {kind!a}; expected BertTokenizer or BertTokenizerFast"
        )
    return chosen(config, OPTIONS, path)


#: The same options in the normalizer of a tokenizer.json.
OF_NORMALIZER = {
    "lowercase": "lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "chinese",
}


def normalizer(path: Path) -> dict[str, bool]:
    """Return the options of a tokenizer.json; the rest of it, the vocabulary, is not read."""
    given = read_object(path).get("normalizer")
    if given is None:
        return {}
    kind = given.get("type") if isinstance(given, dict) else given
    if kind != "BertNormalizer":
        raise ValueError(f"{path}: the normalizer is {kind!a}; expected BertNormalizer")
    return chosen(given, OF_NORMALIZER, path)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a file of JSON, or an empty one if there is no file."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a JSON object, but a {type(config).__name__}")
    return config


def chosen(config: dict[str, Any], names: dict[str, str], path: Path) -> dict[str, bool]:
    """Return the options that a config sets, under the names that they have here."""
    options: dict[str, bool] = {}
    for name, ours in names.items():
        value = config.get(name)  # null means the default
        if isinstance(value, bool):
            options[ours] = value
        elif value is not None:
            raise ValueError(f"{path}: {name} is {value!a}; expected true, false or null")
    return options
