"""The documents are true: their code runs, their answers are right, their commands are run."""

import ast
import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md"]
MODULES = [
    path for package in ("minigrad", "loradora") for path in sorted((ROOT / package).glob("*.py"))
]


def blocks(language: str) -> list:
    """Return every fenced block of the pages in one language, named by page and line."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{page}:{line}"))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_examples_in_docstrings_are_right(path):
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    written = len(re.findall(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE))
    outcome = doctest.testmod(module)
    assert (outcome.failed, outcome.attempted) == (0, written)


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs_and_gives_the_answers_in_its_comments(code, tmp_path, monkeypatch):
    """``# → answer`` after an expression is its repr, up to a colon or the end of the line.

    A comment after a call that prints is what it prints.
    """
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
    for command in commands.splitlines():
        assert command in script


def test_line_counts_in_the_reading_order_are_about_right():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\]\(((?:minigrad|loradora)/\w+\.py)\) \| (\d+) \|", text)
    counts = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path, _ in rows}
    for path, written in rows:
        assert abs(int(written) - counts[path]) <= 10 + counts[path] // 10, (path, counts[path])
    files = {
        p.relative_to(ROOT).as_posix()
        for d in ("minigrad", "loradora")
        for p in (ROOT / d).glob("*.py")
    }
    assert {f for f in files if not f.endswith("__init__.py")} == set(counts)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
