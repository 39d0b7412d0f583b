"""examples/sentences.py: labelled sentences are read as they are, or refused with the line."""

import csv
import gzip
import hashlib
import io
import pickle
import re
import shlex
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import sentences
from sentences import Sentences

RATED = [
    ("3.5", "Touch\u00e9 \u2013 a  delight!"),
    ("-0.5", "Eh."),
    ("0.0", "It is a film."),
    ("0.25", "Lovely &amp; \"Amazing\"; &lt;3"),
    ("-2", "Crummy."),
    ("-1.5", "Eh."),
]  # fmt: skip


def packed(files):
    """Return a .tar.gz of these files, which does not say when it was made."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(stream.getvalue(), mtime=0)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive like vaderSentiment's with the sentences above; their checksum is the known one."""
    lines = [f"{i}\t{mean}\t{text}" for i, (mean, text) in enumerate(RATED, start=1)]
    ratings = "\r\n".join(lines).encode()
    monkeypatch.setattr(sentences, "RATINGS_SHA256", hashlib.sha256(ratings).hexdigest())
    file = tmp_path / "vader.tar.gz"
    file.write_bytes(packed({sentences.PAPER: packed({sentences.RATINGS: ratings})}))
    return file


@pytest.fixture
def table(tmp_path):
    """Write a table, and return its file."""

    def write(content, name="mine.tsv"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


def refused(read, file):
    """Return the message with which a file is refused, without its path."""
    with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
        read(file)
    assert type(caught.value) is ValueError  # errors of csv and Unicode become one that says more
    assert str(caught.value).isascii()
    return str(caught.value).replace(str(file), "FILE")


def attempt(read, file):
    """Return the sentences of a file, or else the error that refuses it."""
    try:
        return read(file)
    except ValueError as error:
        return error


def numbered(n, classes=2):
    """Return n sentences, each containing its class."""
    labels = np.arange(n, dtype=np.intp) % classes
    names = [f"c{c}" for c in range(classes)]
    return Sentences([f"{i} of {names[c]}" for i, c in enumerate(labels)], labels, names)


# ----------------------------------------------------------------------------- sentences on films


def test_the_sign_of_the_mean_is_the_class_and_zero_is_none(archive):
    texts, labels, names = sentences.movies(archive)
    assert texts == [
        "Touch\u00e9 \u2013 a  delight!",
        "Eh.",
        'Lovely & "Amazing"; &lt;3',
        "Crummy.",
    ]
    assert names == ["negative", "positive"]
    assert_array_equal(labels, [1, 0, 1, 0])
    assert labels.dtype == np.intp


def test_nothing_is_unpacked_beside_the_archive(archive):
    before = archive.read_bytes()
    sentences.movies(archive)
    assert list(archive.parent.iterdir()) == [archive]
    assert archive.read_bytes() == before


def test_without_the_archive_the_command_that_gets_it_is_shown(tmp_path):
    file = tmp_path / "my data" / "vaderSentiment-3.3.2.tar.gz"
    with pytest.raises(ValueError, match="is not there") as caught:
        sentences.movies(file)
    command = shlex.split(str(caught.value).splitlines()[1])
    assert command == [
        *("pip", "download", "--no-deps", "--no-binary", ":all:", "--dest"),
        str(file.parent),
        "vaderSentiment==3.3.2",
    ]


def test_the_page_and_the_docstring_show_the_same_command():
    command = sentences.COMMAND.format("examples/data")
    page = Path(sentences.__file__).parent / "data" / "README.md"
    assert f"    {command}\n" in sentences.__doc__
    assert f"`{command}`" in page.read_text(encoding="utf-8")
    assert sentences.ARCHIVE.parts[-3:] == ("examples", "data", "vaderSentiment-3.3.2.tar.gz")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive at all",
        packed({}),
        packed({sentences.PAPER: b"no archive in it"}),
        packed({sentences.PAPER: packed({"another.txt": b""})}),
        packed({sentences.PAPER: packed({f"{sentences.RATINGS}/in a folder": b""})}),
        packed({sentences.PAPER: bytes(10_000)})[:-20],
        gzip.compress(b"no tar", mtime=0),
    ],
    ids=range(8),
)
def test_a_damaged_archive_is_refused(table, content):
    message = refused(sentences.movies, table(content, "vader.tar.gz"))
    assert message.startswith(
        "FILE is damaged, or not the source archive of vaderSentiment 3.3.2 ("
    )
    assert message.endswith("vaderSentiment==3.3.2")


