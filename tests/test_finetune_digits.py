"""examples/finetune_digits.py: the data are what they claim to be, and the command keeps its promises."""

import ast
import contextlib
import gzip
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pytest
from test_examples import CONSOLE
from test_terminal import on_a_terminal

import loradora as ld

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "finetune_digits.py"


@pytest.fixture(scope="module")
def digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("digits")


@pytest.fixture(scope="module")
def reporting(digits):
    return importlib.import_module("reporting")


@pytest.fixture(scope="module")
def script(digits):
    return importlib.import_module("finetune_digits")


def run(*options, code=None, shell="", encoding="ascii", **env):
    """Run the script, or ``code`` in its place, as a user would, on the poorest of consoles.

    A shell does what ``shell`` says with its output.
    """
    command = [sys.executable, *(["-c", code] if code else [str(SCRIPT)]), *map(str, options)]
    if shell:
        command = ["bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", *command]
    env = {**os.environ, **CONSOLE, "PYTHONIOENCODING": encoding, **env}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, encoding=encoding, timeout=300
    )


def quick(before="pass"):
    """Return code that runs the script on a base that is hardly trained; it first does ``before``."""
    return f"""if True:
        import functools, json, os, pathlib, runpy, signal, sys
        sys.path.insert(0, os.fsdecode({os.fsencode(EXAMPLES)!r}))
        import digits, loradora, reporting
        digits.pretrained = functools.partial(digits.pretrained, steps=30)

        def before(owner, name, act):
            function = getattr(owner, name)
            def acts_first(*arguments, **options):
                act(*arguments)
                return function(*arguments, **options)
            setattr(owner, name, acts_first)

        def fail(*arguments):
            raise OSError(28, "No space left on device")

        def overflow(*arguments):
            raise FloatingPointError("try a smaller learning rate")

        def press(*arguments):
            signal.raise_signal(signal.SIGINT)

        def press_at(job):
            return lambda progress, _: job in progress.job and press()

        {before}
        runpy.run_path(os.fsdecode({os.fsencode(SCRIPT)!r}), run_name="__main__")"""


def stopped_at(job):
    """Return code that runs the script, with Ctrl-C pressed in the middle of a job."""
    return quick(f"before(reporting.Progress, 'step', press_at({job!r}))")


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


DAMAGED = {
    "images that are no gzip": ("train-images-idx3-ubyte.gz", b"no gzip", "cannot read"),
    "a gzip without its end": (
        "train-images-idx3-ubyte.gz", gzip.compress(b"0" * 50)[:-9], "cannot read",
    ),
    "another format": ("t10k-images-idx3-ubyte", b"P5 28 28", "not an IDX file"),
    "a missing pixel": (
        "t10k-images-idx3-ubyte", idx(np.zeros((10, 28, 28)))[:-1], "cut off or too long",
    ),
    "a header without its end": (
        "t10k-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "cut off or too long",
    ),
    "images of 8×8": ("t10k-images-idx3-ubyte", idx(np.zeros((10, 8, 8))), "28 x 28"),
    "a missing label": ("t10k-labels-idx1-ubyte", idx(np.zeros(9)), "a label 0 to 9 for each"),
    "a label that is no digit": (
        "t10k-labels-idx1-ubyte", idx(np.full(10, 10)), "a label 0 to 9 for each",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED.values(), ids=DAMAGED)
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
        import os, runpy, sys, warnings
        warnings.simplefilter("error", EncodingWarning)
        sys.path.insert(0, os.fsdecode({os.fsencode(EXAMPLES)!r}))
        sys.modules["matplotlib"] = None
        runpy.run_module({SCRIPT.stem!r}, run_name="__main__", alter_sys=True)
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
            "base_accuracy", "seconds", "seed", "rate", "attempts",
        ]  # fmt: skip
        assert row["seed"] == 7
        assert 0 <= row["new_domain_accuracy"] <= 1
        assert f"{100 * row['new_domain_accuracy']:.1f}" in short_run.text
        assert f"{row['trainable']:,}" in short_run.text


