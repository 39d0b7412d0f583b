"""The documents are true: their code runs, their answers are right, their commands are run."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md"]
MODULES = [
    path for package in ("minigrad", "loradora") for path in sorted((ROOT / package).glob("*.py"))
]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
DRAWN = [ROOT / "examples" / name for name in ("pictures.py", "plots.py")]  # strings of pictures


def blocks(language: str) -> list:
    """Return every fenced block of the pages in one language, named by page and line."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{page}:{line}"))
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES + SCRIPTS if path not in DRAWN],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_every_console_can_show_what_is_printed(path):
    """Strings are ASCII, including error messages.  Docstrings and comments may use other characters.

    A pipe on Windows has a code page, one under ``LC_ALL=C`` has ASCII, and print() fails at the rest.
    """
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    strings = [node for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
    beyond = [node.value for node in strings if not str(node.value).isascii()]
    assert beyond == []


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs_and_gives_the_answers_in_its_comments(code, tmp_path, monkeypatch):
    """``# → answer`` after an expression is its repr, up to a colon or the end of the line.

    A comment after a call that prints is what it prints.
    """
    for module in re.findall(r"^import (torch|peft)$", code, re.MULTILINE):
        pytest.importorskip(module, reason="needs the extra `interop`: pip install -e '.[interop]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minigrad.ops.OPS", dict(__import__("minigrad").OPS))
    lines = code.splitlines()
    names: dict = {"__name__": "readme"}
    for statement in ast.parse(code).body:
        source = ast.get_source_segment(code, statement)
        comment = lines[statement.end_lineno - 1][statement.end_col_offset :].strip()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if isinstance(statement, ast.Expr):
                value = eval(source, names)
            else:
                body = ast.Module([statement], type_ignores=[])
                exec(compile(body, "readme", "exec"), names)
        if comment.startswith("# →"):
            answer = re.split(r":\s", comment.removeprefix("# →"))[0].strip()
            assert repr(value) == answer
        if printed.getvalue():
            assert printed.getvalue().strip() == comment.removeprefix("#").strip()


@pytest.mark.parametrize("commands", blocks("bash"))
def test_commands_are_run_by_ci(commands):
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    run = re.findall(r"^run '(.*)'$", script, re.MULTILINE)
    for command in commands.splitlines():
        if "&& pytest" not in command and command == "pytest":
            continue  # run with every warning an error
        assert command in run or f"{command} --quick" in run, command


def test_line_counts_in_the_reading_order_are_about_right():
    """Of the files of one hour, of ``ops.py`` as far as it is read there, and of everything together."""
    text = section("Read the code")
    link = r"\]\(((?:minigrad|loradora)/\w+\.py)\)"
    rows = re.findall(rf"^\| .*{link}(?:, up to `(\w+)`)? \| (\d+) \|", text, re.MULTILINE)
    assert len(rows) == 4
    for path, last, written in rows:
        source = (ROOT / path).read_text(encoding="utf-8")
        ends = {getattr(node, "name", ""): node.end_lineno for node in ast.parse(source).body}
        lines = ends[last] if last else len(source.splitlines())
        assert abs(int(written) - lines) <= 10, (path, lines)
    for words, files in (
        ("lessons are", [path for path in SCRIPTS if path.stem[0].isdecimal()]),
        ("`minigrad` is", [path for path in MODULES if path.parent.name == "minigrad"]),
        ("`loradora`", [path for path in MODULES if path.parent.name == "loradora"]),
    ):
        (written,) = re.findall(rf"{words} (\d,\d00)", text)
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert abs(int(written.replace(",", "")) - lines) <= 100, (words, lines)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def section(title):
    """Return the part of the README under this heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_results_in_the_readme_are_those_of_the_run_beside_the_figure():
    """Every number of the table, and the sentence on DoRA, from the JSON file that the command writes."""
    runs = json.loads((ROOT / "examples" / "figures" / "finetune_digits.json").read_text())
    text = section("What it prints")
    assert "| optical digits | MNIST after | MNIST, adapter off |" in text
    accuracy = {}
    for method, title in {
        "frozen": "frozen base",
        "scratch": "from scratch",
        "head": "head only",
        "full": "full fine-tuning",
        "lora": "LoRA r=4",
        "dora": "DoRA r=4",
    }.items():
        rows = [row for row in runs if row["method"] == method]
        accuracy[method] = 100 * np.array([row["new_domain_accuracy"] for row in rows])
        (cells,) = re.findall(rf"^\| {title} \|(.*)\|$", text, re.MULTILINE)
        trainable, share, new, after, off = (cell.strip() for cell in cells.split("|"))
        assert trainable == f"{rows[0]['trainable']:,}"
        assert float(share.rstrip(" %")) == pytest.approx(
            100 * rows[0]["trainable"] / rows[0]["total"], abs=0.005
        )
        assert new == spread(row["new_domain_accuracy"] for row in rows)
        assert after == spread(row["old_domain_accuracy"] for row in rows)
        if method in ("lora", "dora"):
            assert off == spread(row["base_accuracy"] for row in rows)
    gain = accuracy["dora"] - accuracy["lora"]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    assert f"on LoRA: {gain.mean():+.2f} ± {error:.2f} points (paired".replace("-", "−") in text
    assert gain.mean() < 3 * error  # it does not beat a tuned LoRA
    for adapter in ("lora", "dora"):
        assert abs(accuracy["full"].mean() - accuracy[adapter].mean()) < 0.5  # half a point


def test_what_is_said_of_forgetting_is_what_the_run_beside_the_figure_measured():
    runs = json.loads((ROOT / "examples" / "figures" / "finetune_digits.json").read_text())
    text = " ".join(section("What it prints").split())

    def means(method, domain):
        attempts = [row["attempts"] for row in runs if row["method"] == method]
        return 100 * np.mean([[a[f"{domain}_domain_accuracy"] for a in row] for row in attempts], 0)

    rates = [attempt["rate"] for attempt in runs[-1]["attempts"]]
    assert len(rates) == 5
    lora, full = (dict(zip(rates, means(method, "old"))) for method in ("lora", "full"))
    assert list(lora.values()) == sorted(
        lora.values(), reverse=True
    )  # the more, the higher the rate
    assert list(full.values()) == sorted(full.values(), reverse=True)
    less = [lora[rate] - full[rate] for rate in rates]
    assert (
        f"LoRA forgets less than full fine-tuning, by {min(less):.0f} to {max(less):.0f} p" in text
    )
    for method, rate, sentence in (
        ("lora", 0.01, "at {} it reads {:.1f} % of the new digits and keeps {:.1f} % of MNIST"),
        ("full", 0.0003, "full fine-tuning at {} reads {:.1f} % and keeps {:.1f} %"),
    ):
        new, old = (means(method, domain)[rates.index(rate)] for domain in ("new", "old"))
        assert sentence.format(rate, new, old) in text


def spread(accuracies):
    values = 100 * np.array(list(accuracies))
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def test_the_losses_in_the_readme_are_those_of_the_run_beside_the_figure():
    """Both tables of the lesson on attention, and the sentence on what q and v alone reach."""
    runs = json.loads((ROOT / "examples" / "figures" / "10_change_author.json").read_text())
    text = section("A small GPT changes its author")
    losses = {}
    for method in dict.fromkeys(row["method"] for row in runs):
        rows = [row for row in runs if row["method"] == method]
        assert {row["seed"] for row in rows} == {0, 1, 2}
        losses[method] = np.mean([row["loss_new"] for row in rows])
        (cells,) = re.findall(rf"^\| {re.escape(method)} \|(.*)\|$", text, re.MULTILINE)
        trainable, share, new, on, off = (cell.strip() for cell in cells.split("|"))
        assert trainable == f"{rows[0]['trainable']:,}"
        assert share == f"{100 * rows[0]['trainable'] / rows[0]['total']:.1f} %"
        assert new == f"{losses[method]:.3f}"
        assert on == f"{np.mean([row['loss_old'] for row in rows]):.3f}"
        assert off == ("" if rows[0]["loss_off"] is None else f"{rows[0]['loss_off']:.3f}")
        if off:
            assert {row["loss_off"] for row in rows} == {runs[0]["loss_old"]}  # the frozen base's
    gain = {method: losses["frozen base"] - loss for method, loss in losses.items()}
    of_full = {method: 100 * gain[method] / gain["full fine-tuning"] for method in losses}
    q_and_v, linear = (round(of_full[f"LoRA {where}, r=8"]) for where in ("q,v", "all linear"))
    assert f"q and v alone reach {q_and_v} % of what full fine-tuning gains" in text
    assert f"all linear layers {linear} %" in text
    for where in ("q,v", "all linear"):
        assert abs(losses[f"DoRA {where}, r=8"] - losses[f"LoRA {where}, r=8"]) < 0.01
    assert losses["from scratch"] > losses["frozen base"]


def test_the_ablation_in_the_readme_is_that_of_the_run_beside_the_figure():
    name = "10_change_author_ablation.json"
    runs = json.loads((ROOT / "examples" / "figures" / name).read_text())
    text = section("A small GPT changes its author")
    losses = []
    for method in dict.fromkeys(row["method"] for row in runs if row["trainable"]):
        rows = [row for row in runs if row["method"] == method]
        layers, rank = re.fullmatch(r"LoRA (.*), r=(\d+)", method).groups()
        (cells,) = re.findall(rf"^\| {layers} \| {rank} \|(.*)\|$", text, re.MULTILINE)
        losses.append(np.mean([row["loss_new"] for row in rows]))
        assert [c.strip() for c in cells.split("|")] == [
            f"{rows[0]['trainable']:,}",
            f"{losses[-1]:.3f}",
        ]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)  # more matrices at a lower rank do better


def test_the_accuracies_in_the_readme_are_those_of_the_run_beside_the_figures():
    runs = json.loads((ROOT / "examples" / "figures" / "finetune_minilm.json").read_text())
    text = section("A real transformer: all-MiniLM-L6-v2")
    accuracy = {}
    for method, title in {"head": "head alone", "lora": "LoRA", "dora": "DoRA"}.items():
        rows = [row for row in runs if row["method"] == method]
        assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4]
        accuracy[method] = 100 * np.array([row["accuracy"] for row in rows])
        (cells,) = re.findall(rf"^\| {title} \|(.*)\|$", text, re.MULTILINE)
        milliseconds = np.mean([row["milliseconds"] for row in rows])
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{rows[0]['trainable']:,}",
            f"{100 * rows[0]['trainable'] / rows[0]['total']:.2f} %",
            spread(accuracy[method] / 100) + " %",
            f"{milliseconds:.0f}" if milliseconds > 1 else "",
            f"{max(row['memory'] for row in rows) / 1e6:.0f} MB",
        ]
    gains = [accuracy["lora"] - accuracy["head"], accuracy["dora"] - accuracy["lora"]]
    means = [f"{gain.mean():.1f} ± {gain.std(ddof=1) / 5**0.5:.1f}" for gain in gains]
    assert f"LoRA gains {means[0]} points on the head alone" in " ".join(text.split())
    assert f"DoRA {means[1]} on LoRA".replace("-", "−") in " ".join(text.split())


def test_the_bytes_in_the_readme_are_those_of_the_run_beside_the_figures():
    rows = json.loads((ROOT / "examples" / "figures" / "11_outgrow.json").read_text())
    text = section("When one machine is not enough")
    table = re.findall(r"^\| (full fine-tuning|(?:LoRA|DoRA) r=\d+) \|(.*)\|$", text, re.MULTILINE)
    assert len(table) == 6
    for title, cells in table:
        name = "full" if title.startswith("full") else title.replace(" r=", "-")
        (row,) = [row for row in rows if row["method"] == name]
        right = [100 * row["accuracy_there"], 100 * row["accuracy_here"]]
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{row['trainable']:,}",
            f"{row['bytes_per_step']:,}",
            f"{row['seconds_there']:.2f} s",
            f"{row['seconds_here']:.2f} s",
            *(f"{accuracy:.1f} %" for accuracy in right),
            f"{row['difference']:.0e}",
        ]
        assert row["bytes_per_step"] == 4 * row["trainable"]
        assert row["seconds_here"] < row["seconds_there"]
    largest = max(row["largest"] for row in rows)
    assert f"the largest logit is {largest:.0f}." in text


def test_what_the_lesson_says_of_seven_billion_parameters_follows_from_its_formulas():
    """Llama 2: 32 layers of width 4,096, a gated net of 11,008, and 32,000 words, twice."""
    layers, width, inner, words, r, tokens = 32, 4096, 11008, 32_000, 16, 2048
    matrices = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    norms = (2 * layers + 1) * width
    base = layers * sum(m * n for m, n in matrices) + 2 * words * width + norms
    lora = layers * sum(r * (m + n) for m, n in matrices)
    q_and_v = layers * 2 * r * 2 * width
    outputs = sum(m for m, _ in matrices)
    a_r = r * len(matrices)
    text = " ".join((ROOT / "examples" / "11_outgrow.py").read_text(encoding="utf-8").split("\n# "))
    text = " ".join(text.split())
    for said in (
        f"{base / 1e9:.2f} billion parameters in 16 bits are {2 * base / 1e9:.1f} GB",
        f"has {lora / 1e6:.1f} million numbers",
        f"that makes {16 * lora / 1e6:.0f} MB, and {4 * lora / 1e6:.0f} MB of gradients are sent",
        f"{q_and_v / 1e6:.1f} million, {16 * q_and_v / 1e6:.0f} MB",
        f"keeps {16 * base / 1e9:.0f} GB, and sends {4 * base / 1e9:.0f} GB",
        f"give {outputs:,} numbers per token and layer, and LoRA {a_r} more",
        f"{tokens:,} tokens through {layers} layers are "
        f"{2 * tokens * layers * (outputs + a_r) / 1e9:.1f} GB",
        f"which makes {34 * tokens * layers * width / 1e9:.1f} GB",
        f"takes {2 * tokens * layers * width / 1e9:.2f} GB",
    ):
        assert said in text, said
    minutes = 4 * base * tokens / 0.2e12 / 60
    assert 4.5 < minutes < 5
    assert "would take nearly five minutes" in text


def test_what_the_lesson_says_of_speed_is_in_the_committed_run():
    text = (ROOT / "examples" / "11_outgrow.py").read_text(encoding="utf-8")
    text = " ".join(text.replace("\n# ", " ").split())
    steps = 3 * 2 * 1024**3 + 2 * 2 * 1024**3  # forward, and back to all inputs but the first
    ours = measured("A LoRA training step, ms", "1024×3, batch 1024, r 16 ")[0]
    assert f"{steps / 1e9:.0f} billion multiplications and additions in {ours:.0f} ms" in text
    assert f"{steps / 1e12 / (ours / 1e3):.1f} TFLOP/s on one core" in text
    small = measured("A LoRA training step, ms", "784-256-128-10, batch 64, r 8 ")[0]
    assert f"the first net, at {small:.1f} ms here" in text
    ratio = measured("Training steps in proportion", "784-256-128-10, batch 64, r 8 ")[0]
    assert f"takes PEFT {ratio:.1f} times as long as it takes here" in text
    for row in ("4096×3, batch 64, r 8 ", "1024×3, batch 1024, r 16 "):  # the same, and level
        assert measured("Training steps in proportion", row)[0] == pytest.approx(1, abs=0.03)


def measured(title, first):
    """Return the medians in a line of a table of the committed run."""
    file = ROOT / "tests" / "benchmarks" / "results" / "xeon_2_cores.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    line = next(line for line in lines[start:] if line.startswith(first))
    return [float(n) for n in re.findall(r"([\d.]+) ±", line)]


GPT = "LoRA on q, v", "DoRA on q, v", "LoRA on all linear"


def test_the_speeds_in_the_readme_are_those_of_the_committed_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    gpt = [measured("A training step of a small GPT", f"{of} ")[-1] for of in GPT]
    assert gpt[0] == pytest.approx(0.9, abs=0.05)
    assert gpt[1:] == pytest.approx([1, 1], abs=0.05)
    step = "A training step of a BERT of MiniLM's shape"
    for lengths in ("mixed", "similar"):
        lora, dora = (measured(step, f"{m}, {lengths} lengths")[-1] for m in ("LoRA", "DoRA"))
        assert [lora, dora] == pytest.approx([0.8, 0.9], abs=0.05)
    rows = re.findall(r"^\| ([\d×-]+), (\d+), (\d+) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 6
    for sizes, batch, r, cells in rows:
        lora, dora, *inference = (cell.strip() for cell in cells.split("|"))
        found = measured("Training steps in proportion", f"{sizes}, batch {batch}, r {r} ")
        assert [float(lora), float(dora)] == pytest.approx(found[:2], abs=0.051)
        other = {"784-256-128-10": "784-128-256-10"}.get(sizes, sizes)
        if inference[0]:
            found = measured("Inference in proportion", f"{other}, batch {batch} ")
            assert [float(x) for x in inference] == pytest.approx(found[2:], abs=0.051)