def test_a_cut_or_altered_archive_is_refused_or_has_all_of_them(archive, table):
    whole, expected = archive.read_bytes(), sentences.movies(archive).texts
    cut = [whole[:n] for n in range(len(whole))]
    altered = [
        whole[:n] + bytes([whole[n] ^ bit]) + whole[n + 1 :]
        for n in range(len(whole))
        for bit in (1, 16, 255)
    ]
    for content in cut + altered:
        found = attempt(sentences.movies, table(content, "hurt.tar.gz"))
        if isinstance(found, ValueError):
            assert re.search(r"hurt.tar.gz(:| is damaged)", str(found))
        else:
            assert found.texts == expected


def test_an_archive_that_is_damaged_deep_inside_is_refused(table):
    letters = np.random.default_rng(0).integers(64, 128, 500_000, np.uint8).tobytes()
    whole = packed({sentences.PAPER: letters})
    middle = len(whole) // 2
    for n in 1, 10, 1000:
        hurt = whole[:middle] + b"\xff" * n + whole[middle + n :]
        assert "is damaged" in refused(sentences.movies, table(hurt, "vader.tar.gz"))


def test_a_folder_as_a_member_is_no_file(table):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        folder = tarfile.TarInfo(sentences.PAPER)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert "is no file" in refused(sentences.movies, table(stream.getvalue(), "vader.tar.gz"))


def test_other_ratings_are_refused_by_name(archive, monkeypatch):
    monkeypatch.undo()  # the checksum of the real ones again
    message = refused(sentences.movies, archive)
    assert sentences.RATINGS in message
    assert f"not {sentences.RATINGS_SHA256}" in message


def test_the_real_sentences_are_those_that_are_described():
    if not sentences.ARCHIVE.exists():
        pytest.skip("needs " + sentences.COMMAND.format("examples/data"))
    texts, labels, names = sentences.movies()
    assert names == ["negative", "positive"]
    assert_array_equal(np.bincount(labels), [5325, 5241])
    assert texts[0].startswith("The Rock is destined to be the 21st Century's new ''Conan''")
    assert {"Touch\u00e9!", "Crummy.", "Griffin & Co. manage to be spectacularly outrageous."} < {
        *texts
    }
    # not even without case, punctuation and spaces does a sentence occur again
    assert len({"".join(re.findall("[a-z0-9]+", text.lower())) for text in texts}) == len(texts)


# ----------------------------------------------------------------------------- tables


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1)
WORDS = st.from_regex(r"[a-z\u00e0-\u00f6][a-z0-9_-]{0,5}", fullmatch=True)
LABELS = st.one_of(
    st.lists(st.integers(-(10**17), 10**17), min_size=2, unique=True),
    st.lists(WORDS.filter(lambda word: word != "label"), min_size=2, unique=True),
)


@st.composite
def tables(draw, cells):
    """Draw different texts, at least one of each label, and the labels in order."""
    classes = draw(LABELS)
    n = draw(st.integers(len(classes), 3 * len(classes)))
    rows = draw(st.lists(cells.map(str.strip).filter(bool), min_size=n, max_size=n, unique=True))
    labels = classes + [draw(st.sampled_from(classes)) for _ in rows[len(classes) :]]
    return rows, labels, sorted(classes)


def check(file, texts, labels, classes):
    found = sentences.read(file)
    assert found.texts == texts
    assert found.names == [str(label) for label in classes]
    assert [classes[c] for c in found.labels] == labels
    assert found.labels.dtype == np.intp


@given(tables(CELLS), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_what_the_csv_module_writes_is_read_back(drawn, end, mark, heading):
    texts, labels, classes = drawn
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator=end)
    writer.writerows([("text", "Label")] * heading)
    writer.writerows(zip(texts, labels))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.CSV"
        file.write_bytes(stream.getvalue().encode("utf-8-sig" if mark else "utf-8"))
        check(file, texts, labels, classes)


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\t"), min_size=1)


