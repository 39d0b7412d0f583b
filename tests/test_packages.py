"""What is installed and where it comes from: the metadata, the page on an index, the extras."""

import compileall
import configparser
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest

from loradora.companion import OURS

ROOT = Path(__file__).parents[1]
SETUP = configparser.RawConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
METADATA = SETUP["metadata"]


def lines(value):
    return value.strip().splitlines()


# ----------------------------------------------------------------------------- metadata


def test_the_packages_are_those_of_the_repository_and_tell_type_checkers_that_they_are_typed():
    packages = lines(SETUP["options"]["packages"])
    assert sorted(packages) == sorted(file.parent.name for file in ROOT.glob("*/__init__.py"))
    assert {**SETUP["options.package_data"]} == dict.fromkeys(packages, "py.typed")
    assert all((ROOT / package / "py.typed").exists() for package in packages)


def test_the_licence_is_an_expression_and_not_also_a_classifier():
    assert METADATA["license_expression"] == "MIT"
    assert "license" not in METADATA
    assert "License ::" not in METADATA["classifiers"]
    assert (ROOT / METADATA["license_files"]).read_text(encoding="utf-8").startswith("MIT License")


def test_the_classifiers_name_every_python_from_the_oldest_that_is_allowed():
    minors = re.findall(
        r"^Programming Language :: Python :: 3\.(\d+)$", METADATA["classifiers"], re.M
    )
    assert SETUP["options"]["python_requires"] == f">=3.{minors[0]}"
    assert [int(minor) for minor in minors] == list(range(10, 15))


# ----------------------------------------------------------------------------- the page on an index


def test_the_page_has_no_link_picture_or_formula_that_an_index_cannot_show():
    page = METADATA["long_description"]
    assert not page.startswith("file:")  # the README has all of these
    assert METADATA["long_description_content_type"] == "text/markdown"
    assert not re.search(r"\]\((?!https://)", page)
    assert "![" not in page
    assert "$" not in page
    assert not re.search(r"^\|", page, re.M)


