"""BERT's tokenizer: what characters and words become, and which vocabularies are refused."""

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import wordpiece
from wordpiece import WordPiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abc", "##a", "##b", "##c"]


def tokenizer(*pieces, **options):
    return WordPiece([*SPECIAL, *pieces], **options)


def words(text, expected, **options):
    """Return the pieces of a text for a vocabulary of the words that are expected."""
    return tokenizer(*dict.fromkeys(expected), **options).pieces(text)


# ----------------------------------------------------------------------------- characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n\r\u00a0\u2003\u2028\u2029\u3000", []),
        ("a\tb\nc\rd\u00a0e\u2028f\u3000g", [*"abcdefg"]),
        ("a\0b\ufffdc\x07d\u200de\ufefff\x0bg\x85h\x1ci\ue000j\ud800k", ["abcdefghijk"]),
        ("don't", ["don", "'", "t"]),
        ("$1+2=3^`~|<", ["$", "1", "+", "2", "=", "3", "^", "`", "~", "|", "<"]),
        ("\u00a1a\u2014b\u2026\u3002", ["\u00a1", "a", "\u2014", "b", "\u2026", "\u3002"]),
        ("\u00aba\u00bb_b\u203f", ["\u00ab", "a", "\u00bb", "_", "b", "\u203f"]),
        ("\u0915\u0903\u093c", ["\u0915\u0903"]),  # a mark that takes up space stays
        ("a\u20acb\u00b0c", ["a\u20acb\u00b0c"]),  # signs that are no punctuation
        ("ab\u4e2d\u6587c", ["ab", "\u4e2d", "\u6587", "c"]),
        ("\u3042\u30ab", ["\u3042\u30ab"]),  # Japanese syllables are letters
        ("\u03a3\u039f\u03a6\u039f\u03a3", ["\u03c3\u03bf\u03c6\u03bf\u03c3"]),  # no final sigma
        ("\u0130I\u00df\u1e9e", ["ii\u00df\u00df"]),
        ("Caf\u00e9 Ca\u0301fe", ["cafe", "cafe"]),
        ("\u2260\u037e", ["=", ";"]),  # an accent on "=" and a question mark, as Greek has it
        ("\ud55c", ["\u1112\u1161\u11ab"]),
        ("\uf900", ["\u8c48"]),
    ],
    ids=ascii,
)
def test_a_text_becomes_words(text, expected):
    assert words(text, expected) == expected


def test_chinese_characters_stand_in_seven_blocks():
    """All characters of a block stand alone; the ones just before and after it do not."""
    bounds = "3400-4dbf 4e00-9fff f900-faff 20000-2a6df 2a700-2b81f 2b920-2ceaf 2f800-2fa1f"
    alone = wordpiece.Characters(False, False, True).stands_alone
    for first, last in (block.split("-") for block in bounds.split()):
        inside = range(int(first, 16), int(last, 16) + 1)
        assert all(alone(chr(code)) for code in inside)
        assert not alone(chr(inside[0] - 1))
        assert not alone(chr(inside[-1] + 1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["cafe", "\u4e2d", "a"]),
        ({"lower_case": False}, ["Caf\u00c9", "\u4e2d", "a"]),
        ({"lower_case": False, "strip_accents": True}, ["CafE", "\u4e2d", "a"]),
        ({"strip_accents": False}, ["caf\u00e9", "\u4e2d", "a"]),
        ({"chinese": False}, ["cafe\u4e2da"]),
    ],
    ids=str,
)
def test_options_say_what_is_done_to_characters(options, expected):
    assert words("Caf\u00c9\u4e2da", expected, **options) == expected


# ----------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("Un-affable", ["un", "[UNK]", "[UNK]"]),  # "##aff" does not begin a word
        ("una", ["[UNK]"]),  # "un" is known, but not the rest
        ("unaffaffaffable", ["un", "##aff", "##aff", "##affable"]),
        ("un un", ["un", "un"]),
        ("##aff", ["[UNK]"] * 3),
    ],
)
def test_the_longest_piece_that_fits_is_taken(text, expected):
    rest = [] if text == "unaffable" else ["##affable"]
    assert tokenizer("un", "##aff", "##able", *rest).pieces(text) == expected


def test_no_shorter_piece_is_tried_again():
    """a ##bc would fit.  But ab is longer than a, and after it nothing fits."""
    assert tokenizer("a", "ab", "##bc").pieces("abc") == ["[UNK]"]


def test_a_word_of_more_than_100_characters_is_unknown():
    bert = tokenizer(*LETTERS, "\u00e9")
    assert bert.pieces("a" * 100) == ["a", *["##a"] * 99]
    assert bert.pieces("a" * 101) == ["[UNK]"]
    assert len(bert.pieces("a\u0301" * 100)) == 100  # accents do not count: they are gone before
    assert bert.pieces(f"{'a' * 101} b") == ["[UNK]", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a[SEP]b", ["a", "[SEP]", "b"]),
        ("a \n[MASK]  b", ["a", "[MASK]", "b"]),
        ("[UNK][PAD][CLS]", ["[UNK]", "[PAD]", "[CLS]"]),
        ("[[SEP]]", ["[", "[SEP]", "]"]),
        ("[sep]", ["[", "sep", "]"]),
        ("[ SEP]", ["[", "sep", "]"]),
        ("[S\0EP]", ["[", "sep", "]"]),
    ],
)
def test_a_special_token_in_the_text_is_itself(text, expected):
    assert tokenizer("a", "b", "[", "]", "sep").pieces(text) == expected