@given(tables(LINES), st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]), st.booleans())
def test_a_tsv_is_read_line_by_line(drawn, end, last):
    texts, labels, classes = drawn
    lines = [f"{text}\t{label}" for text, label in zip(texts, labels)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.tsv"
        file.write_bytes((end.join(lines) + end * last).encode())
        check(file, texts, labels, classes)


def test_a_quote_in_a_tsv_is_a_character_like_others(table):
    assert sentences.read(table('"a\t1\nb ""\t2')).texts == ['"a', 'b ""']


def test_integers_are_sorted_by_value_and_words_by_name(table):
    integers = sentences.read(table("a\t10\nb\t-1\nc\t+9\nd\t009"))
    assert integers.names == ["-1", "9", "10"]
    assert_array_equal(integers.labels, [2, 0, 1, 1])
    words = sentences.read(table("a\tpos\nb\tn\u00e9gatif\nc\tvery-good\nd\tne\u0301gatif\n"))
    assert words.names == ["n\u00e9gatif", "pos", "very-good"]
    assert_array_equal(words.labels, [1, 0, 2, 0])


def test_line_ends_within_quotes_are_kept(table):
    found = sentences.read(table('"a\r\nb\rc\nd",1\r"e",2', "mine.csv"))
    assert found.texts == ["a\r\nb\rc\nd", "e"]


def test_a_heading_is_only_in_the_first_row(table):
    assert sentences.read(table("\n\nSentence\t LABEL \na\t1\nb\t2")).texts == ["a", "b"]
    assert sentences.read(table("a\tx\nb\tlabel")).names == ["label", "x"]


def test_a_sentence_with_the_same_label_is_taken_once(table):
    found = sentences.read(table("a\t1\n b\t2\na \t1\nc\t1\nb\t2"))
    assert found.texts == ["a", "b", "c"]
    assert_array_equal(found.labels, [0, 1, 0])


def test_a_sentence_may_be_longer_than_the_csv_module_allows(table):
    before = csv.field_size_limit()
    long = "x" * (2 * before)
    assert sentences.read(table(f"{long},1\nb,2", "long.csv")).texts == [long, "b"]
    assert csv.field_size_limit() == before
    refused(sentences.read, table('a,1\nb,"2', "open.csv"))
    assert csv.field_size_limit() == before


# ----------------------------------------------------------------------------- tables that are none


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("one", "has 1 column, not 2"),
        ("one\t1\t", "has 3 columns, not 2"),
        ("\t1", "has no text"),
        (" \t1", "has no text"),
        ("x\t", "has no label"),
        ("x\t ", "has no label"),
        *(
            (f"x\t{label}", f"has the label {label!a}, which is neither an integer nor one word")
            for label in [
                "0.5",
                "two words",
                "!!",
                "1e3",
                "-",
                "_",
                "4star",
                "\u0661",
                "9" * 19,
                "a.b",
            ]
        ),
        (
            f"x\t{'9' * 5000}",
            f"has the label '{'9' * 40}...', which is neither an integer nor one word",
        ),
    ],
)
def test_a_row_that_is_none_is_refused_with_its_line(table, row, reason):
    message = refused(sentences.read, table(f"a\t1\n\n{row}\nb\t2\n"))
    expected = "FILE: expected two columns, text and label with a tab between them, but"
    assert message == f"{expected}\n    line 3 {reason}"


def test_of_many_wrong_rows_the_first_are_shown(table):
    rows = "".join(f"sentence {i}\t0.{i % 10}\n" for i in range(1, 1239))
    lines = refused(sentences.read, table(rows)).splitlines()
    assert [line.split()[1] for line in lines[1:6]] == ["1", "2", "3", "4", "5"]
    assert lines[6:] == ["    and 1,233 more lines"]
    lines = refused(sentences.read, table("a\n" * 5)).splitlines()
    assert len(lines) == 6


def test_the_line_of_a_csv_is_where_the_row_begins(table):
    message = refused(sentences.read, table('"two\nlines",1\n\n"two\n\nmore",!\nb,2', "mine.csv"))
    assert "\n    line 4 has the label '!'" in message
    assert "more lines" not in message


@pytest.mark.parametrize("broken", ['"a"b,1', '"a,1', '"a,1\nc,2\n"d"",2\n', '"a" ,1'])
def test_quotes_that_do_not_match_are_refused_with_the_line(table, broken):
    message = refused(sentences.read, table(f"x,1\ny,2\n{broken}", "mine.csv"))
    assert message.startswith("FILE, line 3: the quotes in the row that begins here do not match (")


def test_integers_beside_words_are_refused_with_both_lines(table):
    message = refused(sentences.read, table("a\t1\nb\t2\n\nc\tp\u00f6s\nd\tneg"))
    assert message == ("FILE mixes integers and words: line 1 has the label 1, line 4 'p\\xf6s'")


def test_one_text_with_two_labels_is_refused_with_both_lines(table):
    message = refused(sentences.read, table("a\tpos\nb\tneg\na\tneg\na\tpos\nb\tpos"))
    assert message.splitlines()[1:] == [
        "    line 3 has the label 'neg', and line 1 with the same text has 'pos'",
        "    line 5 has the label 'pos', and line 2 with the same text has 'neg'",
    ]


def test_one_class_is_refused(table):
    assert refused(sentences.read, table("\na\t7\nb\t7\n\nc\t7\n")) == (
        "FILE: all lines from 2 to 5 have the label '7', and at least two labels are needed"
    )


@pytest.mark.parametrize("name", ["mine.tsv", "mine.csv"])
def test_a_file_without_sentences_is_refused(table, name):
    between = "\t" if name == "mine.tsv" else ","
    for content in "", "\ufeff", "\n \n\n", f"text{between}label", f"text{between}LABEL\r\n\r\n":
        message = refused(sentences.read, table(content, name))
        assert message == "FILE has no sentences: expected two columns, text and label"