def test_json_has_every_rate_and_the_second_table_shows_it(short_run, script):
    frozen, *others = short_run.rows
    assert len(frozen["attempts"]) == 1
    _, _, second = short_run.text.partition("Accuracy at each learning rate in %")
    second, _, _ = second.partition("\nLoRA trains")
    new, old = second.split("MNIST after")
    for row in others:
        assert [attempt["rate"] for attempt in row["attempts"]] == list(script.RATES)
        (chosen,) = [attempt for attempt in row["attempts"] if attempt["rate"] == row["rate"]]
        for key, part in {"new_domain_accuracy": new, "old_domain_accuracy": old}.items():
            assert chosen[key] == row[key]
            line = " +".join(f"{100 * attempt[key]:.1f}" for attempt in row["attempts"])
            assert re.search(f" {line}$", part, re.MULTILINE)


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
    assert "each model is the base, bit for bit" in short_run.text


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_saved_adapter_reproduces_its_row(short_run, digits, method):
    base = ld.MLP(digits.SIZES)
    ld.load_model(short_run.out / "base_seed7.npz", base)
    model = ld.PeftModel.from_pretrained(base, short_run.out / f"{method}_r4_seed7.npz")
    row = next(row for row in short_run.rows if row["method"] == method)
    assert ld.evaluate(model, *digits.optdigits().test).accuracy == row["new_domain_accuracy"]
    assert ld.evaluate(model, *digits.mnist().test).accuracy == row["old_domain_accuracy"]


def test_merged_models_are_checked_and_files_named(short_run):
    assert "merged into plain weights, 2,000 of 2,000 answers" in short_run.text
    for name in ("base_seed7.npz", "lora_r4_seed7.npz", "dora_r4_seed7.npz", "rows.json"):
        assert str(short_run.out / name) in short_run.text


def test_progress_goes_to_stderr(short_run):
    assert "seed 7: DoRA r=4" in short_run.errors
    assert "seed 7" not in short_run.text


def test_needs_only_numpy(short_run):
    def top(names):
        return {name.partition(".")[0] for name in names.split()}

    ours = {"minigrad", "loradora", "digits", "plots", "reporting", "terminal"}
    # what is there before any of it: NumPy's parts, an editable install, a virtualenv
    before = run(code="import sys, numpy.random; print(*sys.modules)").stdout
    assert top(short_run.modules) <= set(sys.stdlib_module_names) | ours | top(before)


def test_without_matplotlib_plot_names_the_extra(short_run):
    assert "(extra 'plot'): pip install matplotlib" in short_run.errors
    assert not (short_run.out / "finetune_digits.png").exists()


def test_the_printed_code_names_the_files_on_windows_too(reporting):
    base, adapter = PureWindowsPath(r"Übung\base.npz"), PureWindowsPath(r"Übung\new\adapter.npz")
    code = reporting.saved([(base, adapter)]).partition("To use them again:\n")[2]
    assert code.isascii()
    constants = [n.value for n in ast.walk(ast.parse(dedent(code))) if isinstance(n, ast.Constant)]
    assert [text for text in constants if isinstance(text, str)] == [str(base), str(adapter)]


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([-0.4], "-0.40 points; too few seeds"),
        ([0.4], "+0.40 points; too few seeds"),
        ([0.3, 0.3], "too few seeds"),
        (
            [-0.5, -0.3, -0.6, -0.2, -0.4],
            "-0.40 +/- 0.07 (paired, standard error) points; it does not beat",
        ),
        ([4.0, 0.0, 0.0, 0.0, 0.0], "+0.80 +/- 0.80 (paired"),
        ([1.0, -0.9, 0.8, -0.7, 0.3], "does not beat"),
        ([1.0, 1.1, 0.9, 1.2, 0.8], "it beats"),
    ],
)
def test_says_what_dora_gained(reporting, gains, verdict):
    assert verdict in reporting.dora_against_lora(np.array(gains))


