"""The course: every lesson runs on its own, prints what it promises, and needs NumPy only.

One file is both a script for every console and a notebook in Jupyter.
"""

import ast
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

#: What each lesson has to print: patterns in this order.
LESSONS = {
    "01_backward": [
        r"by hand +0\.16005131677195 +0\.20998717080701",
        r"by differences +0\.1600513167",
        r"by minigrad +0\.16005131677195 +0\.20998717080701",
        r"L \(add\) +=.*\n.*\|- \(\+1\.0000\) tanh.*\n.*`- \(\+0\.4200\) mul",
        r"together \+0\.1601",
    ],
    "02_gradcheck": [
        r"mg\.tanh : passed",
        r"wrong +: refused\n.*\n.*analytic.*numeric",
        r"balance near eps\^\(1/3\) = 6e-06",
        r"finite differences need float64",
        r"relu'\(0\) by minigrad 0, by differences 0\.5",
        r"a kink",
        r"1e-06 : passed",
    ],
    "03_add_an_op": [
        r"1000 +1000 +1 +0",
        r"the largest difference is 0e\+00|the largest difference is \de-1\d",
        r"In the table of operations: True",
        r"result float32, gradient float32",
        r"gradcheck and gradgradcheck: passed",
        r"comes y \(3, 4\),\n.* gradients \(3, 1\) and \(4,\)\ngradcheck: passed",
        r"passes softplus and refuses relu",
        r"at most 0\.0069 from relu\(x\), at x = 0",
    ],
    "04_mlp": [
        r"layers\.4\.bias +\(10,\) +gradient \(10,\)",
        r"together 235,146 numbers",
        r"\n +4 +0\.\d+ +9\d\.\d %",
        r"MNIST +9\d\.\d %\n +optical digits +[4-7]\d\.\d %",
    ],
    "05_lora": [
        r"the frozen one, bit for bit: True",
        r"the gradient of A has the norm 0\.0000, that of B 0\.\d*[1-9]",
        r"largest difference of A and B after \d+ steps: \de-1[2-9]",
        r"live and merged layer: \de-1[2-9]",
        r"needed +0\.0000 +10\.9324 +6\.4740",
        r"r = 1, trained +18\.7562 +10\.9121 .*\n +best +18\.7562 +10\.9121 ",
        r"r = 2, trained +0\.0000 +10\.9324 +6\.4740 .* 1\.93\n",
        r"r = 4 +6,248 +2\.66 %",
        r"The base has not changed: True",
    ],
    "06_dora": [
        r"equal to the base, bit for bit: +True",
        r"exact, eq\. 6 +A: \de-1[2-9] +B: \de-1[2-9] +m: \de-1[2-9]",
        r"eq\. 11 +A: \de-1[2-9] +B: \de-1[2-9] +m: \de-1[2-9]",
        r"exact \S+e-1[4-9] +held 0\.\d\d",
        r"exact gradient: +passed",
        r"\|\|V\|\| held: +refused\n +argument 0",
        r"in the differences, too: +passed",
        r"held and exact agree up to \de-1[2-9]",
        r" 3 x 4 +2 +V +0 .*\n +3 x 4 +2 +B +[1-9]\d+ +-0\.\d\d ",
        r"12 x 20 +4 +V +0 ",
        r"the held gradient of V cannot raise the loss; against\n +those of B and A it can",
    ],
    "07_magnitude_and_direction": [
        r"\n +full .*-0\.62\n +LoRA .*\+0\.83\n +DoRA .*-0\.31\n",
        r"Here the highest is LoRA\.  Here, negative: ",
    ],
    "08_share_adapters": [
        r"the base +9\d\.\d %",
        r"\n +optical +\d\d\.\d % .* [89]\d\.\d %",
        r"off equals the base bit for bit: True; the base has not changed: True",
        r"optical-dora +MLP, largest difference of a logit \de-0[4-9]",
        r"base\.npz +\d{3},\d{3} bytes",
        r"optical\.npz +\d\d,\d{3} bytes",
        r"the same logits bit for bit: True",
        r"(PEFT's folder: .*the same logits: True|files\s+need\s+safetensors)",
    ],
    "09_lora_or_dora": [
        r"the base +[4-7]\d\.\d %",
        r"rate 0\.003 +DoRA +\d\d\.\d % +[+-]\d\.\d \+/- \d\.\d",
        r"rate 0\.02 +DoRA, m at 0\.2 +\d\d\.\d %",
        r"rate 0 +m alone, at 0\.2 +\d\d\.\d % +[+-]\d\.\d \+/- \d\.\d",
    ],
    "10_change_author": [
        r"A net of 810,112 parameters",
        r"A sixth costs it 1\.[23]\d\d nats per character",
        r"frozen base +0 +0\.0% +2\.\d+ +1\.\d+ +- ",
        r"LoRA q,v, r=8 +16,384 +2\.0% +0\.02 +[12]\.\d+ +1\.\d+ +1\.[23]",
        r"DoRA all linear, r=8 +78,336 +8\.8% ",
        r"The adapter is off:\n\n   \| Juliet\.\n   \| O ",
        r"And on, after (?:11|40) steps .*:\n\n   \| Juliet\.\n   \| O ",
        r"LoRA_qv_r8\.npz +7\d kB",
        r"the same logits bit for bit: True",
    ],
    "11_outgrow": [
        r"base\.npz +94\d,\d{3} bytes\n +DoRA-\d+\.npz +\d+,\d{3} bytes",
        r"full +235,146 +940,584 +\d+\.\d{3} s",
        r"DoRA-4 +6,642 +26,568 +\d+\.\d{3} s",
        r"at most \de-0[5-9] of the largest logit",
        r"base, 4 P +940,584 +9\d\d,\d{3}",
        r"DoRA, activations, 4 N +3,344,000 +3,3\d\d,\d{3}",
    ],
}