@pytest.mark.parametrize("name", ["mine.txt", "mine", "mine.csv.gz", "mine.xlsx"])
def test_other_names_are_refused(table, name):
    message = refused(sentences.read, table("a\t1\nb\t2", name))
    assert message == "FILE: expected a name that ends in .tsv or .csv"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a,1\nb\0,2", "FILE, line 2, has a NUL byte: this is no text in UTF-8"),
        (b"a,1\nb,2\nn\xe9,1", "FILE, line 3, is not in UTF-8: save it in UTF-8"),
        (b"\xef\xbb\xbfa,1\n\xff", "FILE, line 2, is not in UTF-8: save it in UTF-8"),
        ("a,1\nb,2".encode("utf-16"), "FILE is in UTF-16: save it in UTF-8"),
        ("\ufeffa,1".encode("utf-16-be"), "FILE is in UTF-16: save it in UTF-8"),
        (pickle.dumps(["a", 1]), "FILE is no text, but perhaps a pickle"),
        (b"PK\x03\x04...", "FILE is a zip archive, as an .xlsx is: save the sheet as CSV, in UTF-8"),
        (b"\xd0\xcf\x11\xe0.", "FILE is an old Excel file: save the sheet as CSV, in UTF-8"),
        (gzip.compress(b"a,1", mtime=0), "FILE is compressed: unpack it first"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(table, content, reason):
    for name in "mine.csv", "mine.tsv":
        assert refused(sentences.read, table(content, name)) == reason


ALMOST_TABLES = st.text('ab1-.,"\n\r\t \ufeff\u2028\xe9').map(str.encode)


@given(ALMOST_TABLES | st.binary(), st.sampled_from(["mine.csv", "mine.tsv"]))
def test_any_bytes_are_sentences_or_one_clear_error(content, name):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        found = attempt(sentences.read, file)
    if isinstance(found, ValueError):
        assert type(found) is ValueError
        assert str(found).startswith(str(file))
    else:
        assert len(found.texts) == len(found.labels)
        assert set(found.labels) == set(range(len(found.names)))


def test_a_folder_is_refused_and_a_missing_file_is_the_disks_error(tmp_path):
    (tmp_path / "mine.csv").mkdir()
    assert refused(sentences.read, tmp_path / "mine.csv") == "FILE is a folder: expected a file"
    with pytest.raises(FileNotFoundError, match="absent"):
        sentences.read(tmp_path / "absent.csv")


# ----------------------------------------------------------------------------- two parts


@given(st.integers(0, 2**32), st.integers(20, 40), st.integers(1, 10))
def test_the_parts_are_disjoint_and_keep_their_labels(seed, train, test):
    whole = numbered(50)
    parts = sentences.split(whole, seed=seed, train=train, test=test)
    assert [len(part.texts) for part in parts] == [train, test]
    assert not set(parts[0].texts) & set(parts[1].texts)
    for texts, labels, names in parts:
        assert len(set(texts)) == len(texts)
        assert names == whole.names
        assert [text.split()[-1] for text in texts] == [names[c] for c in labels]
        assert labels.dtype == np.intp


def test_the_seed_says_which():
    def texts(seed):
        return sentences.split(numbered(50), seed=seed, train=20, test=30)[0].texts

    order = np.random.default_rng(3).permutation(50)
    assert texts(3) == [numbered(50).texts[i] for i in order[:20]]
    assert texts(3) != texts(4)


def test_a_split_of_all_there_are_is_possible_and_of_more_is_not():
    sentences.split(numbered(10), seed=0, train=8, test=2)
    with pytest.raises(ValueError, match=r"8 \+ 3 sentences are asked for, and there are 10$"):
        sentences.split(numbered(10), seed=0, train=8, test=3)


@pytest.mark.parametrize("sizes", [{"train": 0, "test": 1}, {"train": 5, "test": -1}])
def test_a_part_without_sentences_is_refused(sizes):
    with pytest.raises(ValueError, match="each part needs a sentence: train="):
        sentences.split(numbered(10), seed=0, **sizes)


def test_a_class_that_cannot_be_learnt_is_named():
    whole = numbered(10, classes=10)
    learnt, _ = sentences.split(numbered(10), seed=5, train=3, test=1)
    known = {text.split()[0] for text in learnt.texts}
    missing = [f"c{c}" for c in range(10) if str(c) not in known]
    expected = ", ".join(map(repr, missing[:5]))
    with pytest.raises(
        ValueError, match=f"with seed 5, none of the 3 .* label {expected}, ...: take"
    ):
        sentences.split(whole, seed=5, train=3, test=1)