def test_says_what_is_kept_at_chosen_and_at_equal_rates(script, reporting):
    """Where LoRA keeps more at every rate, and less at the rates that were chosen."""
    kept = {"lora": [0.9, 0.8, 0.6], "full": [0.85, 0.6, 0.2]}
    chosen = {"lora": 2, "full": 0}
    rows = {name: [] for name in reporting.TITLES}
    for name, accuracies in kept.items():
        attempts = [script.Attempt(rate, 0.9, a) for rate, a in zip(script.RATES, accuracies)]
        best = attempts[chosen[name]]
        rows[name] = [
            script.Row(name, 1, 2, 0.9, best.old_domain_accuracy, 0.94, 1.0, 0, best.rate, attempts)
        ]
    at_chosen, over_rates, at_equal = reporting.forgetting(rows)
    assert "LoRA 60.0, full fine-tuning 85.0; with the adapter off 94.0" in at_chosen
    assert over_rates.endswith("highest: LoRA 90.0 to 60.0, full fine-tuning 85.0 to 20.0.")
    assert "LoRA keeps more than full fine-tuning at 3 of 3 rates (+5.0 to +40.0" in at_equal
    rows["lora"] = []
    assert list(reporting.forgetting(rows)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "--rank"),
        (["--alpha", "nan"], "--alpha"),
        (["--alpha", "1e300"], "--alpha"),
        (["--per-class", "0"], "--per-class"),
        (["--per-class", "1000"], "at most 57"),
        (["--method", "nonsense"], "'nonsense'"),
        (["--epochs", "-1"], "--epochs"),
        (["--seeds", "0"], "--seeds"),
        (["--mnist", "no/such/place"], "no/such/place"),
        (["--json", "no/such/place/rows.json"], "--json: cannot use no/such/place"),
        (["--json", str(EXAMPLES)], "--json"),
        (["--out", str(SCRIPT)], f"--out: cannot use {SCRIPT}"),
        (["--out", "/proc/out"], "--out: cannot use /proc/out"),
        (["--json", "/proc/rows.json"], "--json: cannot use /proc/rows.json"),
        (["--json", str(SCRIPT / "rows.json")], f"--json: cannot use {SCRIPT / 'rows.json'}"),
        (["--rank", "785"], "at most 784"),
        (["--method", "lora", "--plot"], "--plot"),
    ],
)
def test_bad_options_end_in_one_line(script, monkeypatch, capsys, tmp_path, options, message):
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


def test_a_refused_command_leaves_no_file(tmp_path):
    done = run("--per-class", 1000, "--json", tmp_path / "rows.json", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["base_seed1.npz", "dora_r2_seed1.npz", "finetune_digits.png"])
def test_every_file_that_will_be_written_is_tried_before(
    script, monkeypatch, capsys, tmp_path, name
):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(script, "find_spec", lambda name: True)  # as if there were matplotlib
    options = ["--out", str(tmp_path), "--seeds", "2", "--rank", "2", "--plot"]
    monkeypatch.setattr(sys, "argv", ["finetune_digits.py", *options])
    with pytest.raises(SystemExit, match="2"):
        script.options()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot use {tmp_path / name}: Is a directory" in line
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("name", ["base_seed0.npz", "dora_r4_seed1.npz", "finetune_digits.png"])
def test_the_table_is_not_written_over_what_is_saved(script, monkeypatch, capsys, tmp_path, name):
    monkeypatch.setattr(script, "find_spec", lambda name: True)  # as if there were matplotlib
    out = tmp_path / "out"
    options = ["--out", str(out), "--seeds", "2", "--plot", "--json", str(out / name)]
    monkeypatch.setattr(sys, "argv", ["finetune_digits.py", *options])
    with pytest.raises(SystemExit, match="2"):
        script.options()
    (line,) = capsys.readouterr().err.splitlines()
    option = "--plot" if name.endswith("png") else "--out"
    assert line.endswith(f"argument --json: cannot use {out / name}: {option} writes there")
    assert list(tmp_path.iterdir()) == []


