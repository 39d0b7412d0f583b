"""The tests are the same ones wherever, however and in whichever order they are run.

Running a failed test again by its name relies on this, and so do tools that distribute the tests among
processes.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pytest_run(*arguments, cwd=None, **environment):
    """Return what another pytest prints; raise if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTEST_ADDOPTS": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_process_finds_the_same_tests_in_the_same_order(request):
    """A name must not contain an address, a time, or the first element of a set."""
    here = [item.nodeid for item in request.session.items]
    files = dict.fromkeys(item.path for item in request.session.items)
    root = request.config.rootpath
    first, second = (
        pytest_run(f"--rootdir={root}", "--collect-only", *files, PYTHONHASHSEED=seed).splitlines()
        for seed in "12"
    )
    assert first[:-1] == second[:-1]  # all but the seconds it took
    assert set(here) <= set(first)  # perhaps a few of them, in another order


@pytest.fixture
def elsewhere(tmp_path):
    """A checkout with the settings of this one and a single test, which is Hypothesis'."""
    (tmp_path / "tests").mkdir()
    for name in ("setup.cfg", "tests/conftest.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tests" / "test_it.py").write_text(
        "from hypothesis import given, strategies as st\n"
        "@given(st.integers())\n"
        "def test_it(i):\n"
        "    assert i == int(str(i))\n"
    )
    return tmp_path


def test_a_checkout_in_which_nothing_can_be_written_will_do(elsewhere):
    """Hypothesis keeps failed examples if it can."""
    (elsewhere / ".hypothesis").touch()  # so that not even root can make that folder
    assert "1 passed" in pytest_run("tests", cwd=elsewhere)


def test_nothing_is_imported_but_the_packages_and_the_tests(elsewhere):
    """Not even to look for examples: a script may start running, and need what is not installed."""
    for name in ("examples/01_lesson.py", "tests/benchmarks/run.py", "tests/helper.py"):
        file = elsewhere / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("raise ImportError\n")
    assert "1 passed" in pytest_run(".", cwd=elsewhere)


def examples(node, name):
    """Return how many examples each docstring has, by the full name of what it describes."""
    found = {}
    for child in ast.iter_child_nodes(node):
        found |= examples(child, f"{name}.{child.name}" if hasattr(child, "name") else name)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        found[name] = (ast.get_docstring(node) or "").count(">>> ")
    return found


def test_every_example_in_the_packages_is_a_test(pytestconfig):
    """Each ``>>>`` stands in a docstring that plain ``pytest`` runs, and none of them is left out."""
    expected, packages = [], ["minigrad", "loradora"]
    assert set(packages) <= set(pytestconfig.getini("testpaths"))
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            source, file = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
            module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            found = examples(ast.parse(source), module)
            assert sum(found.values()) == source.count(">>> "), file
            assert "+SKIP" not in source, file
            expected += [f"{file}::{name}" for name, count in found.items() if count]
    collected = pytest_run("--collect-only", *packages, cwd=ROOT).splitlines()
    assert sorted(line for line in collected if "::" in line) == sorted(expected)