def test_a_mask_is_one_only_for_a_vocabulary_that_has_it():
    bert = WordPiece([*SPECIAL[:4], "[", "]", "mask"])
    assert bert.pieces("[MASK]") == ["[", "mask", "]"]


@given(st.text("abc", max_size=100))
def test_the_pieces_of_a_word_put_together_are_the_word(word):
    pieces = tokenizer(*LETTERS, "ab", "##ab", "##bca").pieces(word)
    assert "".join(piece.removeprefix("##") for piece in pieces) == word
    assert [piece.startswith("##") for piece in pieces] == [i > 0 for i in range(len(pieces))]


@given(st.text(), st.text())
def test_texts_with_a_space_between_are_read_one_after_the_other(first, second):
    bert = tokenizer(*LETTERS, "ab", *"!.?\u4e2d")
    assert bert.pieces(f"{first} {second}") == bert.pieces(first) + bert.pieces(second)


# ----------------------------------------------------------------------------- ids


def test_a_text_is_encoded_between_cls_and_sep():
    bert = tokenizer("a", "##b", "c")
    assert len(bert) == 8
    assert bert.pad_id == 0
    assert bert.encode("Ab c d", 128) == [2, 5, 6, 7, 1, 3]
    assert bert.encode("", 3) == [2, 3]
    assert [bert.encode("ab c", longest) for longest in (3, 4, 5, 6)] == [
        [2, 5, 3],
        [2, 5, 6, 3],
        [2, 5, 6, 7, 3],
        [2, 5, 6, 7, 3],
    ]
    assert WordPiece(SPECIAL[::-1]).pad_id == 4


@given(st.text("abc ,[SEP]"), st.integers(3, 12))
def test_no_encoding_is_longer_than_asked(text, longest):
    bert = tokenizer(*LETTERS)
    ids, whole = bert.encode(text, longest), bert.encode(text, 10**6)
    assert len(ids) == min(longest, len(whole))
    assert ids == [*whole[: len(ids) - 1], 3]


@pytest.mark.parametrize("longest", [2, 0, -1])
def test_there_must_be_room_for_a_piece(longest):
    with pytest.raises(ValueError, match=rf"^longest is {longest}: .* at least 3$"):
        tokenizer().encode("a", longest)


@pytest.mark.parametrize(
    ("text", "known"),
    [("", False), (" \n", False), ("x [UNK] !", False), ("x a", True), ("ab", True)],
)
def test_a_text_is_known_if_one_of_its_pieces_is(text, known):
    assert tokenizer(*LETTERS).knows(text) is known


# ----------------------------------------------------------------------------- files