def test_results_from_before_survive_a_command_that_is_refused(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text("kept")
    done = run("--json", file, "--out", file)
    assert done.returncode == 2
    assert file.read_text() == "kept"


def test_training_that_fails_names_alpha(tmp_path):
    done = run("--method", "lora", "--epochs", 1, "--alpha", "1e39", "--out", tmp_path)
    assert done.returncode == 1
    assert "a smaller --alpha" in done.stderr
    assert "Traceback" not in done.stderr


# -- whatever happens to it


def saved_in(directory):
    return sorted(path.name for path in directory.iterdir())


def methods_in(file):
    return [(row["seed"], row["method"]) for row in json.loads(file.read_text())]


def test_ctrl_c_saves_and_shows_what_is_finished(digits, tmp_path):
    options = ["--epochs", 1, "--out", tmp_path, "--json", tmp_path / "rows.json"]
    done = run(*options, code=stopped_at("DoRA"))
    assert done.returncode == -signal.SIGINT  # in a shell: 130
    assert done.stderr.splitlines()[-2:] == ["[7/7] seed 0: DoRA r=4", "Interrupted."]
    for title in ("frozen base", "from scratch", "head only", "full fine-tuning", "LoRA r=4"):
        assert re.search(rf"^{title} ", done.stdout, re.MULTILINE)
    assert "DoRA" not in done.stdout
    names = ["frozen", "scratch", "head", "full", "lora"]
    assert methods_in(tmp_path / "rows.json") == [(0, name) for name in names]
    assert saved_in(tmp_path) == ["base_seed0.npz", "lora_r4_seed0.npz", "rows.json"]
    base = ld.MLP(digits.SIZES)
    ld.load_model(tmp_path / "base_seed0.npz", base)
    ld.PeftModel.from_pretrained(base, tmp_path / "lora_r4_seed0.npz")


def test_ctrl_c_when_nothing_has_learnt_yet_shows_no_rates(tmp_path):
    options = ["--method", "frozen", "scratch", "--epochs", 1, "--out", tmp_path]
    done = run(*options, code=stopped_at("scratch"))
    assert done.returncode == -signal.SIGINT
    assert "frozen base " in done.stdout
    assert "Learning rates" not in done.stdout


def test_ctrl_c_before_anything_is_finished_leaves_nothing(tmp_path):
    options = ["--epochs", 1, "--out", tmp_path, "--json", tmp_path / "rows.json"]
    done = run(*options, code=stopped_at("pre-training"))
    assert done.returncode == -signal.SIGINT
    assert done.stdout == ""
    assert done.stderr.splitlines()[1:] == ["Interrupted."]
    assert saved_in(tmp_path) == []


def test_ctrl_c_is_not_swallowed_while_numpy_loads_its_random_numbers(tmp_path):
    """Its modules, built with Cython, register a class as they are loaded and clear any error there.

    NumPy loads them at their first use, which was that of the pre-training.
    """
    press_at_register = """
        import abc, collections.abc
        register = abc.ABCMeta.register
        def press_and_register(base, *rest):
            if base is collections.abc.Sequence:
                press()
            return register(base, *rest)
        abc.ABCMeta.register = press_and_register"""
    options = ["--method", "frozen", "--out", tmp_path]
    done = run(*options, code=quick(press_at_register))
    assert done.returncode == -signal.SIGINT
    assert (done.stdout, done.stderr) == ("", "Interrupted.\n")


def test_after_ctrl_c_only_whole_seeds_are_compared(tmp_path):
    file = tmp_path / "rows.json"
    options = ["--method", "head", "lora", "dora", "--epochs", 1, "--seeds", 3]
    done = run(*options, "--out", tmp_path, "--json", file, code=stopped_at("seed 2: DoRA"))
    assert done.returncode == -signal.SIGINT
    assert "mean and standard deviation of 2 seeds" in done.stdout
    assert "Left out, because some methods are not finished: seed 2." in done.stdout
    assert "DoRA against LoRA" in done.stdout
    found = [(seed, name) for seed in range(3) for name in ("head", "lora", "dora")]
    assert methods_in(file) == found[:-1]
    assert "lora_r4_seed2.npz" in saved_in(tmp_path)


@pytest.mark.parametrize(
    "earlier", ["pass", "before(reporting.Progress, 'step', press_at('DoRA'))"]
)
@pytest.mark.parametrize(
    "where",
    [
        "loradora, 'save_model'",
        "loradora.PeftModel, 'save_adapter'",
        "json, 'dumps'",
        "reporting, 'summary'",
    ],
)
def test_ctrl_c_at_the_end_waits_until_all_is_saved_and_shown(tmp_path, where, earlier):
    code = quick(f"{earlier}; before({where}, press)")
    options = ["--method", "frozen", "lora", "dora", "--epochs", 1, "--out", tmp_path]
    done = run(*options, "--json", tmp_path / "rows.json", code=code)
    assert done.returncode == -signal.SIGINT
    names = ["frozen", "lora"] + ["dora"] * (earlier == "pass")
    assert methods_in(tmp_path / "rows.json") == [(0, name) for name in names]
    adapters = [f"{name}_r4_seed0.npz" for name in names[1:]]
    assert saved_in(tmp_path) == sorted(["base_seed0.npz", "rows.json", *adapters])
    assert "LoRA r=4 " in done.stdout
    assert "Checked" not in done.stdout
    assert done.stderr.count("Interrupted.") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("where", "saved"),
    [
        ("loradora.PeftModel, 'save_adapter'", ["base_seed0.npz", "rows.json"]),
        ("pathlib.Path, 'write_text'", ["base_seed0.npz", "lora_r4_seed0.npz"]),
    ],
)
def test_a_full_disk_keeps_what_can_be_kept_and_shows_the_table(tmp_path, where, saved):
    options = ["--method", "lora", "--epochs", 1, "--out", tmp_path]
    code = quick(f"before({where}, fail)")
    done = run(*options, "--json", tmp_path / "rows.json", code=code)
    assert done.returncode == 1
    assert "LoRA r=4 " in done.stdout
    assert "No space left on device" in done.stderr
    assert set(saved) <= set(saved_in(tmp_path))