#: Prepended to a lesson: afterwards it says which modules from outside it has imported.
SPY = """
import json, pathlib, runpy, sys
file, report = sys.argv[1:3]
sys.argv = [file, *sys.argv[3:]]
sys.path[0] = file.rpartition("/")[0]
before = set(sys.modules)
try:
    runpy.run_path(file, run_name="__main__")
finally:
    found = {name.partition(".")[0] for name in set(sys.modules) - before}
    found = {name for name in found if "cython_" not in name}  # what NumPy is made with
    outside = sorted(found - sys.stdlib_module_names)
    pathlib.Path(report).write_text(json.dumps(outside), encoding="utf-8")
"""


#: The most limited console: ASCII, for what is printed and for files opened without an encoding.  Every
#: code page of Windows contains it.
CONSOLE = {
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "OPENBLAS_NUM_THREADS": "1",  # products this small are slower with several threads
}

#: Options with which the slow lessons are quick, where their results do not matter.
SHORT = {
    "07_magnitude_and_direction": ["--epochs", "1", "--steps", "16", "--runs", "1"],
    "09_lora_or_dora": ["--draws", "3", "--steps", "1"],
    "10_change_author": ["--target-modules", "q_proj", "--steps", "11"],
    "11_outgrow": ["--ranks", "1", "--steps", "3"],
}

#: Options with which a lesson that takes a minute prints its point in less.  (CI runs it without, too.)
QUICK = {"10_change_author": ["--steps", "11"], "11_outgrow": ["--ranks", "4"]}