def folder_of(path, vocabulary=None, config=None):
    """Write a folder, and return it."""
    if vocabulary is not None:
        (path / "vocab.txt").write_bytes(vocabulary)
    if config is not None:
        (path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return path


VOCABULARY = "\n".join([*SPECIAL, "caf\u00e9", "cafe", "Caf\u00e9"]).encode()


@pytest.mark.parametrize(
    "data",
    [VOCABULARY, VOCABULARY + b"\n", VOCABULARY.replace(b"\n", b"\r\n"), VOCABULARY + b"  \t\r\n"],
    ids=["no end", "\\n", "\\r\\n", "spaces"],
)
def test_a_vocabulary_is_read_however_its_lines_end(tmp_path, data):
    bert = WordPiece.from_folder(folder_of(tmp_path, data))
    assert list(bert.ids) == VOCABULARY.decode().split("\n")
    assert len(bert) == 8


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    pieces = [*SPECIAL, "", "a\u2028b", "", "c\x0bd", "e f", "g"]
    bert = WordPiece.from_folder(folder_of(tmp_path, "\n".join(pieces).encode()))
    assert [(piece, bert.ids[piece]) for piece in ("a\u2028b", "c\x0bd", "e f", "g")] == [
        ("a\u2028b", 6),
        ("c\x0bd", 8),
        ("e f", 9),
        ("g", 10),
    ]
    assert len(bert) == 11


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "cafe"),
        ({}, "cafe"),
        ({"do_lower_case": None, "strip_accents": None, "tokenize_chinese_chars": None}, "cafe"),
        ({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}, "Caf\u00e9"),
        ({"strip_accents": False, "tokenizer_class": "BertTokenizerFast"}, "caf\u00e9"),
        ({"tokenize_chinese_chars": False, "model_max_length": 512, "never_split": None}, "cafe"),
    ],
    ids=str,
)
def test_the_options_of_a_folder_are_followed(tmp_path, config, expected):
    config = config if config is None else json.dumps(config)
    bert = WordPiece.from_folder(folder_of(tmp_path, VOCABULARY, config))
    assert bert.pieces("Caf\u00e9") == [expected]
    chinese = 'tokenize_chinese_chars": false' not in (config or "")
    assert len(bert.pieces("\u4e2d\u4e2d")) == 1 + chinese


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (b"", "there are no pieces"),
        (b"[PAD]\n[UNK]\n\xff\n", "line 3 is not UTF-8"),
        (b"\xff", "line 1 is not UTF-8"),
        (VOCABULARY + b"\ncafe", "lines 7 and 9 are both 'cafe'"),
        (VOCABULARY + "\ncaf\u00e9".encode(), r"lines 6 and 9 are both 'caf\xe9'"),
        (b"[PAD]\na\n[SEP]", "a BERT needs [UNK], [CLS]; none of the 3 lines is that"),
        ("\ufeff".encode() + VOCABULARY, "a BERT needs [PAD]; none of the 8 lines is that"),
    ],
    ids=ascii,
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path, vocabulary, message):
    with pytest.raises(ValueError, match=rf"vocab\.txt: {re.escape(message)}$") as raised:
        WordPiece.from_folder(folder_of(tmp_path, vocabulary))
    assert str(raised.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1]", " is not a JSON object, but a list"),
        ("{", " is not JSON: Expecting property name"),
        ("[" * 10**5, " is not JSON: "),
        (
            '{"tokenizer_class": "RobertaTokenizer"}',
            ": tokenizer_class is 'RobertaTokenizer'; expected Bert",
        ),
        (
            '{"tokenizer_class": ["BertTokenizer"]}',
            ": tokenizer_class is ['BertTokenizer']; expected Bert",
        ),
        ('{"do_lower_case": "no"}', ": do_lower_case is 'no'; expected true, false or null"),
        ('{"strip_accents": 1}', ": strip_accents is 1; expected true, false or null"),
        (
            '{"tokenize_chinese_chars": []}',
            ": tokenize_chinese_chars is []; expected true, false or null",
        ),
    ],
    ids=lambda text: text[:40],
)
def test_a_config_that_is_of_no_bert_is_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=rf"config\.json{re.escape(message)}") as raised:
        WordPiece.from_folder(folder_of(tmp_path, VOCABULARY, config))
    assert str(raised.value).startswith(str(tmp_path))


def test_a_config_that_is_not_utf_8_is_refused(tmp_path):
    folder_of(tmp_path, VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON: .*utf-8.*codec"):
        WordPiece.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "there is nothing"),
        (["config.json", "a"], "there is a, config.json"),
        (
            ["vocab.json", "merges.txt"],
            "there is merges.txt, vocab.json; vocab.json is of byte-pair",
        ),
        (["spiece.model"], "there is spiece.model; spiece.model is of SentencePiece, as T5"),
        (["tokenizer.model", "tokenizer.json"], "tokenizer.model is of SentencePiece, as Llama"),
        (["sentencepiece.bpe.model"], "is of SentencePiece, as XLM-RoBERTa has it"),
        (["tokenizer.json"], "if tokenizer.json is of WordPiece, then vocab.txt is written by"),
        (
            [f"{i:02}" for i in range(20)],
            "there is 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, 10, 11, ...",
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, list) and x else None,
)
def test_a_folder_without_a_vocabulary_is_described(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r" has no vocab\.txt, as a BERT has; ") as raised:
        WordPiece.from_folder(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path} ")
    assert message in str(raised.value)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent is no folder$"):
        WordPiece.from_folder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("normalizer", "config", "pieces"),
    [
        (None, None, ["cafe"]),
        ({"type": "BertNormalizer", "lowercase": False}, None, ["[UNK]"]),
        ({"type": "BertNormalizer", "lowercase": False}, {"do_lower_case": True}, ["cafe"]),
        ({"type": "BertNormalizer", "lowercase": True, "strip_accents": False}, None, ["[UNK]"]),
        ({"type": "BertNormalizer", "lowercase": None}, {"do_lower_case": False}, ["[UNK]"]),
    ],
)
def test_what_is_done_to_characters_may_stand_in_tokenizer_json(
    normalizer, config, pieces, tmp_path
):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ncafe\n", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"normalizer": normalizer}), encoding="utf-8"
    )
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert wordpiece.WordPiece.from_folder(tmp_path).pieces("Caf\u00e9") == pieces


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "tokenizer.json is not JSON"),
        ("[]", "tokenizer.json is not a JSON object, but a list"),
        ('{"normalizer": {"type": "NFC"}}', "the normalizer is 'NFC'; expected BertNormalizer"),
        ('{"normalizer": "NFC"}', "the normalizer is 'NFC'; expected BertNormalizer"),
        (
            '{"normalizer": {"type": "BertNormalizer", "lowercase": 1}}',
            "lowercase is 1; expected true, false or null",
        ),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(content, message, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ncafe\n", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        wordpiece.WordPiece.from_folder(tmp_path)