def test_ctrl_c_while_drawing_keeps_the_results(script, trained, monkeypatch):
    results, concluded = [(trained, None)], []
    chosen = SimpleNamespace(plot=True, rank=2, figure=None)
    monkeypatch.setattr(script, "options", lambda: chosen)
    monkeypatch.setattr(script, "experiment", lambda chosen: iter(results))
    monkeypatch.setattr(script, "conclude", lambda results, chosen: concluded.append(results))

    def press(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(script.plots, "draw", press)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert concluded == [results]


def test_training_that_fails_keeps_what_is_finished(tmp_path):
    options = ["--method", "head", "lora", "--epochs", 1, "--out", tmp_path]
    code = quick("before(loradora, 'get_peft_model', overflow)")
    done = run(*options, "--json", tmp_path / "rows.json", code=code)
    assert done.returncode == 1
    assert "head only " in done.stdout
    assert methods_in(tmp_path / "rows.json") == [(0, "head")]
    assert "a smaller --alpha" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("shell", "statuses"),
    [
        ("| true", [128 + signal.SIGPIPE]),
        ("2>&1 | true", [128 + signal.SIGPIPE]),
        ("2> >(true)", [128 + signal.SIGPIPE, 0]),
        ("| head -1", [128 + signal.SIGPIPE, 0]),  # it may read all there is before it leaves
        ("2>&1 | head -1", [128 + signal.SIGPIPE]),
        (">&-", [0]),
        ("> /dev/full", [120, 1]),
        ("2> /dev/full", [120, 0]),
        (">&- 2>&-", [0]),
    ],
)
def test_nothing_is_lost_with_the_output(tmp_path, shell, statuses, unbuffered):
    file = tmp_path / "rows.json"
    options = ["--method", "lora", "--epochs", 1, "--out", tmp_path, "--json", file]
    done = run(*options, code=quick(), shell=f"{shell}; exit $?", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode in statuses
    assert saved_in(tmp_path) == ["base_seed0.npz", "lora_r4_seed0.npz", "rows.json"]
    assert methods_in(file) == [(0, "lora")]
    assert "Traceback" not in done.stderr
    assert ("Exception ignored" in done.stderr) == (shell == "> /dev/full" and not unbuffered)
    assert ("No space left on device" in done.stderr) == (shell == "> /dev/full")
    if shell == "| head -1":
        assert done.stdout == "Accuracy in %, 20 labelled images per class\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_directory_may_have_any_name_on_any_console(tmp_path, encoding):
    out = tmp_path / "Übung Ω\udcff"
    options = ["--method", "lora", "--epochs", 1, "--out", out, "--json", out / "Σ.json"]
    done = run(*options, code=quick(), encoding=encoding, PYTHONUTF8="1")  # as are names on Windows
    assert done.returncode == 0, done.stderr
    assert saved_in(out) == ["base_seed0.npz", "lora_r4_seed0.npz", "Σ.json"]
    seen = str(out / "base_seed0.npz").encode(encoding, errors="replace").decode(encoding)
    assert f"\n    {seen}\n" in done.stdout
    assert f"ld.load_model({str(out / 'base_seed0.npz')!a}, base)" in done.stdout


# -- what a terminal shows of it


def test_progress_keeps_to_one_line_of_a_narrow_terminal(tmp_path):
    options = ["--method", "lora", "--epochs", 8, "--seed", 12345678901234567890, "--out", tmp_path]
    shown, status = on_a_terminal("-c", quick(), *options, columns=40)
    assert status == 0
    progress, _, _ = shown.partition("Accuracy")
    rewritten = progress.split("\r")
    assert "\n" not in progress
    assert "[2/2] seed 12345678901234567890: LoRA r" in rewritten
    assert max(map(len, rewritten)) == 39
    assert rewritten[-2].isspace()
    assert "\x1b" not in shown


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_plain_progress_is_a_line_per_job(tmp_path, plain):
    options = ["--method", "lora", "--epochs", 8, "--out", tmp_path]
    shown, status = on_a_terminal("-c", quick(), *options, env=plain)
    assert status == 0
    assert shown.startswith(
        "[1/2] seed 0: pre-training on MNIST\r\n[2/2] seed 0: LoRA r=4\r\nAccuracy"
    )
    assert "\x1b" not in shown


def test_ctrl_c_on_a_terminal_shows_the_table_and_one_line(tmp_path):
    options = ["--method", "frozen", "lora", "--epochs", 9999, "--out", tmp_path]
    shown, status = on_a_terminal("-c", quick(), *options, stop_at="LoRA r=4, step 20 of")
    assert status == -signal.SIGINT
    assert re.search(r"\r *\rAccuracy in %.*\r\nfrozen base ", shown, re.DOTALL)
    assert shown.endswith("\r\n\rInterrupted.\r\n")
    assert "Traceback" not in shown


def test_ctrl_c_on_a_terminal_leaves_one_line_of_a_job_without_results(tmp_path):
    """However late the signal comes: the first job would take minutes."""
    long = quick("digits.pretrained = functools.partial(digits.pretrained, steps=100_000)")
    options = ["--epochs", 1, "--out", tmp_path]
    shown, status = on_a_terminal("-c", long, *options, stop_at="[1/7]")
    assert status == -signal.SIGINT
    assert shown.endswith("\rInterrupted.\r\n")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_no_line_is_too_long_for_a_terminal(script, reporting, seeds):
    """Values as wide as they come: accuracies of 0 and 100 %, the highest rank, hours of training."""
    results = []
    for seed in range(seeds):
        for name in script.METHODS:
            rank = 784 * (name in script.ADAPTERS)
            accuracies = 3 * [1.0 if seed == 0 else 0.0]
            rate = script.RATES[seed]
            attempts = [script.Attempt(rate, *accuracies[:2]) for rate in script.RATES]
            row = script.Row(
                name, 1_234_567, 1_469_713, *accuracies, 12345.67, seed, rate, attempts
            )
            run = script.Run(script.Method(name, rank, 8.0), None, rate, None, 0.0, [])
            results.append((run, row))
    text = reporting.summary(results[:-1] if seeds == 5 else results, 57)
    text += "\n" + reporting.checked(script.Agreement(2_000_000, 2_000_000, 1e-5))
    assert ("Left out" in text) == (seeds == 5)
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_printed_fits_a_terminal(short_run):
    lines = short_run.text.replace(str(short_run.out), "out").splitlines()
    assert max(map(len, lines)) <= 80


def test_help_fits_a_narrow_terminal(tmp_path):
    shown, status = on_a_terminal(SCRIPT, "--help", columns=40, env={"COLUMNS": "40"})
    assert status == 0
    assert "--per-class" in shown
    assert max(map(len, shown.splitlines())) <= 40


# -- what the script says of forgetting


def test_the_committed_run_shows_what_is_said_of_forgetting():
    """The higher the rate the more; LoRA less at equal rates, and more at the chosen ones."""
    rows = json.loads((EXAMPLES / "figures" / "finetune_digits.json").read_text())
    kept, chosen = {}, {}
    for method in ("head", "full", "lora", "dora"):
        of_method = [row for row in rows if row["method"] == method]
        kept[method] = np.mean(
            [[a["old_domain_accuracy"] for a in row["attempts"]] for row in of_method], axis=0
        )
        chosen[method] = np.mean([row["old_domain_accuracy"] for row in of_method])
        assert np.all(np.diff(kept[method]) < 0)
    assert np.all(kept["lora"] > kept["full"])
    assert chosen["lora"] < chosen["full"]


# -- the experiment is fair


def chosen_by(script, monkeypatch, tmp_path, *options):
    monkeypatch.setattr(
        sys, "argv", ["finetune_digits.py", "--out", str(tmp_path), *map(str, options)]
    )
    return script.options()


@pytest.fixture
def task(script, digits):
    """A base that knows next to nothing, twenty images, and both domains."""
    base = ld.MLP(digits.SIZES, rng=np.random.default_rng(0))
    old, new = digits.mnist(), digits.optdigits()
    few = digits.few(new.train, 2, np.random.default_rng(0))
    return script.Task(0, base, few, new, old, epochs=3, curves=False)


def test_the_defaults_are_the_documented_ones(script, monkeypatch, tmp_path):
    chosen = chosen_by(script, monkeypatch, tmp_path)
    assert (chosen.rank, chosen.alpha, chosen.per_class) == (4, 8, 20)
    assert (chosen.epochs, chosen.seed, chosen.seeds) == (40, 0, 1)
    assert chosen.method == ["frozen", "scratch", "head", "full", "lora", "dora"]
    assert chosen_by(script, monkeypatch, tmp_path, "--rank", 3).alpha == 6


def test_the_few_images_come_from_the_pool_and_every_seed_has_its_turn(
    script, digits, monkeypatch, tmp_path
):
    pools, seeds = [], []
    monkeypatch.setattr(digits, "few", lambda pool, n, rng: pools.append((pool, n)) or pool)
    monkeypatch.setattr(digits, "pretrained", lambda train, rng, report: None)
    monkeypatch.setattr(script, "attempts", lambda method, task, progress: seeds.append(task.seed))
    monkeypatch.setattr(script, "best", lambda runs: None)
    monkeypatch.setattr(script, "measure", lambda run, runs: None)
    chosen = chosen_by(script, monkeypatch, tmp_path, "--method", "lora", "--seed", 4, "--seeds", 3)
    list(script.experiment(chosen))
    assert seeds == [4, 5, 6]
    assert all(pool is chosen.new.train and n == 20 for pool, n in pools)


def test_the_learning_rate_is_chosen_on_the_validation_split(script, task, monkeypatch):
    """The best on validation wins, and nothing else is looked at."""
    runs = [SimpleNamespace(rate=rate, model=rate, task=task) for rate in script.RATES]

    def evaluate(model, x, y):
        assert x is task.new.validation.x
        return SimpleNamespace(accuracy=0.9 if model in (0.001, 0.01) else 0.8, loss=1 / model)

    monkeypatch.setattr(ld, "evaluate", evaluate)
    assert script.best(runs).rate == 0.01


def test_every_rate_is_tried(script, task, monkeypatch):
    monkeypatch.setattr(script, "train", lambda method, task, rate, progress: rate)
    assert script.attempts(script.Method("lora", 4, 8.0), task, None) == list(script.RATES)
    (frozen,) = script.attempts(script.Method("frozen"), task, None)
    assert frozen.model is task.base


@pytest.mark.parametrize("name", ["scratch", "head", "full", "lora", "dora"])
def test_every_method_gets_the_same_images_steps_and_schedule(
    script, reporting, task, monkeypatch, name
):
    calls = []

    def fit(model, x, y, **options):
        calls.append((x, y, options))
        return iter(())

    monkeypatch.setattr(ld, "fit", fit)
    method = script.Method(name, 4 if name in script.ADAPTERS else 0, 8.0)
    script.train(method, task, 0.5, reporting.Progress(1))
    [(x, y, options)] = calls
    assert x is task.few.x
    assert y is task.few.y
    assert (options["steps"], options["batch_size"], options["schedule"].__name__) == (
        3,
        32,
        "linear_decay",
    )
    (group,) = options["optimizer"].param_groups
    assert group["lr"] == 0.5
    assert group["weight_decay"] == 0
    assert options["rng"].random() == script.stream(0, 3).random()


def test_alpha_reaches_the_adapters(script, task):
    model = script.build(script.Method("dora", 2, 6.0), task.base, np.random.default_rng(0))
    assert model.peft_config["default"].lora_alpha == 6
    assert model.peft_config["default"].use_dora


@pytest.fixture
def trained(script, task):
    """A DoRA away from its start."""
    model = script.build(script.Method("dora", 2, 4.0), task.base, np.random.default_rng(0))
    for p in model.trainable_parameters():
        p.data = p.data + np.float32(0.1)
    return script.Run(script.Method("dora", 2, 4.0), task, 0.1, model, 1.0, [])


def test_the_adapter_is_switched_off_to_measure_the_base(script, trained, monkeypatch):
    off = []
    monkeypatch.setattr(
        ld,
        "evaluate",
        lambda model, x, y: off.append(model._disabled) or SimpleNamespace(accuracy=len(off)),
    )
    row = script.measure(trained, [trained])
    assert off[int(row.base_accuracy) - 1]
    assert not off[int(row.new_domain_accuracy) - 1]
    assert not off[int(row.old_domain_accuracy) - 1]


def test_the_check_sees_an_adapter_that_cannot_be_switched_off(script, trained, monkeypatch):
    agreement = script.check([trained])
    assert agreement.answers == agreement.same == 1000
    monkeypatch.setattr(ld.PeftModel, "disable_adapter", lambda self: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="adapter off, the model is not the base"):
        script.check([trained])


def test_the_check_sees_a_merge_that_changes_the_answers(script, trained, monkeypatch):
    monkeypatch.setattr(ld.PeftModel, "merge_and_unload", lambda self: self.unload())
    with pytest.raises(RuntimeError, match="merged and live logits differ"):
        script.check([trained])


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs the extra 'plot'")
def test_the_figure_is_drawn(tmp_path):
    done = run("--plot", "--epochs", 1, "--seeds", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "finetune_digits.png").read_bytes().startswith(b"\x89PNG")