def run(*arguments, cwd, encoding="ascii"):
    """Run Python in a subprocess, with a console of this encoding."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **CONSOLE, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        encoding=encoding,
        check=False,
    )


def check_output(name, printed):
    """The lesson has printed its points, in order, and fits into 80 columns."""
    rest = printed
    for pattern in LESSONS[name]:
        found = re.search(pattern, rest)
        assert found, f"{name} does not print {pattern!r} (in this order):\n{printed}"
        rest = rest[found.end() - 1 :]
    assert max(map(len, printed.splitlines())) <= 80


def files():
    return sorted(path for path in EXAMPLES.glob("[0-9][0-9]_*.py"))


def test_every_lesson_is_tested_and_numbered_in_order():
    assert [path.stem for path in files()] == list(LESSONS)
    assert [int(path.stem[:2]) for path in files()] == list(range(1, len(LESSONS) + 1))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_a_lesson_opens_with_what_why_and_what_next(path):
    text = path.read_text(encoding="utf-8")
    number = int(path.stem[:2])
    marker, opening = text.split('"""')[:2]
    assert marker == "# %% [markdown]\n"
    assert opening.startswith(f"\n# Lesson {number}: ")
    for part in ("What you will see: ", "Why it matters: ", "Read next: "):
        assert f"\n\n{part}" in opening
    named = re.findall(r"[\w/]+\.py\b", opening.partition("Read next: ")[2])
    assert named
    following = [path.name for path in files() if path.stem.startswith(f"{number + 1:02}")]
    assert set(following) <= set(named)
    places = [EXAMPLES, EXAMPLES.parent, EXAMPLES.parent / "loradora", EXAMPLES.parent / "minigrad"]
    for name in named:
        assert any((place / name).exists() for place in places), f"{path.name} names {name}"


#: Tools that make something of the course, but are no part of it.
TOOLS = {"examples/book.py", "examples/pictures.py"}


def read_next(path):
    """Return the files that a lesson sends its readers to, lessons left out."""
    opening = path.read_text(encoding="utf-8").split('"""')[1]
    named = re.findall(r"[\w/]+\.py\b", opening.partition("Read next: ")[2])
    return [name for name in named if not re.fullmatch(r"\d\d_\w+\.py", name)]


