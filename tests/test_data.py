"""The data in the repository are as described, and its scripts would notice if they were not."""

import gzip
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import golden_cases
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """The script on the sources of the digits, working on a copy of the data."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "data")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import sources

    (tmp_path / "text").mkdir()
    texts = [f"text/{name}.txt.gz" for name in sources.TEXTS]
    for file in [*sources.SUMS, *texts, "austen_gpt.npz"]:
        (tmp_path / file).write_bytes((ROOT / "examples" / "data" / file).read_bytes())
    monkeypatch.setattr(sources, "DATA", tmp_path)
    return sources


def digits(sources, name):
    with np.load(sources.DATA / name) as archive:
        return archive["x"], archive["y"]


def run(sources, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sources.py", *map(str, arguments)])
    sources.main()


# ----------------------------------------------------------------------------- without the sources


def test_without_pytorch_and_peft_the_maker_of_golden_cases_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(sys, "argv", ["golden_cases.py"])
    with pytest.raises(SystemExit, match=r"peft.*needs the extra `interop`"):
        golden_cases.main()


def test_both_files_are_checked_and_it_is_said_what_to_get(sources, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    run(sources, monkeypatch)
    optdigits, mnist, texts = capsys.readouterr().out.splitlines()
    assert texts == "text: 7 texts and austen_gpt.npz, their checksums are right"
    assert optdigits.startswith("optdigits.npz: its checksum is right.")
    assert "pip install scikit-learn, or download optdigits.tes" in optdigits
    assert mnist.startswith("mnist10k.npz: its checksum is right.")
    assert "download train-images-idx3-ubyte.gz" in mnist
    with pytest.raises(SystemExit, match=r"nothing to make optdigits.npz from: pip install scikit"):
        run(sources, monkeypatch, "--write")


def test_another_text_and_another_net_are_noticed(sources, monkeypatch):
    with gzip.open(sources.DATA / "text" / "emma.txt.gz", "wt") as file:
        file.write("Emma Woodhouse, handsome, clever, and rich")
    with (sources.DATA / "austen_gpt.npz").open("ab") as file:
        file.write(b".")
    with pytest.raises(SystemExit, match=r"results were computed from: emma, austen_gpt\.npz"):
        run(sources, monkeypatch)


@pytest.mark.parametrize("name", ["mnist10k.npz", "optdigits.npz"])
@pytest.mark.parametrize("change", ["a pixel", "a label", "the order"])
def test_a_changed_file_is_noticed(name, change, sources, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    x, y = digits(sources, name)
    match change:
        case "a pixel":
            x[5, 4, 4] ^= 1
        case "a label":
            y[5] = (y[5] + 1) % 10
        case "the order":
            x, y = x[::-1], y[::-1]
    np.savez_compressed(sources.DATA / name, x=x, y=y)
    with pytest.raises(SystemExit, match=f"error: {name}: the archive has other digits"):
        run(sources, monkeypatch)


# ----------------------------------------------------------------------------- with the sources


def as_optdigits(x, y):
    """Return the lines of a file in UCI's format."""
    return "".join(f"{','.join(map(str, row))}\n" for row in np.c_[x.reshape(len(x), 64), y])


@pytest.mark.parametrize("source", ["UCI's file", "a gzipped copy", "scikit-learn"])
def test_the_optical_digits_are_made_from_their_source(
    source, sources, monkeypatch, tmp_path, capsys
):
    x, y = digits(sources, "optdigits.npz")
    (sources.DATA / "optdigits.npz").unlink()
    file = tmp_path / "optdigits.tes"
    match source:
        case "UCI's file":
            file.write_text(as_optdigits(x, y))
        case "a gzipped copy":
            file = tmp_path / "digits.csv.gz"
            file.write_bytes(gzip.compress(as_optdigits(x, y).encode()))
        case "scikit-learn":
            module = ModuleType("sklearn.datasets")
            module.load_digits = lambda: SimpleNamespace(
                images=x.astype(float), target=y.astype(int)
            )
            monkeypatch.setitem(sys.modules, "sklearn", ModuleType("sklearn"))
            monkeypatch.setitem(sys.modules, "sklearn.datasets", module)
    place = [] if source == "scikit-learn" else ["--optdigits", file]
    run(sources, monkeypatch, "--write", *place)
    assert "1,797 digits, those of its source in the same order" in capsys.readouterr().out
    for made, original in zip(digits(sources, "optdigits.npz"), (x, y)):
        np.testing.assert_array_equal(made, original, strict=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not like optdigits.tes"),
        ("1,2,3\n", "not like optdigits.tes"),
        ("a,b\n", "not like optdigits.tes"),
        ("0," * 64 + "3\n", "the source has other digits"),
        (None, "not like optdigits.tes"),
    ],
    ids=["empty", "too few columns", "no numbers", "other digits", "no file"],
)
@pytest.mark.filterwarnings("ignore:.*input contained no data:UserWarning")
def test_another_file_is_refused_and_nothing_written(text, reason, sources, monkeypatch, tmp_path):
    file = tmp_path / "optdigits.tes"
    if text is not None:
        file.write_text(text)
    before = (sources.DATA / "optdigits.npz").read_bytes()
    with pytest.raises(SystemExit, match=reason):
        run(sources, monkeypatch, "--write", "--optdigits", file)
    assert (sources.DATA / "optdigits.npz").read_bytes() == before


@pytest.fixture
def standard_files(sources, tmp_path):
    """Our MNIST digits in the standard format: 8,000 of them and others for training, 2,000 as a test."""
    x, y = digits(sources, "mnist10k.npz")
    others = 255 - x[:50]
    write_idx(tmp_path, "train", np.concatenate([others, x[:8000]]), np.r_[y[:50], y[:8000]])
    write_idx(tmp_path, "t10k", x[8000:], y[8000:])
    return tmp_path


def write_idx(folder, part, x, y):
    for kind, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
        lengths = np.array(array.shape, ">u4").tobytes()
        (folder / kind).write_bytes(bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes())


def test_every_mnist_digit_is_looked_up_in_the_standard_files(sources, standard_files):
    found = sources.check_mnist(standard_files)
    assert found == "10,000 different digits, all of them in the standard files"


@pytest.mark.parametrize("change", ["an image", "a label"])
def test_an_mnist_digit_that_is_not_in_the_standard_files_is_noticed(
    change, sources, standard_files
):
    x, y = digits(sources, "mnist10k.npz")
    x, y = x[8000:].copy(), y[8000:].copy()
    if change == "an image":
        x[:3] ^= 1
    else:
        y[:3] ^= 1
    write_idx(standard_files, "t10k", x, y)
    with pytest.raises(ValueError, match=r"3 digits of mnist10k\.npz are not in"):
        sources.check_mnist(standard_files)


def test_standard_files_that_are_missing_are_named(sources, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte"):
        run(sources, monkeypatch, "--mnist", tmp_path / "none")