def test_the_code_on_the_page_trains_a_network(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", METADATA["long_description"], re.M | re.S)
    names: dict = {}
    exec(compile(code, "page", "exec"), names)
    assert "trainable params: 6,642" in capsys.readouterr().out
    assert names["losses"][-1] < names["losses"][0]
    assert type(names["merged"]) is type(names["base"])


# ----------------------------------------------------------------------------- another minigrad

FOREIGN = "raise SystemExit('foreign code was run')"
MODULES = [name.removeprefix("minigrad.") for name in OURS if name != "minigrad"]


@pytest.fixture
def site(tmp_path):
    """A folder in which minigrad and loradora are installed."""
    for package in ("minigrad", "loradora"):
        shutil.copytree(
            ROOT / package,
            tmp_path / "site" / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return tmp_path / "site"


def importing(*path, before=""):
    """Import loradora with these folders before the standard library, and no packages but NumPy."""
    places = [*path, Path(np.__file__).parents[1]]
    return subprocess.run(
        [sys.executable, "-S", "-c", f"{before}\nimport loradora; print(loradora.__file__)"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        cwd=path[0].parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def assert_is_noticed(outcome, *said):
    assert (outcome.returncode, outcome.stdout) == (1, ""), outcome.stderr
    message = outcome.stderr.splitlines()[-1]
    assert message.startswith("ImportError: ")
    assert "During handling" not in outcome.stderr
    again = (
        "minigrad-loradora again from where you got it: pip install --force-reinstall --no-deps "
    )
    for text in (*said, again + "<wheel or folder>"):
        assert str(text) in message


def packed(site):
    """Put the packages into a zip file, from which Python can import, too."""
    return Path(shutil.make_archive(str(site), "zip", site))


def compiled(site):
    """Keep the byte code, not the source."""
    compileall.compile_dir(site, legacy=True, quiet=1)
    for file in site.rglob("*.py"):
        file.unlink()
    return site


@pytest.mark.parametrize(
    "form", [lambda site: site, packed, compiled], ids=["as it is", "zip", "pyc"]
)
def test_our_own_minigrad_is_taken_for_ours(form, site):
    place = form(site)
    outcome = importing(place)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(str(place))


def test_every_module_of_minigrad_has_a_mark_to_know_it_by():
    files = {file.stem: file for file in (ROOT / "minigrad").glob("*.py")}
    assert sorted(MODULES) == sorted(files.keys() - {"__init__"})
    for name, mark in OURS.items():
        assert mark in files[
            name.removeprefix("minigrad.") if "." in name else "__init__"
        ].read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["minigrad/__init__.py", "minigrad.py"])
def test_a_foreign_minigrad_earlier_on_the_path_is_named_and_not_run(file, site, tmp_path):
    foreign = tmp_path / "other" / file
    foreign.parent.mkdir(parents=True)
    foreign.write_text(FOREIGN)
    outcome = importing(tmp_path / "other", site)
    assert_is_noticed(outcome, foreign, "To mend it, remove or rename that, and install")


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_a_file_written_over_ours_is_named_and_not_run(module, site):
    file = site / "minigrad" / f"{module}.py"
    file.write_text(FOREIGN)
    assert_is_noticed(importing(site), file)


def test_a_compiled_module_that_goes_before_ours_is_named(site):
    file = site / "minigrad" / f"engine{EXTENSION_SUFFIXES[0]}"
    file.write_bytes(b"\x7fELF")
    assert_is_noticed(importing(site), file)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_another_package_took_along_is_missed(module, site):
    (site / "minigrad" / f"{module}.py").unlink()
    assert_is_noticed(importing(site), f"minigrad.{module} is missing", "To mend it, install")


def test_what_is_left_of_minigrad_is_not_taken_for_a_namespace(site):
    (site / "minigrad" / "__init__.py").unlink()
    alone = (  # a whole one that is installed elsewhere would be taken
        f"import os, sys; sys.path = [p for p in sys.path if p == {str(site)!r} "
        "or not os.path.exists(os.path.join(p, 'minigrad'))]"
    )
    assert_is_noticed(importing(site, before=alone), "minigrad is missing")


def test_a_minigrad_that_is_gone_altogether_is_missed(site):
    shutil.rmtree(site / "minigrad")
    gone = "import sys; sys.modules['minigrad'] = None"  # wherever it may be installed
    assert_is_noticed(importing(site, before=gone), "minigrad is missing")


def test_a_foreign_minigrad_that_has_been_imported_already_is_named(site, tmp_path):
    foreign = tmp_path / "other" / "minigrad.py"
    foreign.parent.mkdir()
    foreign.write_text("")
    before = (
        f"import sys; sys.path.insert(0, {str(foreign.parent)!r}); import minigrad; del sys.path[0]"
    )
    assert_is_noticed(importing(site, before=before), foreign)


def test_a_minigrad_that_was_made_without_a_file_is_named(site):
    made = "import sys, types; sys.modules['minigrad'] = types.ModuleType('minigrad')"
    assert_is_noticed(importing(site, before=made), "minigrad was imported from no file")


LOADING = """
import sys
from importlib.machinery import ModuleSpec, PathFinder

class Loader:
    def __init__(self, inside):
        self.create_module, self.exec_module = inside.create_module, inside.exec_module

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "minigrad":
            spec = PathFinder.find_spec(name, path)
            spec.loader = Loader(spec.loader)
            return spec

sys.meta_path.insert(0, Finder)
"""


def test_our_own_minigrad_may_come_from_a_loader_that_shows_no_files(site):
    outcome = importing(site, before=LOADING)
    assert outcome.returncode == 0, outcome.stderr


def test_the_other_package_is_named_if_pip_knows_it(site):
    (site / "minigrad" / "__init__.py").write_text(FOREIGN)
    for package in ("minigrad-loradora", "other-minigrad"):
        folder = site / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "top_level.txt").write_text("minigrad\n")
    assert_is_noticed(importing(site), "pip uninstall other-minigrad, and")


# ----------------------------------------------------------------------------- extras

OWN = "minigrad-loradora"
EXTRAS = {extra: lines(needed) for extra, needed in SETUP["options.extras_require"].items()}


def brought_by(extra):
    """Return the requirements of an extra and of those that it is composed of."""
    brought = set()
    for requirement in EXTRAS[extra]:
        if requirement.startswith(OWN):
            for other in requirement.removeprefix(OWN).strip("[]").split(","):
                brought |= brought_by(other)
        else:
            brought.add(requirement)
    return brought


def test_a_requirement_is_written_down_once():
    names = [re.match(r"[\w-]+", line)[0] for needed in EXTRAS.values() for line in needed]
    foreign = [name for name in names if name != OWN]
    assert sorted(foreign) == sorted(set(foreign))


@pytest.mark.parametrize(
    ("extra", "what_it_is_for"),
    [
        ("test", {"pytest", "hypothesis"}),
        # mypy reads the types of safetensors
        ("dev", {"pytest", "hypothesis", "ruff", "mypy", "safetensors"}),
        ("interop", {"pytest", "hypothesis", "torch==2.13.0", "peft==0.21.2", "safetensors"}),
        ("bench", {"torch==2.13.0", "peft==0.21.2", "autograd", "mygrad"}),
    ],
)
def test_an_extra_is_enough_by_itself(extra, what_it_is_for):
    assert what_it_is_for <= brought_by(extra)


@pytest.mark.parametrize("folder", ["minigrad", "loradora", "examples"])
def test_advice_on_an_extra_works_in_a_checkout_and_without_one(folder):
    """It is `(extra 'name'): pip install PACKAGES`, because a wheel has no folder to install from."""
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / folder).glob("*.py"))
    assert "pip install -e" not in source
    advice = re.findall(r"\(extra '(\w+)'\): pip install (\w+(?: \w+)*)", source)
    assert len(re.findall(r"pip install \w", source)) == len(advice)
    for extra, packages in advice:
        assert set(packages.split()) <= {re.match(r"\w+", name)[0] for name in brought_by(extra)}