def test_the_lessons_name_every_file_to_read_once():
    """With its folder, so that the order in which they are to be read can be taken from there."""
    root = EXAMPLES.parent
    modules = [path for name in ("minigrad", "loradora") for path in (root / name).glob("*.py")]
    modules += set(EXAMPLES.glob("*.py")) - set(files())
    chapters = {path.relative_to(root).as_posix() for path in modules if path.name != "__init__.py"}
    named = [name for path in files() for name in read_next(path)]
    assert sorted(named) == sorted(chapters - TOOLS)


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_runs_anywhere_prints_its_point_and_needs_only_numpy(name, tmp_path):
    report = tmp_path / "imports.json"
    strict = ["-W", "error", "-X", "warn_default_encoding"]
    arguments = [EXAMPLES / f"{name}.py", report, *QUICK.get(name, [])]
    result = run(*strict, "-c", SPY, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    check_output(name, result.stdout)
    allowed = {"digits", "loradora", "minigrad", "numpy", "pictures", "plots", "terminal"}
    allowed |= {"author", "gpt", "text", "two_processes"}
    if name in ("08_share_adapters", "11_outgrow"):
        allowed.add("safetensors")  # PEFT's folder, if the extra is there
    assert set(json.loads(report.read_text())) <= allowed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imports.json"]


def test_the_graph_of_the_first_lesson_is_drawn(tmp_path):
    result = run(EXAMPLES / "01_backward.py", "--svg", "new/graph.svg", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    root = ElementTree.parse(tmp_path / "new" / "graph.svg").getroot()
    text = "".join(root.itertext())
    assert root.tag.endswith("svg")
    for label in ("a", "b", "tanh", "mul", "L (add)", "gradient +0.1601", "value −1.0000"):
        assert label in text
    assert {element.get("id") for element in root.iter()} == {None, "minigrad-tip-0072B2"}
    assert not [element for element in root.iter() if element.tag.endswith("style")]
    texts = root.iter("{http://www.w3.org/2000/svg}text")
    blue = [words.text for words in texts if words.get("fill")]
    assert sorted(blue) == ["+0.42", "+0.50", "+0.50", "+0.50", "+1.00", "+1.00", "−2.00"]


@pytest.mark.parametrize(
    "formula",
    [
        "a**2 + mg.tanh(b)",
        "mg.exp(a * b) - 1",
        "3 * a + b",
        "a / b",
        "mg.where(a > 0, a, b) * b",
        "mg.where(a > b, 1.0, b) * a",
        "mg.maximum(a, b) + mg.minimum(b, 0.5)",
        "mg.clip(a, -1, 1) * abs(b)",
        "mg.sum(a * b) + b.mean()",
        "mg.log(a.reshape(1)[0] + 1) * mg.relu(b)",
        "mg.ops.Op(lambda a: a * a, (lambda g, y, a: 2 * g * a,))(a) + b",  # its name is <lambda>
    ],
)
def test_the_first_lesson_takes_another_function(formula, tmp_path):
    """In a notebook one can try things."""
    lesson = (EXAMPLES / "01_backward.py").read_text(encoding="utf-8")
    line = "    return mg.tanh(a * b) + a * a\n"
    assert line in lesson
    copy = tmp_path / "01_backward.py"
    copy.write_text(lesson.replace(line, f"    return {formula}\n"), encoding="utf-8")
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv[:2] = []; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    result = run("-c", code, EXAMPLES, copy, "--svg", "graph.svg", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    differences, minigrad = re.findall(r"by (?:differences|minigrad) +(\S+) +(\S+)", result.stdout)
    assert [float(d) for d in differences] == pytest.approx([float(d) for d in minigrad], abs=1e-8)
    ElementTree.parse(tmp_path / "graph.svg")


@pytest.mark.parametrize("steps", [16, 31])
def test_lesson_seven_has_eight_checkpoints_and_the_last_is_the_end(steps, tmp_path):
    """However many steps there are."""
    code = """if True:
        import runpy, sys
        sys.path.insert(0, sys.argv[1].rpartition("/")[0])
        sys.argv = sys.argv[1:]
        from loradora import analysis, train
        import loradora
        seen = []
        def fit(*arguments, **options):
            for step in train.fit(*arguments, **options):
                seen.append([step.step])
                yield step
        loradora.fit = fit
        measure = analysis.weight_decomposition
        analysis.weight_decomposition = lambda *nets: seen[-1].append("measured") or measure(*nets)
        runpy.run_path(sys.argv[0], run_name="__main__")
        print(*(step for step, *measured in seen if measured))"""
    lesson = EXAMPLES / "07_magnitude_and_direction.py"
    result = run("-c", code, lesson, "--epochs", 1, "--runs", 1, "--steps", steps, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    measured = [int(step) for step in result.stdout.splitlines()[-1].split()]
    one = measured[:8]
    assert measured == 3 * one  # full, LoRA, DoRA
    assert one[-1] == steps
    assert {b - a for a, b in zip([0, *one], one)} <= {steps // 8, steps // 8 + 1}


DRAWS = pytest.mark.skipif(
    not importlib.util.find_spec("matplotlib"), reason="needs the extra 'plot'"
)


@DRAWS
@pytest.mark.parametrize(
    ("file", "signature"),
    [("figure.png", b"\x89PNG"), ("figure.PDF", b"%PDF"), ("figure.svg", b"<?xml")],
)
def test_the_figure_of_lesson_seven_is_drawn(file, signature, tmp_path):
    short = [*SHORT["07_magnitude_and_direction"], "--plot", f"new/{file}"]
    result = run(EXAMPLES / "07_magnitude_and_direction.py", *short, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    picture = (tmp_path / "new" / file).read_bytes()
    assert picture.startswith(signature)
    assert len(picture) > 10_000


@pytest.fixture
def plots(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("plots")


@pytest.fixture
def decomposition(plots):
    changes = {"layers.0": [(0.1, 0.2), (0.3, 0.3)], "layers.2": [(0.2, 0.2), (0.3, 0.5)]}
    points = {
        name: {**changes, "layers.4": changes["layers.0"]} for name in ("full", "LoRA", "DoRA")
    }
    return plots.Decomposition(points, {"full": -0.62, "LoRA": 0.83, "DoRA": -0.31})


@DRAWS
def test_the_figure_says_the_correlation_of_the_points_that_it_shows(decomposition):
    panels = decomposition._figure().axes
    drawn = [line.get_xydata() for line in panels[0].lines if line.get_label() != "best fit"]
    (D, M) = np.concatenate(drawn).T
    assert len(D) == 6
    title = f"{np.corrcoef(D, M)[0, 1]:+.2f}\n(the paper: −0.62)"
    assert panels[0].get_title() == f"full: {title}"


def test_without_matplotlib_a_notebook_shows_how_to_get_it(plots, decomposition, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert decomposition._repr_png_() is None
    assert repr(decomposition) == plots.NO_FIGURE


def test_without_matplotlib_lesson_seven_says_how_to_get_it(tmp_path):
    code = """
        import importlib.util, runpy, sys
        sys.path.insert(0, sys.argv[1].rpartition("/")[0])
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "matplotlib" else find(name)
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    lesson = EXAMPLES / "07_magnitude_and_direction.py"
    short = ["--epochs", "1", "--steps", "16", "--plot"]
    result = run("-c", textwrap.dedent(code), lesson, *short, cwd=tmp_path)
    assert result.returncode == 0
    assert "Here the highest is" in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert "(extra 'plot'): pip install matplotlib" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("lesson", "arguments"),
    [
        ("07_magnitude_and_direction", ["--steps", "4"]),
        ("07_magnitude_and_direction", ["--rank", "0"]),
        pytest.param("07_magnitude_and_direction", ["--plot", "figure.txt"], marks=DRAWS),
        pytest.param("07_magnitude_and_direction", ["--plot", "figure"], marks=DRAWS),
        ("09_lora_or_dora", ["--draws", "2"]),
        ("10_change_author", ["--rank", "0"]),
        ("10_change_author", ["--rank", "129"]),
        ("10_change_author", ["--steps", "10"]),
        ("10_change_author", ["--seeds", "0"]),
        ("10_change_author", ["--seed", "-1"]),
        ("10_change_author", ["--temperature", "nan"]),
        ("10_change_author", ["--rates", "0.1", "inf"]),
        ("10_change_author", ["--ablation", "--rank", "6"]),
        ("10_change_author", ["--ablation", "--target-modules", "q_proj"]),
        ("10_change_author", ["--prompt", ""]),
        ("10_change_author", ["--prompt", "1595"]),
        ("10_change_author", ["--text", "missing.txt"]),
        ("10_change_author", ["--text", "."]),
        ("10_change_author", ["--out", "/dev/null"]),
        ("11_outgrow", ["--steps", "2"]),
        ("11_outgrow", ["--ranks", "0"]),
        ("11_outgrow", ["--port", "0"]),
        ("11_outgrow", ["--port", "65536"]),
        ("11_outgrow", ["--out", "/dev/null"]),
        ("11_outgrow", ["--json", "."]),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_line(lesson, arguments, tmp_path):
    result = run(EXAMPLES / f"{lesson}.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(rf"{lesson}\.py: error: .*\n", result.stderr)


@pytest.mark.parametrize("target", ["folder.svg", "file/graph.svg", "no/such/folder/graph.svg"])
@pytest.mark.parametrize(
    ("lesson", "option"),
    [
        ("01_backward", "--svg"),
        pytest.param("07_magnitude_and_direction", "--plot", marks=DRAWS),
    ],
)
def test_a_place_for_the_picture_is_refused_before_the_work(lesson, option, target, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.svg").mkdir()
    result = run(EXAMPLES / f"{lesson}.py", option, target, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    refusal = f"{lesson}.py: error: argument {option}: cannot use {Path(target)}: "
    assert re.fullmatch(re.escape(refusal) + r"[^\n]+\n", result.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.svg"]


def test_a_training_that_fails_at_every_rate_ends_in_a_line(tmp_path):
    lesson, short = EXAMPLES / "10_change_author.py", SHORT["10_change_author"]
    result = run(lesson, *short, "--rates", "1e37", cwd=tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"training failed: LoRA q, r=8, at every rate: .*\n", result.stderr)


def test_a_text_of_ones_own_is_learnt_and_not_written_over(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("All work and no play makes Jack a dull boy.\n" * 40)
    lesson, short = EXAMPLES / "10_change_author.py", SHORT["10_change_author"]
    result = run(lesson, *short, "--text", own, "--json", own, cwd=tmp_path)
    assert result.returncode == 2
    assert "argument --json: cannot use" in result.stderr
    assert "own.txt: --text reads it" in result.stderr
    result = run(lesson, *short, "--text", own, "--out", "kept", "--json", "t.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert own.read_text().startswith("All work")
    losses = [row["loss_new"] for row in json.loads((tmp_path / "t.json").read_text())]
    assert max(losses) < 2.5
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {
        "LoRA_q_r8.npz",
        "DoRA_q_r8.npz",
    }


#: The option with which a lesson writes a picture.
PICTURE = {"01_backward": "--svg", "07_magnitude_and_direction": "--plot"}


@pytest.mark.parametrize(
    ("name", "encoding"),
    [*((name, "cp1252") for name in LESSONS), *((name, "ascii") for name in PICTURE)],
)
def test_every_console_can_show_a_lesson(name, encoding, tmp_path):
    """This includes the name of a file, which may be anything, after the picture is written.

    (``test_a_lesson_runs_anywhere…`` shows all of them on a console of ASCII, without pictures.)
    """
    arguments = SHORT.get(name, [])
    drawn = name in PICTURE and (PICTURE[name] == "--svg" or importlib.util.find_spec("matplotlib"))
    if drawn:
        arguments = [*arguments, PICTURE[name], "\u4e8c\u03c0.svg"]
    result = run(EXAMPLES / f"{name}.py", *arguments, cwd=tmp_path, encoding=encoding)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    if drawn:
        assert re.search(r" is in \?+\.svg\n", result.stdout)
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", LESSONS)
def test_a_reader_that_has_seen_enough_ends_a_lesson_quietly(name, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py", *SHORT.get(name, [])],
            cwd=tmp_path,
            env={**os.environ, **CONSOLE},
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert result.stderr == b""
    assert result.returncode == -signal.SIGPIPE


def test_ctrl_c_ends_a_lesson_in_a_line(tmp_path):
    lesson = subprocess.Popen(
        [sys.executable, "-u", EXAMPLES / "07_magnitude_and_direction.py"],
        cwd=tmp_path,
        env={**os.environ, **CONSOLE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lesson.stdout.readline()
    lesson.send_signal(signal.SIGINT)
    _, error = lesson.communicate()
    assert error == b"Interrupted.\n"
    assert lesson.returncode == -signal.SIGINT


SCRIPTS = pytest.mark.parametrize(
    "path", [*files(), EXAMPLES / "finetune_digits.py"], ids=lambda path: path.stem
)


@SCRIPTS
def test_ctrl_c_while_a_script_is_starting_ends_it_in_a_line(path, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run(path, cwd=tmp_path)
    assert result.stderr == "Interrupted.\n"
    assert result.returncode == -signal.SIGINT


@SCRIPTS
def test_a_script_needs_no_docstrings(path, tmp_path):
    result = run("-OO", path, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "show this help" in result.stdout


@SCRIPTS
def test_every_console_can_show_the_help(path, tmp_path):
    result = run(path, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "show this help" in result.stdout
    if path in files():
        heading = re.search(r"Lesson \d+: .*", path.read_text(encoding="utf-8"))[0]
        assert " ".join(heading.split()) in " ".join(result.stdout.split())
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- notebooks

NOTEBOOK = ("ipykernel", "jupytext", "nbclient")

#: Runs a lesson as Jupyter does, in its own folder, with the interpreter of the tests, whatever kernels
#: are installed.  A process of its own, because warnings of Jupyter's libraries are not about our code.
JUPYTER = """
import os, sys, tempfile
import jupytext, nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
file, folder, executed, *options = sys.argv[1:]
notebook = jupytext.read(file)
with open(file, encoding="utf-8") as lesson:
    assert jupytext.writes(notebook, "py:percent") == lesson.read()  # saving it changes nothing
for cell in notebook.cells if options else ():  # as somebody changes the defaults
    cell.source = cell.source.replace("parser.parse_args()", f"parser.parse_args({options})")
only_this = KernelSpecManager(kernel_dirs=[])
manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=only_this)
with tempfile.TemporaryDirectory() as short:
    if os.name == "posix":  # ports may be taken by a kernel of another test
        manager.transport, manager.ip = "ipc", short + "/kernel"
    client = NotebookClient(notebook, km=manager, resources={"metadata": {"path": folder}})
    client.execute(cleanup_kc=True)
nbformat.write(notebook, executed)
"""


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NOTEBOOK)), reason="needs the extra 'notebook'"
)
@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_a_lesson_is_a_notebook(path, tmp_path, monkeypatch):
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    options = QUICK.get(path.stem, [])
    result = run("-c", JUPYTER, path, path.parent, tmp_path / "executed", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    notebook = json.loads((tmp_path / "executed").read_text(encoding="utf-8"))
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"markdown", "code"}
    prose = [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    check_prose(path.read_text(encoding="utf-8"), prose)
    check_code([source(cell) for cell in code])
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert ("code", "code") not in pairwise(kinds)  # prose before each

    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["name"] for output in outputs if "name" in output} == {"stdout"}
    printed = ["".join(map(said, cell["outputs"])) for cell in code]
    assert all(text.endswith("\n") for text in printed if text)  # no line over two cells
    check_output(path.stem, "".join(printed))
    check_pictures(path.stem, [output["data"] for output in outputs if "data" in output])


def said(output):
    """Return what an output adds to what is printed; one line may come in several, when it takes long."""
    return "".join(output.get("text", ""))


def source(cell):
    return "".join(cell["source"])


def check_prose(text, prose):
    """It opens with the lesson's heading, and no line of code hides in it."""
    assert prose[0] == text.split('"""')[1].strip()
    for paragraph in "\n\n".join(prose).split("\n\n"):
        if not paragraph.startswith("#"):
            with pytest.raises(SyntaxError):
                ast.parse(textwrap.dedent(paragraph))


def check_code(code):
    """Each cell is short and does something."""
    for cell in code:
        assert ast.parse(cell).body
        assert len(cell.splitlines()) <= 30


DRAWN = "07_magnitude_and_direction", "10_change_author"


def check_pictures(name, shown):
    """The picture is in the notebook, and nothing else that a cell may end with."""
    if name == "01_backward":
        (picture,) = shown
        root = ElementTree.fromstring("".join(picture["image/svg+xml"]))
        assert "gradient +0.1601" in "".join(root.itertext())
    elif name in DRAWN and importlib.util.find_spec("matplotlib"):
        (picture,) = shown
        assert picture["image/png"].startswith("iVBORw0KGgo")  # the signature of PNG in base 64
    elif name in DRAWN:
        (picture,) = shown
        assert "(extra 'plot'): pip install matplotlib" in "".join(picture["text/plain"])
    else:
        assert shown == []
