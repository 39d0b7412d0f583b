"""examples/finetune_digits.py: the data are what they claim to be, and the command keeps its promises."""

import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import loradora as ld

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "finetune_digits.py"


@pytest.fixture(scope="module")
def digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("digits")


def run(*options, code=None):
    """Run the script, or ``code`` in its place, as a user would."""
    command = [sys.executable, *(["-c", code] if code else [str(SCRIPT)]), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)


# -- the data


def test_split_has_the_documented_parts(digits):
    old, new = digits.mnist(), digits.optdigits()
    assert [len(part.y) for part in old] == [6000, 500, 2000]
    assert [len(part.y) for part in new] == [600, 197, 1000]
    for x, y in (*old, *new):
        assert x.shape == (len(y), 784)
        assert x.dtype == np.float32
        assert x.min() == 0
        assert x.max() == 1
        assert set(y) == set(range(10))


def test_split_goes_by_position(digits):
    with np.load(EXAMPLES / "data" / "optdigits.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(digits.optdigits().test.y, archive["y"][797:1797])
    with np.load(EXAMPLES / "data" / "mnist10k.npz", allow_pickle=False) as archive:
        x = archive["x"][8000:10000].reshape(-1, 784) / 255
        np.testing.assert_allclose(digits.mnist().test.x, x, atol=1e-7)


def test_bilinear_by_hand(digits):
    # Centres of 4 new pixels over 2 old ones: −¼, ¼, ¾, 1¼; outside of 0 … 1 the edge is repeated.
    np.testing.assert_allclose(digits.bilinear(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_enlarged_image_by_hand(digits):
    """One bright pixel becomes the product of two hats, which reach one old pixel to each side."""
    image = np.zeros((1, 8, 8))
    image[0, 2, 2] = 16
    # The centres (i + ½)·0.4 − ½ of i = 4 … 8 are 1.3, 1.7, 2.1, 2.5, 2.9.
    hat = np.zeros(28)
    hat[4 + 4 : 4 + 9] = [0.3, 0.7, 0.9, 0.5, 0.1]
    np.testing.assert_allclose(
        digits.as_mnist(image).reshape(28, 28), np.outer(hat, hat), atol=1e-7
    )


def test_few_draws_each_digit_equally_often_and_none_twice(digits):
    pool = digits.optdigits().train
    x, y = digits.few(pool, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(y), np.full(10, 20))
    assert len(np.unique(x, axis=0)) == 200
    again = digits.few(pool, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(x, again.x)


# -- MNIST's own files


def idx(array):
    lengths = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


@pytest.fixture
def standard_files(tmp_path):
    """A tiny MNIST in the standard format: 24 training images gzipped, 10 test images plain."""
    rng = np.random.default_rng(0)
    for name, n, suffix in (("train", 24, ".gz"), ("t10k", 10, "")):
        pack = gzip.compress if suffix else bytes
        x, y = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        (tmp_path / f"{name}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(x)))
        (tmp_path / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(y)))
    return tmp_path


def test_standard_files_plain_and_gzipped(digits, standard_files):
    train, validation, test = digits.mnist(standard_files)
    assert (len(train.y), len(validation.y), len(test.y)) == (22, 2, 10)
    x = np.random.default_rng(0).integers(0, 256, (24, 28, 28)).reshape(24, 784)
    np.testing.assert_allclose(np.concatenate([train.x, validation.x]), x / 255, atol=1e-7)
    np.testing.assert_array_equal(test.y, np.arange(10))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip", "cannot read"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"0" * 50)[:-9], "cannot read"),
        ("t10k-images-idx3-ubyte", b"P5 28 28", "not an IDX file"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((10, 28, 28)))[:-1], "cut off or too long"),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "cut off or too long"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((10, 8, 8))), "28×28"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(9)), "a label 0 … 9 for each"),
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 10)), "a label 0 … 9 for each"),
    ],
)
def test_damaged_standard_files_are_refused(digits, standard_files, name, content, message):
    (standard_files / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        digits.mnist(standard_files)


def test_missing_standard_file_is_named(digits, standard_files):
    (standard_files / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="neither t10k-labels-idx1-ubyte nor"):
        digits.mnist(standard_files)


# -- the command


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """All methods for two epochs, as if there were no matplotlib; then the modules in use, in a line."""
    out = tmp_path_factory.mktemp("out")
    script = f"""if True:
        import runpy, sys
        sys.path.insert(0, {str(EXAMPLES)!r})
        sys.modules["matplotlib"] = None
        runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
        print(*(name for name, module in sys.modules.items() if module))"""
    options = ["--epochs", 2, "--seed", 7, "--plot", "--out", out, "--json", out / "rows.json"]
    done = run(*options, code=script)
    assert done.returncode == 0, done.stderr
    text, _, modules = done.stdout.rstrip().rpartition("\n")
    rows = json.loads((out / "rows.json").read_text())
    return SimpleNamespace(text=text, modules=modules, errors=done.stderr, rows=rows, out=out)


def test_json_is_the_table(short_run):
    names = [row["method"] for row in short_run.rows]
    assert names == ["frozen", "scratch", "head", "full", "lora", "dora"]
    for row in short_run.rows:
        assert list(row) == [
            "method", "trainable", "total", "new_domain_accuracy", "old_domain_accuracy",
            "base_accuracy", "seconds", "seed",
        ]  # fmt: skip
        assert row["seed"] == 7
        assert 0 <= row["new_domain_accuracy"] <= 1
        assert f"{100 * row['new_domain_accuracy']:.1f}" in short_run.text
        assert f"{row['trainable']:,}" in short_run.text


def test_parameters_are_counted(short_run):
    counts = {row["method"]: (row["trainable"], row["total"]) for row in short_run.rows}
    assert counts == {
        "frozen": (0, 235_146),
        "scratch": (235_146, 235_146),
        "head": (1_290, 235_146),
        "full": (235_146, 235_146),
        "lora": (6_248, 235_146 + 6_248),
        "dora": (6_642, 235_146 + 6_642),
    }


def test_base_is_untouched(short_run):
    frozen, *others = short_run.rows
    assert frozen["old_domain_accuracy"] == frozen["base_accuracy"] > 0.9
    assert all(row["base_accuracy"] == frozen["base_accuracy"] for row in others)
    assert "off = base, bit for bit" in short_run.text


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_saved_adapter_reproduces_its_row(short_run, digits, method):
    base = ld.MLP(digits.SIZES)
    ld.load_model(short_run.out / "base_seed7.npz", base)
    model = ld.PeftModel.from_pretrained(base, short_run.out / f"{method}_r4_seed7.npz")
    row = next(row for row in short_run.rows if row["method"] == method)
    assert ld.evaluate(model, *digits.optdigits().test).accuracy == row["new_domain_accuracy"]
    assert ld.evaluate(model, *digits.mnist().test).accuracy == row["old_domain_accuracy"]


def test_merged_models_are_checked_and_files_named(short_run):
    assert "merged = live" in short_run.text
    for name in ("base_seed7.npz", "lora_r4_seed7.npz", "dora_r4_seed7.npz", "rows.json"):
        assert str(short_run.out / name) in short_run.text


def test_progress_goes_to_stderr(short_run):
    assert "seed 7: DoRA r=4" in short_run.errors
    assert "seed 7" not in short_run.text


def test_needs_only_numpy(short_run):
    def top(names):
        return {name.partition(".")[0] for name in names.split()}

    ours = {"minigrad", "loradora", "digits", "plots"}
    # what is there before any of it: NumPy's parts, an editable install, a virtualenv
    before = run(code="import sys, numpy.random; print(*sys.modules)").stdout
    assert top(short_run.modules) <= set(sys.stdlib_module_names) | ours | top(before)


def test_without_matplotlib_plot_names_the_extra(short_run):
    assert "pip install -e '.[plot]'" in short_run.errors
    assert not (short_run.out / "finetune_digits.png").exists()


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([-0.4], "does not beat"),
        ([0.4], "too few seeds"),
        ([0.3, 0.3], "too few seeds"),
        ([-0.5, -0.3, -0.6, -0.2, -0.4], "does not beat"),
        ([1.0, -0.9, 0.8, -0.7, 0.3], "does not beat"),
        ([1.0, 1.1, 0.9, 1.2, 0.8], "it beats"),
    ],
)
def test_says_what_dora_gained(digits, gains, verdict):
    script = importlib.import_module("finetune_digits")
    assert verdict in script.dora_against_lora(np.array(gains))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "--rank"),
        (["--alpha", "nan"], "--alpha"),
        (["--per-class", "0"], "--per-class"),
        (["--per-class", "1000"], "at most 57"),
        (["--method", "nonsense"], "'nonsense'"),
        (["--epochs", "-1"], "--epochs"),
        (["--seeds", "0"], "--seeds"),
        (["--mnist", "no/such/place"], "no/such/place"),
        (["--json", "no/such/place/rows.json"], "no/such/place"),
        (["--out", str(SCRIPT)], str(SCRIPT)),
        (["--method", "lora", "--plot"], "--plot"),
    ],
)
def test_bad_options_end_in_one_line(digits, monkeypatch, capsys, tmp_path, options, message):
    script = importlib.import_module("finetune_digits")
    monkeypatch.setattr(sys, "argv", ["finetune_digits.py", "--out", str(tmp_path), *options])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert message in error


def test_bad_options_set_the_exit_code(tmp_path):
    done = run("--rank", 0, "--out", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
